// What a refused request leaves behind: nothing.
#include <vector>

#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

constexpr std::size_t kCapacity = 4096 * kMiB;

std::vector<FakeMemory::Settings> devices() {
  std::vector<FakeMemory::Settings> out = fixtures::personalities();
  out.push_back({.personality = FakeMemory::Personality::device, .has_streams = true});
  out.push_back({.personality = FakeMemory::Personality::plain, .has_streams = true});
  for (FakeMemory::Settings& settings : out) {
    settings.accessible = false;
    settings.capacity_bytes = kCapacity;
  }
  return out;
}

int g_calls = 0;

void count_call(const char*, std::size_t, bool, PressureOutcome& outcome) noexcept {
  ++g_calls;
  ++outcome.calls;
}

}  // namespace

TEST(a_refused_request_holds_nothing_more) {
  for (const FakeMemory::Settings& settings : devices()) {
    for (const std::size_t limit : {kNoLimit, 1024 * kMiB}) {
      const FakeDevice device({.limit = limit}, settings);
      CachingAllocator& allocator = *device.allocator;
      void* const block = allocator.allocate(100 * kMiB);
      const DeviceStats before = allocator.stats();
      const std::size_t reserved = device.memory->reserved_bytes();
      const std::size_t all = std::min(limit, kCapacity);
      int refused = 0;
      for (const std::size_t bytes : {5 * all, all, all - 50 * kMiB}) {
        try {
          allocator.allocate(bytes);
          CHECK(false);
        } catch (const OutOfMemory& error) {
          CHECK(error.info().reason == (limit == kNoLimit ? OomReason::backend_refused : OomReason::device_limit));
        }
        const DeviceStats after = allocator.stats();
        CHECK_EQ(after.reserved_bytes.all.current, before.reserved_bytes.all.current);
        CHECK_EQ(after.reserved_bytes.all.peak, before.reserved_bytes.all.peak);
        CHECK_EQ(after.ooms(), ++refused);
        CHECK_EQ(device.memory->committed_bytes(), allocator.ledger().held());
        CHECK_EQ(device.memory->reserved_bytes(), reserved);
        CHECK_EQ(allocator.check_invariants(), "");
      }
      allocator.deallocate(block);
      device.check_empty();
    }
  }
}

// Of handles that stay whole a large request takes many, one after the other; any of them may be refused.
TEST(a_growth_that_is_refused_half_way_goes_back) {
  for (std::uint64_t nth = 1; nth < 14; ++nth) {
    const FakeDevice device({}, {.personality = FakeMemory::Personality::device, .accessible = false});
    CachingAllocator& allocator = *device.allocator;
    void* const block = allocator.allocate(100 * kMiB);
    const std::size_t held = allocator.ledger().held();
    const std::uint64_t commits = device.memory->calls(FakeMemory::Call::commit);
    device.memory->fail_call(nth);
    std::vector<void*> blocks;
    try {
      blocks.push_back(allocator.allocate(1500 * kMiB));  // tried once more, and had then
    } catch (const OutOfMemory&) {
      CHECK_EQ(allocator.ledger().held(), held);
    }
    CHECK(device.memory->calls(FakeMemory::Call::commit) - commits <= 2 * 12 + 1);
    CHECK_EQ(device.memory->committed_bytes(), allocator.ledger().held());
    CHECK_EQ(allocator.check_invariants(), "");
    for (void* const each : blocks) allocator.deallocate(each);
    allocator.deallocate(block);
    device.check_empty();
  }
}

TEST(a_refusal_takes_all_that_is_left_once_at_most) {
  const FakeDevice device({}, {.personality = FakeMemory::Personality::device,
                               .capacity_bytes = kCapacity,
                               .accessible = false,
                               .has_streams = true});
  CachingAllocator& allocator = *device.allocator;
  void* const block = allocator.allocate(100 * kMiB);
  const auto commits = [&] { return device.memory->calls(FakeMemory::Call::commit); };
  const std::uint64_t before = commits();
  CHECK_THROWS(OutOfMemory, allocator.allocate(kCapacity - 50 * kMiB));
  const std::uint64_t once = commits() - before;
  CHECK(once * (16 * kMiB) <= kCapacity + 32 * (16 * kMiB));  // each of the least size that a handle has near the end
  CHECK_THROWS(OutOfMemory, allocator.allocate(kCapacity + 1));
  CHECK_EQ(commits() - before, once);  // what can never be is not tried
  allocator.deallocate(block);
  device.check_empty();
}

