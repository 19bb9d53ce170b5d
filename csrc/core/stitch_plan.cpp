#include "core/stitch_plan.h"

#include <algorithm>
#include <utility>

namespace mempool {

ListedPieces::ListedPieces(std::vector<FreePiece> pieces) : pieces_(std::move(pieces)) {
  std::sort(pieces_.begin(), pieces_.end(), [](const FreePiece& a, const FreePiece& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : a.start < b.start;
  });
}

bool ListedPieces::next(FreePiece& out) {
  if (next_ == pieces_.size()) return false;
  out = pieces_[next_++];
  return true;
}

bool ListedPieces::smallest(std::size_t least, FreePiece& out) {
  const auto behind = std::partition_point(pieces_.begin(), pieces_.end(),
                                           [least](const FreePiece& piece) { return piece.bytes >= least; });
  if (behind == pieces_.begin()) return false;
  out = *std::prev(behind);
  return true;
}

std::vector<FreePiece> plan_stitch(FreePieces& pieces, std::size_t needed, bool can_cut) {
  std::vector<FreePiece> chosen;
  FreePiece piece;
  while (needed > 0 && pieces.next(piece)) {
    if (piece.bytes < needed || (piece.bytes == needed && !can_cut)) {
      chosen.push_back(piece);
      needed -= piece.bytes;
      continue;
    }
    if (!can_cut) continue;
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

}  // namespace mempool
