// CUDA memory that another process shares, mapped into this one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace mempool {

// A handle that another process exported, as a file descriptor of this one.
struct ImportedPiece {
  int descriptor = -1;
  std::size_t bytes = 0;
};

// Maps the pieces one behind the other, for the device to use, until the last copy of the pointer goes. nullptr: the
// driver refused.
std::shared_ptr<void> cuda_import(int ordinal, const std::vector<ImportedPiece>& pieces);

}  // namespace mempool
