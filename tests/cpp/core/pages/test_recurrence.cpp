// Sizes that are missing again and again at equal distances recur.
#include <random>

#include "check.h"
#include "core/pages/recurrence.h"

using mempool::Recurrence;

namespace {
constexpr std::size_t kSize = std::size_t{5} << 20;
constexpr std::int64_t kTurn = 3000;
}  // namespace

TEST(a_size_that_is_missing_in_each_turn_recurs) {
  Recurrence recurrence;
  CHECK(!recurrence.missing(kSize, 100));
  CHECK(!recurrence.missing(kSize, 100 + kTurn));
  CHECK(recurrence.missing(kSize, 100 + 2 * kTurn));
  CHECK(recurrence.missing(kSize, 100 + 3 * kTurn));
  CHECK(!recurrence.missing(kSize, 101 + 4 * kTurn));
}

TEST(a_short_turn_must_be_seen_more_often) {
  Recurrence recurrence;
  for (int turn = 0; turn < 6; ++turn) CHECK(!recurrence.missing(kSize, 400 * turn));
  CHECK(recurrence.missing(kSize, 400 * 6));
}

TEST(several_places_in_a_turn_are_told_apart) {
  Recurrence recurrence;
  int recurring = 0;
  for (int turn = 0; turn < 4; ++turn) {
    for (const std::int64_t place : {10, 25, 700}) recurring += recurrence.missing(kSize, turn * kTurn + place);
  }
  CHECK_EQ(recurring, 6);  // the last two turns
}

TEST(short_patterns_and_chance_do_not_recur) {
  Recurrence recurrence;
  for (std::int64_t i = 0; i < 20; ++i) CHECK(!recurrence.missing(kSize, 40 * i));
  std::mt19937 random(3);
  std::int64_t now = 0;
  int recurring = 0;
  for (int i = 0; i < 2000; ++i)
    recurring += recurrence.missing(2 * kSize, now += 1 + static_cast<int>(random() % 5000));
  CHECK(recurring < 20);
}

TEST(sizes_do_not_answer_for_each_other) {
  Recurrence recurrence;
  CHECK(!recurrence.missing(kSize, 0));
  CHECK(!recurrence.missing(2 * kSize, kTurn));
  CHECK(!recurrence.missing(kSize, 2 * kTurn));
}