TEST(what_can_never_be_empties_no_cache_and_runs_the_callbacks_once) {
  for (const std::size_t limit : {kNoLimit, 64 * kMiB}) {
    const FakeDevice device({.limit = limit}, {.capacity_bytes = 128 * kMiB, .accessible = false});
    CachingAllocator& allocator = *device.allocator;
    for (int i = 0; i < 3; ++i) allocator.deallocate(allocator.allocate(8 * kMiB));
    allocator.deallocate(allocator.allocate(100));
    const std::size_t held = allocator.ledger().held();
    const std::uint64_t calls = device.memory->fallible_calls();
    Hooks hooks;
    hooks.pressure = count_call;
    g_calls = 0;
    set_hooks(&hooks);
    CHECK_THROWS(OutOfMemory, allocator.allocate(200 * kMiB));
    set_hooks(nullptr);
    CHECK_EQ(g_calls, 1);
    CHECK_EQ(allocator.ledger().held(), held);
    CHECK_EQ(device.memory->fallible_calls(), calls);
    CHECK_EQ(allocator.stats().pressure_calls, 1);
    device.check_empty();
  }
}

namespace {
CachingAllocator* g_raised = nullptr;
void raise_limit(const char*, std::size_t, bool, PressureOutcome& outcome) noexcept {
  ++outcome.calls;
  g_raised->set_limit(kNoLimit);
}
}  // namespace

TEST(a_callback_that_raises_the_limit_is_heard) {
  const FakeDevice device({.limit = 64 * kMiB}, {.accessible = false});
  Hooks hooks;
  hooks.pressure = raise_limit;
  g_raised = device.allocator.get();
  set_hooks(&hooks);
  void* const block = device.allocator->allocate(200 * kMiB);
  set_hooks(nullptr);
  device.allocator->deallocate(block);
  device.check_empty();
}

// ---- closed pools: no thread allocates from them any more, also one that still has a handle
// ---------------------------

TEST(a_closed_pool_holds_nothing_once_its_last_block_is_gone) {
  for (FakeMemory::Settings settings : fixtures::personalities()) {
    for (const bool has_streams : {false, true}) {
      settings.has_streams = has_streams;
      const FakeDevice device({}, settings);
      CachingAllocator& allocator = *device.allocator;
      Account* const pool = allocator.pools().open("weights", nullptr, true, kNoLimit, kNoLimit);
      Account* const below = allocator.pools().open("below", pool, false, kNoLimit, kNoLimit);
      Account* const apart = allocator.pools().open("apart", pool, true, kNoLimit, kNoLimit);
      std::vector<void*> blocks;
      for (Account* const each : {pool, below, apart}) {
        fixtures::set_current_pool(allocator, each);
        for (const std::size_t bytes : {std::size_t{100}, 200000 + std::size_t{0}, 3 * kMiB}) {
          blocks.push_back(allocator.allocate(bytes));
        }
        allocator.deallocate(allocator.allocate(8 * kMiB));
      }
      fixtures::set_current_pool(allocator, nullptr);
      if (has_streams) {
        for (void* const block : blocks) allocator.add_use(block, 7);
        device.memory->work(7);
      }
      allocator.pools().close(*pool);
      CHECK(allocator.pools().held_bytes(*pool) > 0);
      for (void* const block : blocks) allocator.deallocate(block);
      device.memory->finish(7);
      allocator.trim(kNoLimit);  // collects
      CHECK_EQ(allocator.pools().held_bytes(*pool), 0u);
      CHECK_EQ(allocator.pools().held_bytes(*apart), 0u);
      CHECK_EQ(allocator.ledger().held(), 0u);
      CHECK_EQ(allocator.accounts().read(*pool).name, "weights");
      for (Account* const each : {apart, below, pool}) allocator.pools().drop(*each);
      device.check_empty();
    }
  }
}

