// Families whose memory is not the device's: segments of a source of their own, through the same core.
#include "core/fixtures.h"

using namespace fixtures;
using mempool::ArenaFamily;
using mempool::OutOfMemory;
using mempool::PhysicalMemory;
using mempool::StreamId;

namespace {

// A device with a family whose sources, one for each stream, stay in reach as long as the family's arenas live.
struct DeviceWithSource {
  explicit DeviceWithSource(std::size_t device_bytes = SIZE_MAX, std::size_t source_bytes = SIZE_MAX)
      : device(device_with_streams(device_bytes)) {
    family = &device.allocator->arenas().open("given", ArenaFamily::Kind::fixed, [this, source_bytes](StreamId) {
      auto made = std::make_unique<FakeMemory>(
          FakeMemory::Settings{.personality = FakeMemory::Personality::plain, .capacity_bytes = source_bytes});
      source = made.get();
      ++sources;
      return made;
    });
  }
  void* allocate(std::size_t bytes, StreamId stream = 0) const {
    return device.allocator->allocate_from(*family, bytes, stream);
  }
  std::size_t held() const { return device.allocator->ledger().held(); }

  FakeDevice device;
  ArenaFamily* family;
  FakeMemory* source = nullptr;  // of the stream that asked last for the first time
  int sources = 0;
};

bool is_refused(const DeviceWithSource& from, std::size_t bytes) {
  try {
    from.device.allocator->deallocate(from.allocate(bytes));
  } catch (const OutOfMemory&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(a_family_with_a_source_of_its_own_splits_coalesces_and_counts) {
  const DeviceWithSource with;
  for (std::size_t i = 0; i < 200; ++i) {
    with.device.allocator->deallocate(with.allocate(4 * kMiB + i * 20'000));
  }
  CHECK_EQ(with.source->calls(FakeMemory::Call::reserve_addresses), 1u);
  CHECK_EQ(with.held(), 20 * kMiB);
  std::vector<void*> small;
  for (int i = 0; i < 100; ++i) small.push_back(with.allocate(64));
  CHECK_EQ(with.source->calls(FakeMemory::Call::reserve_addresses), 1u);
  CHECK_EQ(with.device.allocated(), 6'400);
  CHECK_EQ(with.device.memory->committed_bytes(), 0u);
  void* const other = with.allocate(64, 7);
  CHECK_EQ(with.sources, 2);
  with.device.allocator->deallocate(other);
  for (void* const block : small) with.device.allocator->deallocate(block);
  with.device.allocator->arenas().close(*with.family);
  CHECK_EQ(with.held(), 0u);
  with.device.check_empty();
}

TEST(its_free_memory_is_not_lent_and_goes_back_for_its_own_shortage) {
  const DeviceWithSource with(64 * kMiB, 64 * kMiB);
  CachingAllocator& allocator = *with.device.allocator;
  allocator.deallocate(with.allocate(30 * kMiB));
  allocator.deallocate(allocator.allocate(30 * kMiB));
  allocator.trim(0);
  CHECK_EQ(with.source->committed_bytes(), 30 * kMiB);
  CHECK_EQ(with.device.memory->committed_bytes(), 0u);
  void* const own = allocator.allocate(60 * kMiB);
  CHECK_EQ(with.source->committed_bytes(), 30 * kMiB);
  void* const given = with.allocate(50 * kMiB);  // 30 and 50 are more than the source has
  CHECK_EQ(with.source->committed_bytes(), 50 * kMiB);
  allocator.deallocate(given);
  allocator.deallocate(own);
  allocator.arenas().close(*with.family);
  with.device.check_empty();
}

TEST(what_a_captured_graph_writes_to_does_not_go_back_before_the_end) {
  const DeviceWithSource with(SIZE_MAX, 64 * kMiB);
  void* const written = with.allocate(30 * kMiB);
  with.family->captured = true;
  with.device.allocator->deallocate(written);
  CHECK(is_refused(with, 50 * kMiB));
  CHECK_EQ(with.source->committed_bytes(), 30 * kMiB);
  with.family->captured = false;
  CHECK(!is_refused(with, 50 * kMiB));
  with.device.allocator->arenas().close(*with.family);
  with.device.check_empty();
}

TEST(the_devices_limit_and_its_free_memory_count_for_it_too) {
  const DeviceWithSource with;
  CachingAllocator& allocator = *with.device.allocator;
  allocator.set_limit(100 * kMiB);
  allocator.deallocate(allocator.allocate(80 * kMiB));
  void* const given = with.allocate(60 * kMiB);  // what the device has free goes back for it
  CHECK(with.held() <= 100 * kMiB);
  CHECK(is_refused(with, 60 * kMiB));
  CHECK_EQ(allocator.stats().ooms(), 1);
  allocator.deallocate(given);
  allocator.arenas().close(*with.family);
  with.device.check_empty();
}

TEST(a_family_that_lends_serves_the_default_ones_last_resort) {
  for (const std::size_t bytes : {std::size_t{64}, std::size_t{100'000}, 20 * kMiB}) {
    const DeviceWithSource with(bytes > kMiB ? 24 * kMiB : 4 * kMiB);
    CachingAllocator& allocator = *with.device.allocator;
    allocator.deallocate(with.allocate(30 * kMiB));
    std::vector<void*> own;
    try {
      while (true) own.push_back(allocator.allocate(bytes));
    } catch (const OutOfMemory&) {
    }
    const std::int64_t ooms = allocator.stats().ooms();
    with.family->lends = true;
    void* const lent = allocator.allocate(bytes);
    CHECK_EQ(with.source->committed_bytes(), 30 * kMiB);
    CHECK_EQ(allocator.stats().ooms(), ooms);
    bool refused = false;
    try {
      allocator.allocate(bytes, 7);
    } catch (const OutOfMemory&) {
      refused = true;
    }
    CHECK(refused);
    allocator.deallocate(lent);
    for (void* const block : own) allocator.deallocate(block);
    allocator.arenas().close(*with.family);
    with.device.check_empty();
  }
}

TEST(what_another_allocator_holds_is_asked_for_before_a_refusal) {
  static std::size_t outside = 0;
  static std::size_t kept = 0;  // of that, what it frees when it is asked
  outside = 40 * kMiB;
  kept = 0;
  const FakeDevice device = device_with_streams(256 * kMiB);
  CachingAllocator& allocator = *device.allocator;
  allocator.set_outside_hook([](CachingAllocator&) noexcept { return outside; });
  allocator.set_relief_hook([](CachingAllocator&) noexcept {
    outside -= std::exchange(kept, 0);
    return false;
  });
  CHECK_THROWS(mempool::ConfigError, allocator.set_limit(39 * kMiB));
  allocator.set_limit(100 * kMiB);
  bool refused = false;
  try {
    allocator.allocate(70 * kMiB);
  } catch (const OutOfMemory& error) {
    refused = true;
    CHECK_EQ(error.info().outside, 40 * kMiB);
    CHECK_EQ(error.info().held, 0u);
  }
  CHECK(refused);
  outside = 30 * kMiB;  // unseen
  void* const block = allocator.allocate(70 * kMiB);
  CHECK_EQ(allocator.outside_bytes(), 30 * kMiB);
  kept = 20 * kMiB;
  void* const more = allocator.allocate(20 * kMiB);
  CHECK_EQ(allocator.outside_bytes(), 10 * kMiB);
  CHECK_EQ(allocator.stats().reserved_bytes.all.current, static_cast<std::int64_t>(90 * kMiB));
  allocator.deallocate(more);
  kept = 10 * kMiB;
  allocator.set_limit(70 * kMiB);
  CHECK_THROWS(mempool::ConfigError, allocator.set_limit(69 * kMiB));
  allocator.deallocate(block);
  device.check_empty();
}

TEST(memory_that_another_thread_got_back_and_counted_serves_a_request_that_saw_none) {
  static std::size_t outside = 0;
  outside = 60 * kMiB;
  const FakeDevice device = device_with_streams(256 * kMiB);
  CachingAllocator& allocator = *device.allocator;
  allocator.set_outside_hook([](CachingAllocator&) noexcept { return outside; });
  allocator.set_relief_hook([](CachingAllocator& of) noexcept {
    outside = 0;  // as another thread's call would, between this one's try and its relief
    (void)of.outside_bytes();
    return false;
  });
  allocator.set_limit(100 * kMiB);
  void* const block = allocator.allocate(70 * kMiB);
  allocator.deallocate(block);
  outside = 60 * kMiB;
  (void)allocator.outside_bytes();
  allocator.trim(0);
  allocator.reserve(nullptr, 80 * kMiB);
  CHECK_EQ(allocator.stats().reserved_bytes.all.current, static_cast<std::int64_t>(80 * kMiB));
  allocator.reserve(nullptr, 0);
  allocator.trim(0);
  device.check_empty();
}

TEST(the_framework_is_asked_once_to_free_what_it_keeps) {
  static void* kept = nullptr;
  static int asked = 0;
  kept = nullptr;
  asked = 0;
  const FakeDevice device = device_with_streams(64 * kMiB);
  CachingAllocator& allocator = *device.allocator;
  allocator.set_relief_hook([](CachingAllocator& of) noexcept {
    ++asked;
    return kept != nullptr && of.deallocate(std::exchange(kept, nullptr));
  });
  kept = allocator.allocate(40 * kMiB);
  void* const block = allocator.allocate(50 * kMiB);
  CHECK_EQ(asked, 1);
  CHECK_EQ(allocator.stats().alloc_retries, 1);
  for (const std::size_t bytes : {60 * kMiB, 100 * kMiB}) {
    bool refused = false;
    try {
      allocator.allocate(bytes);
    } catch (const OutOfMemory&) {
      refused = true;
    }
    CHECK(refused);
    CHECK_EQ(asked, 2);  // not for what the device never has
  }
  allocator.deallocate(block);
  device.check_empty();
}
