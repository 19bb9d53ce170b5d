#include "core/pages/stitch_plan.h"

#include <algorithm>

namespace mempool {

std::vector<FreePiece> plan_stitch(FreePieces& pieces, std::size_t needed) {
  std::vector<FreePiece> chosen;
  FreePiece piece;
  while (needed > 0 && pieces.next(piece)) {
    if (piece.bytes < needed) {
      chosen.push_back(piece);
      needed -= piece.bytes;
      continue;
    }
    FreePiece last;
    const auto is_chosen = [&last](const FreePiece& other) { return other.start == last.start; };
    // The smallest may be among the chosen: they were too small for what was left then, not for what is left now.
    if (!pieces.smallest(needed, last) || std::any_of(chosen.begin(), chosen.end(), is_chosen)) last = piece;
    last.bytes = needed;
    chosen.push_back(last);
    needed = 0;
  }
  return chosen;
}

std::vector<FreePiece> plan_stitch_of_whole(std::vector<FreePiece> pieces, std::size_t needed, std::size_t room) {
  std::sort(pieces.begin(), pieces.end(), [](const FreePiece& a, const FreePiece& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : a.start < b.start;
  });
  std::vector<FreePiece> chosen;
  const FreePiece* beyond = nullptr;  // the smallest that covers all that is left
  for (const FreePiece& piece : pieces) {
    if (needed == 0) break;
    if (piece.bytes > needed) {
      beyond = &piece;
      continue;
    }
    chosen.push_back(piece);
    needed -= piece.bytes;
  }
  if (needed == 0 || beyond == nullptr) return chosen;
  // Small ones that were chosen to come close are not needed where one covers them too.
  std::size_t kept = chosen.size();
  while (kept > 0 && chosen[kept - 1].bytes + needed <= beyond->bytes) needed += chosen[--kept].bytes;
  if (beyond->bytes - needed > room) return chosen;
  chosen.resize(kept);
  chosen.push_back(*beyond);
  return chosen;
}

}  // namespace mempool
