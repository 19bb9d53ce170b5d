// Soft limits, and callbacks before an allocation fails.
#include "core/allocator/caching_allocator.h"
#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {
CachingAllocator* g_pressed = nullptr;
std::vector<void*> g_droppable;
std::string g_pool;
std::size_t g_needed = 0;
bool g_failing = false;

void pressure(const char* pool, std::size_t needed, bool failing, PressureOutcome& outcome) noexcept {
  g_pool = pool;
  g_needed = needed;
  g_failing = failing;
  ++outcome.calls;
  g_pressed->deallocate(g_pressed->allocate(100));  // a callback may allocate
  for (void* block : g_droppable) g_pressed->deallocate(block);
  g_droppable.clear();
}

struct Installed {
  explicit Installed(CachingAllocator& allocator) {
    g_pressed = &allocator;
    set_hooks(&hooks);
  }
  Installed(const Installed&) = delete;
  Installed& operator=(const Installed&) = delete;
  ~Installed() { set_hooks(nullptr); }
  Hooks hooks{.pressure = pressure};
};
}  // namespace

TEST(a_pressure_callback_saves_an_allocation) {
  const FakeDevice device({.limit = 8 * kMiB});
  const Installed installed(*device.allocator);
  g_droppable = {device.allocator->allocate(4 * kMiB)};
  void* const block = device.allocator->allocate(6 * kMiB);
  CHECK_EQ(g_pool, "default");
  CHECK(g_failing);
  CHECK_EQ(device.allocator->stats().pressure_calls, 1);
  CHECK_EQ(device.allocator->stats().ooms(), 0);
  CHECK_THROWS(OutOfMemory, device.allocator->allocate(6 * kMiB));
  CHECK_EQ(device.allocator->stats().pressure_calls, 2);
  device.allocator->deallocate(block);
  device.check_empty();
}

TEST(a_pool_at_its_limit_presses_with_what_is_missing) {
  const FakeDevice device;
  const Installed installed(*device.allocator);
  Account* const pool = device.allocator->pools().open("p", nullptr, false, 4 * kMiB, kNoLimit);
  fixtures::set_current_pool(*device.allocator, pool);
  g_droppable = {device.allocator->allocate(3 * kMiB)};
  void* const block = device.allocator->allocate(2 * kMiB);
  CHECK_EQ(g_pool, "p");
  CHECK_EQ(g_needed, kMiB);
  CHECK_EQ(device.allocator->accounts().read(*pool).pressure_calls, 1);
  fixtures::set_current_pool(*device.allocator, nullptr);
  device.allocator->deallocate(block);
  device.allocator->pools().drop(*pool);
  device.check_empty();
}

TEST(a_soft_limit_trims_and_then_presses_without_failing) {
  const FakeDevice device({.soft_limit = 8 * kMiB});
  const Installed installed(*device.allocator);
  g_pool.clear();
  device.allocator->deallocate(device.allocator->allocate(6 * kMiB));
  void* const first = device.allocator->allocate(7 * kMiB);
  CHECK_EQ(g_pool, "");  // trimming was enough
  CHECK_EQ(device.allocator->ledger().held(), 8 * kMiB);
  g_droppable = {device.allocator->allocate(4 * kMiB)};
  CHECK_EQ(g_pool, "default");
  CHECK(!g_failing);
  CHECK_EQ(g_needed, 4 * kMiB);
  device.allocator->deallocate(first);
  for (void* block : g_droppable) device.allocator->deallocate(block);
  g_droppable.clear();
  device.check_empty();
}

TEST(the_soft_limit_of_the_device_speaks_at_each_crossing_and_trims_at_once_when_set) {
  const FakeDevice device({.soft_limit = 16 * kMiB});
  const Installed installed(*device.allocator);
  for (int round = 1; round <= 3; ++round) {
    void* const first = device.allocator->allocate(static_cast<std::size_t>(round) * 20 * kMiB);
    CHECK_EQ(device.allocator->stats().pressure_calls, round);
    void* const second = device.allocator->allocate(20 * kMiB);  // still above: no second call
    CHECK_EQ(device.allocator->stats().pressure_calls, round);
    device.allocator->deallocate(first);
    device.allocator->deallocate(second);
  }
  device.allocator->set_soft_limit(10 * kMiB);
  CHECK(device.allocator->ledger().held() <= 10 * kMiB);
  device.check_empty();
}