TEST(a_pool_that_is_closed_empty_or_asleep_gives_all_back) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("weights", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  void* const block = allocator.allocate(3 * kMiB);
  fixtures::set_current_pool(allocator, nullptr);
  allocator.sleep_pool(*pool, true);
  allocator.pools().close(*pool);
  allocator.deallocate(block);
  CHECK(!allocator.pool_asleep(*pool));
  CHECK_EQ(device.memory->reserved_bytes(), 0u);
  allocator.pools().drop(*pool);

  Account* const empty = allocator.pools().open("empty", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, empty);
  allocator.deallocate(allocator.allocate(3 * kMiB));
  fixtures::set_current_pool(allocator, nullptr);
  CHECK(allocator.ledger().held() > 0);
  allocator.pools().close(*empty);
  CHECK_EQ(allocator.ledger().held(), 0u);
  allocator.pools().drop(*empty);
  device.check_empty();
}

TEST(the_message_and_the_fields_of_a_refusal) {
  const FakeDevice device({.limit = 64 * kMiB});
  Account* const pool = device.allocator->pools().open("requests \"a\"", nullptr, false, 4096, kNoLimit);
  fixtures::set_current_pool(*device.allocator, pool);
  void* const block = device.allocator->allocate(4000);
  try {
    device.allocator->allocate(100);
    CHECK(false);
  } catch (const OutOfMemory& error) {
    const OomInfo& info = error.info();
    CHECK_EQ(std::string(to_string(info.reason)), "pool_limit");
    CHECK_EQ(info.pool, "requests \"a\"");
    CHECK_EQ(info.device, "fake");
    CHECK_EQ(info.requested, 100u);
    CHECK_EQ(info.allocated, 4096u);
    CHECK_EQ(info.limit, 4096u);
    CHECK_EQ(info.held, 2 * kMiB);
    CHECK(info.largest_free > 0);
    const std::string what = error.what();
    CHECK(what.find("pool=\"requests \\\"a\\\"\"]") != std::string::npos);
    CHECK(what.find("requested=100 allocated=4096 limit=4096") != std::string::npos);
  }
  fixtures::set_current_pool(*device.allocator, nullptr);
  try {
    device.allocator->allocate(100 * kMiB);
    CHECK(false);
  } catch (const OutOfMemory& error) {
    CHECK_EQ(error.info().pool, "default");
    CHECK_EQ(error.info().allocated, 4096u);
    CHECK_EQ(error.info().limit, 64 * kMiB);
    CHECK_EQ(std::string(to_string(error.info().reason)), "device_limit");
  }
  CHECK_EQ(device.allocator->stats().ooms(), 2);
  CHECK_EQ(device.allocator->accounts().read(*pool).ooms, 1);
  device.allocator->deallocate(block);
  device.allocator->pools().drop(*pool);
  device.check_empty();
}

TEST(a_refused_allocation_leaves_no_trace_in_any_figure) {
  const FakeDevice device({.limit = 8 * kMiB});
  Account* const pool = device.allocator->pools().open("p", nullptr, false, kNoLimit, kNoLimit);
  for (Account* where : {static_cast<Account*>(nullptr), pool}) {
    fixtures::set_current_pool(*device.allocator, where);
    CHECK_THROWS(OutOfMemory, device.allocator->allocate(100 * kMiB));
  }
  fixtures::set_current_pool(*device.allocator, nullptr);
  const DeviceStats stats = device.allocator->stats();
  CHECK_EQ(stats.blocks.all.bytes.peak, 0);
  CHECK_EQ(stats.blocks.all.count.allocated, 0);
  CHECK_EQ(device.allocator->accounts().read(*pool).blocks.bytes.peak, 0);
  CHECK_EQ(device.allocator->accounts().read(*pool).blocks.bytes.freed, 0);
  device.allocator->pools().drop(*pool);
  device.check_empty();
}
