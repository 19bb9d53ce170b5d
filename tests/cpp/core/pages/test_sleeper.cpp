// A heap falls asleep and wakes, step by step, and each step may fail.
#include "backend/fake_memory.h"
#include "check.h"
#include "core/pages/sleeper.h"

using mempool::AccountRegistry;
using mempool::FakeMemory;
using mempool::HandleMap;
using mempool::Ledger;
using mempool::Refusal;
using mempool::Sleeper;

namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;
constexpr std::int64_t kBytes = 4 * kGranule;  // in two handles of two granules, half of them shared

struct Fixture {
  Fixture() {
    const auto base = reinterpret_cast<std::uintptr_t>(memory.reserve_addresses(16 * kGranule));
    for (const std::size_t at : {0, 2}) {
      CHECK(ledger.try_hold(2 * kGranule) == Ledger::Hold::counted);
      CHECK(handles.commit(base + at * kGranule, 2 * kGranule, why));
      ledger.count_commit(2 * kGranule, at == 0 ? 2 * kGranule : 0, reserved);
      CHECK(memory.open(reinterpret_cast<void*>(base + at * kGranule), 2 * kGranule));
    }
    ledger.count_ranges(1);
    addresses = handles.all();
  }
  // All figures of the heap, as they are when it is awake, or all zero.
  void check(bool is_held) {
    const mempool::DeviceStats stats = ledger.read_stats();
    CHECK_EQ(ledger.held(), is_held ? static_cast<std::size_t>(kBytes) : 0u);
    CHECK_EQ(memory.committed_bytes(), ledger.held());
    CHECK_EQ(stats.reserved_bytes.all.current, is_held ? kBytes : 0);
    CHECK_EQ(stats.reserved_bytes.small.current, is_held ? kBytes / 2 : 0);
    CHECK_EQ(reserved.all.current, stats.reserved_bytes.all.current);
    CHECK_EQ(reserved.small.current, stats.reserved_bytes.small.current);
    CHECK_EQ(stats.segments.all.current, is_held ? 1 : 0);
    CHECK_EQ(sleeper.bytes(), is_held ? 0u : static_cast<std::size_t>(kBytes));
    CHECK_EQ(sleeper.sum_of_handles(), sleeper.bytes());
    CHECK_EQ(handles.all().size(), is_held ? 2u : 0u);
    CHECK_EQ(memory.violation(), "");
  }
  bool fall_and_sleep() {
    sleeper.fall();
    return sleeper.sleep(footprint, memory.make_backup());
  }

  FakeMemory memory{{.personality = FakeMemory::Personality::device, .accessible = false}};
  AccountRegistry accounts;
  Ledger ledger{accounts};
  HandleMap handles{memory};
  Ledger::Reserved reserved;
  Sleeper sleeper{memory, handles, ledger, reserved};
  const Sleeper::Footprint footprint{1, kBytes / 2};
  HandleMap::Handles addresses;
  Refusal why = Refusal::none;
};

}  // namespace

TEST(a_heap_sleeps_without_memory_and_wakes_at_the_same_addresses) {
  Fixture f;
  CHECK(f.fall_and_sleep());
  CHECK(f.sleeper.is_asleep());
  CHECK(f.sleeper.backup() != nullptr);
  f.check(false);
  CHECK(f.sleeper.start_waking(f.footprint, f.why));
  CHECK(!f.sleeper.is_awake());
  f.check(true);
  f.sleeper.wake();
  CHECK(f.sleeper.is_awake());
  CHECK(f.sleeper.backup() == nullptr);
  for (const auto& [start, handle] : f.addresses) CHECK_EQ(f.handles.bytes_at(start), handle.bytes);
}

TEST(waking_that_is_refused_leaves_it_asleep_and_whole) {
  Fixture f;
  CHECK(!f.sleeper.start_waking(f.footprint, f.why));  // it is awake
  CHECK(f.fall_and_sleep());
  f.ledger.force_limit(kGranule);
  CHECK(!f.sleeper.start_waking(f.footprint, f.why));
  CHECK(f.why == Refusal::limit);
  f.check(false);
  f.ledger.force_limit(mempool::kNoLimit);
  for (const std::uint64_t call : {1, 2, 3, 4}) {  // commit and open of either handle
    f.memory.fail_call(call);
    CHECK(!f.sleeper.start_waking(f.footprint, f.why));
    CHECK(f.why == Refusal::backend);
    CHECK(f.sleeper.is_asleep());
    f.check(false);
  }
  CHECK(f.sleeper.start_waking(f.footprint, f.why));
  f.sleeper.sleep_on(f.footprint);  // its contents could not be restored
  CHECK(f.sleeper.is_asleep());
  CHECK(f.sleeper.backup() != nullptr);
  f.check(false);
}

TEST(memory_that_the_backend_keeps_keeps_the_heap_awake) {
  Fixture f;
  f.memory.fail_call(2);
  CHECK(!f.fall_and_sleep());
  CHECK(f.sleeper.is_awake());
  f.check(true);
}

TEST(what_is_forgotten_needs_no_memory_to_wake) {
  Fixture f;
  f.sleeper.pin(1);
  CHECK(f.sleeper.is_pinned());
  f.sleeper.pin(-1);
  CHECK(!f.sleeper.is_pinned());
  f.sleeper.fall();
  CHECK(!f.sleeper.is_awake());
  f.sleeper.stay_awake();
  CHECK(f.sleeper.first_given_up() == nullptr);
  CHECK(f.fall_and_sleep());
  std::size_t forgotten = 0;
  while (const mempool::Handle* const handle = f.sleeper.first_given_up()) {
    forgotten += handle->bytes;
    f.sleeper.forget_first();
  }
  CHECK_EQ(forgotten, static_cast<std::size_t>(kBytes));
  f.sleeper.forget_sleep();
  CHECK(f.sleeper.is_awake());
  CHECK_EQ(f.sleeper.bytes(), 0u);
}
