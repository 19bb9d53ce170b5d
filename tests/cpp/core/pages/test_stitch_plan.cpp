// The choice of pieces that compose a range: the fewest moves.
#include <algorithm>

#include "check.h"
#include "core/pages/stitch_plan.h"

using mempool::FreePiece;
using mempool::plan_stitch_of_whole;

namespace {

// Pieces that lie in a vector.
class ListedPieces final : public mempool::FreePieces {
 public:
  explicit ListedPieces(std::vector<FreePiece> pieces) : pieces_(std::move(pieces)) {
    std::sort(pieces_.begin(), pieces_.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  }
  bool next(FreePiece& out) override {
    if (next_ == pieces_.size()) return false;
    out = pieces_[next_++];
    return true;
  }
  bool smallest(std::size_t least, FreePiece& out) override {
    const auto behind = std::partition_point(pieces_.begin(), pieces_.end(),
                                             [least](const FreePiece& piece) { return piece.bytes >= least; });
    if (behind == pieces_.begin()) return false;
    out = *std::prev(behind);
    return true;
  }

 private:
  std::vector<FreePiece> pieces_;
  std::size_t next_ = 0;
};

std::vector<FreePiece> plan_stitch(const std::vector<FreePiece>& from, std::size_t needed) {
  ListedPieces pieces(from);
  return mempool::plan_stitch(pieces, needed);
}

std::size_t sum(const std::vector<FreePiece>& pieces) {
  std::size_t out = 0;
  for (const FreePiece& piece : pieces) out += piece.bytes;
  return out;
}
}  // namespace

TEST(one_piece_that_covers_all_is_cut_to_size) {
  std::vector<FreePiece> pieces{{100, 8}, {200, 4}, {300, 6}};
  const auto plan = plan_stitch(pieces, 5);
  CHECK_EQ(plan.size(), 1u);
  CHECK_EQ(plan[0].start, 300u);
  CHECK_EQ(plan[0].bytes, 5u);
}

TEST(the_largest_go_first_and_the_last_is_the_smallest_that_does) {
  std::vector<FreePiece> pieces{{100, 8}, {200, 4}, {300, 6}, {400, 2}};
  const auto plan = plan_stitch(pieces, 10);
  CHECK_EQ(plan.size(), 2u);
  CHECK_EQ(plan[0].start, 100u);
  CHECK_EQ(plan[1].start, 400u);
  CHECK_EQ(sum(plan), 10u);
}

TEST(whole_pieces_reach_beyond_by_as_little_as_will_do) {
  const std::vector<FreePiece> pieces{{100, 8}, {200, 4}, {300, 6}};
  CHECK_EQ(sum(plan_stitch_of_whole(pieces, 11, 100)), 12u);  // 8, and the 4 for the other 3
  CHECK_EQ(sum(plan_stitch_of_whole(pieces, 11, 0)), 8u);     // no room beyond
  CHECK_EQ(sum(plan_stitch_of_whole(pieces, 14, 0)), 14u);
  const auto one = plan_stitch_of_whole({{100, 8}}, 7, 1);
  CHECK_EQ(one.size(), 1u);
  CHECK(plan_stitch_of_whole({{100, 8}}, 7, 0).empty());
  CHECK_EQ(sum(plan_stitch_of_whole(pieces, 100, 100)), 18u);
}

TEST(one_whole_piece_is_better_than_many_that_come_close) {
  const std::vector<FreePiece> pieces{{100, 8}, {200, 2}, {300, 2}, {400, 2}};
  const auto plan = plan_stitch_of_whole(pieces, 7, 1);
  CHECK_EQ(plan.size(), 1u);
  CHECK_EQ(plan[0].start, 100u);
}

TEST(too_little_is_taken_whole) {
  std::vector<FreePiece> pieces{{100, 8}, {200, 4}};
  CHECK_EQ(sum(plan_stitch(pieces, 100)), 12u);
  pieces.clear();
  CHECK(plan_stitch(pieces, 100).empty());
}

TEST(a_piece_is_chosen_once) {
  // What is left after the 8 would be covered by the 8 best of all.
  const std::vector<FreePiece> pieces{{100, 8}, {200, 7}, {300, 6}};
  const auto plan = plan_stitch(pieces, 15);
  CHECK_EQ(plan.size(), 2u);
  CHECK_EQ(plan[0].start, 100u);
  CHECK_EQ(plan[1].start, 200u);
  const auto tight = plan_stitch({{100, 8}, {200, 6}}, 12);
  CHECK_EQ(tight.size(), 2u);
  CHECK_EQ(tight[1].start, 200u);
  CHECK_EQ(tight[1].bytes, 4u);
}
