// The list of all packed formats: registering operators and whatever else is done for each of them goes through it.
#pragma once

#include "kernels/formats/bitmap.h"
#include "kernels/formats/block4.h"
#include "kernels/formats/dense.h"
#include "kernels/formats/sparse24.h"

namespace mempool::kernels {

template <typename... Formats>
struct FormatList {
  // Calls action(Format{}) for the traits of each format.
  template <typename Action>
  static void each(Action action) {
    (action(Formats{}), ...);
  }
};

using AllFormats = FormatList<DenseFormat, BitmapFormat, BlockFormat, Sparse24Format>;

}  // namespace mempool::kernels
