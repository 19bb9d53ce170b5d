#include "core/stitch_plan.h"

#include <algorithm>

namespace mempool {

std::vector<FreePiece> plan_stitch(std::vector<FreePiece>& pieces, std::size_t needed, bool can_cut) {
  std::sort(pieces.begin(), pieces.end(), [](const FreePiece& a, const FreePiece& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.start < b.start;
  });
  std::vector<FreePiece> chosen;
  while (needed > 0 && !pieces.empty()) {
    const auto fits = std::lower_bound(pieces.begin(), pieces.end(), needed,
                                       [](const FreePiece& piece, std::size_t bytes) { return piece.bytes < bytes; });
    const bool exact = fits != pieces.end() && fits->bytes == needed;
    if (fits != pieces.end() && (can_cut || exact)) {
      chosen.push_back({fits->start, needed, fits->span});
      return chosen;
    }
    if (fits == pieces.begin()) break;  // every whole piece is too large
    const auto largest = std::prev(fits);
    chosen.push_back(*largest);
    needed -= largest->bytes;
    pieces.erase(largest, pieces.end());  // nothing larger than what is left can be used: it did not fit before either
  }
  return chosen;
}

}  // namespace mempool
