// How much memory one growth commits.
#include "backend/fake_memory.h"
#include "check.h"
#include "core/pages/commit_policy.h"
#include "core/pages/policy.h"

using mempool::AccountRegistry;
using mempool::CommitPolicy;
using mempool::FakeMemory;
using mempool::Ledger;
namespace policy = mempool::policy;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kGiB = std::size_t{1} << 30;

struct Fixture {
  explicit Fixture(std::size_t held, std::size_t capacity = SIZE_MAX,
                   FakeMemory::Personality personality = FakeMemory::Personality::device)
      : memory({.personality = personality, .capacity_bytes = capacity, .accessible = false}) {
    CHECK(ledger.try_hold(held) == Ledger::Hold::counted);
  }
  FakeMemory memory;
  AccountRegistry accounts;
  Ledger ledger{accounts};
  CommitPolicy commits{memory, ledger, true, {}};
};

}  // namespace

TEST(a_handle_that_can_be_cut_takes_all_that_is_wanted) {
  Fixture f(0, SIZE_MAX, FakeMemory::Personality::host);
  CHECK_EQ(f.commits.handle_bytes(10 * kGiB), 10 * kGiB);
  CHECK_EQ(f.commits.generous_bytes(2 * kMiB), 2 * kMiB);
}

TEST(handles_that_stay_whole_end_at_a_share_of_what_is_held) {
  CHECK_EQ(Fixture(kGiB).commits.handle_bytes(10 * kGiB), policy::kLargestHandle);
  CHECK_EQ(Fixture(kGiB).commits.handle_bytes(6 * kMiB), 6 * kMiB);
  CHECK_EQ(Fixture(64 * kGiB).commits.handle_bytes(10 * kGiB), 64 * kGiB / policy::kHandlesHeld);
}

TEST(handles_are_small_near_the_end_of_a_device_and_while_much_is_stranded) {
  CHECK_EQ(Fixture(0, kGiB).commits.handle_bytes(kGiB), policy::kLeastHandle);
  Fixture limited(kGiB);
  limited.ledger.force_limit(3 * kGiB);
  CHECK_EQ(limited.commits.handle_bytes(kGiB), 2 * kGiB / policy::kHandlesLeft);
  Fixture f(kGiB);
  f.commits.set_stranded(2 * kGiB / policy::kShareStranded);  // twice what is bearable
  CHECK_EQ(f.commits.handle_bytes(kGiB), policy::kLargestHandle / 2);
  f.commits.set_stranded(kGiB);
  CHECK_EQ(f.commits.handle_bytes(kGiB), policy::kLeastHandle);
}

TEST(a_small_growth_takes_for_those_that_follow) {
  Fixture f(100 * kGiB);
  const std::size_t generous = 100 * kGiB / policy::kShareOfHandle / (2 * kMiB) * (2 * kMiB);
  CHECK_EQ(f.commits.generous_bytes(2 * kMiB), generous);
  CHECK_EQ(f.commits.generous_bytes(kGiB), kGiB);
  CHECK_EQ(Fixture(0).commits.generous_bytes(2 * kMiB), 2 * kMiB);
}

TEST(what_recurs_gets_new_memory_within_bounds) {
  for (const bool is_within : {true, false}) {
    Fixture f(0, SIZE_MAX, FakeMemory::Personality::host);
    f.ledger.confirm(nullptr, {100 * kMiB, 100 * kMiB}, nullptr, true);
    CHECK(f.ledger.try_hold(100 * kMiB) == Ledger::Hold::counted);
    // Half of the peak, as 64 MiB are more, is what may be held beyond it.
    const std::size_t missing = (is_within ? 50 : 51) * kMiB;
    int rests = 0;
    for (int turn = 0; turn < 4; ++turn) {
      for (int i = 0; i < policy::kLongTurn; ++i) {
        f.ledger.confirm(nullptr, {64, 64}, nullptr, true);
        f.ledger.uncharge(0, {64, 64}, nullptr);
      }
      rests += f.commits.rests_better_on_new_memory(8 * kMiB, missing) ? 1 : 0;
    }
    CHECK_EQ(rests, is_within ? 2 : 0);
  }
}
