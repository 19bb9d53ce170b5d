#include "check.h"
#include "core/stitch_plan.h"

using mempool::FreePiece;
using mempool::ListedPieces;

namespace {
std::vector<FreePiece> plan_stitch(const std::vector<FreePiece>& from, std::size_t needed, bool can_cut) {
  ListedPieces pieces(from);
  return mempool::plan_stitch(pieces, needed, can_cut);
}

std::size_t sum(const std::vector<FreePiece>& pieces) {
  std::size_t out = 0;
  for (const FreePiece& piece : pieces) out += piece.bytes;
  return out;
}
}  // namespace

TEST(one_piece_that_covers_all_is_cut_to_size) {
  std::vector<FreePiece> pieces{{100, 8}, {200, 4}, {300, 6}};
  const auto plan = plan_stitch(pieces, 5, true);
  CHECK_EQ(plan.size(), 1u);
  CHECK_EQ(plan[0].start, 300u);
  CHECK_EQ(plan[0].bytes, 5u);
}

TEST(the_largest_go_first_and_the_last_is_the_smallest_that_does) {
  std::vector<FreePiece> pieces{{100, 8}, {200, 4}, {300, 6}, {400, 2}};
  const auto plan = plan_stitch(pieces, 10, true);
  CHECK_EQ(plan.size(), 2u);
  CHECK_EQ(plan[0].start, 100u);
  CHECK_EQ(plan[1].start, 400u);
  CHECK_EQ(sum(plan), 10u);
}

TEST(whole_pieces_never_fill_more_than_is_needed) {
  std::vector<FreePiece> pieces{{100, 8}, {200, 4}, {300, 6}};
  auto plan = plan_stitch(pieces, 11, false);
  CHECK_EQ(sum(plan), 8u);
  pieces = {{100, 8}, {200, 4}, {300, 6}};
  plan = plan_stitch(pieces, 14, false);
  CHECK_EQ(sum(plan), 14u);
  pieces = {{100, 8}};
  CHECK(plan_stitch(pieces, 7, false).empty());
}

TEST(too_little_is_taken_whole) {
  std::vector<FreePiece> pieces{{100, 8}, {200, 4}};
  CHECK_EQ(sum(plan_stitch(pieces, 100, true)), 12u);
  pieces.clear();
  CHECK(plan_stitch(pieces, 100, true).empty());
}

TEST(a_piece_is_chosen_once) {
  // What is left after the 8 would be covered by the 8 best of all.
  const std::vector<FreePiece> pieces{{100, 8}, {200, 7}, {300, 6}};
  const auto plan = plan_stitch(pieces, 15, true);
  CHECK_EQ(plan.size(), 2u);
  CHECK_EQ(plan[0].start, 100u);
  CHECK_EQ(plan[1].start, 200u);
  const auto tight = plan_stitch({{100, 8}, {200, 6}}, 12, true);
  CHECK_EQ(tight.size(), 2u);
  CHECK_EQ(tight[1].start, 200u);
  CHECK_EQ(tight[1].bytes, 4u);
}
