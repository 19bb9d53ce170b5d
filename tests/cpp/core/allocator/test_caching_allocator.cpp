// Blocks of one device: their addresses and sizes, where free memory is used again, limits, and what goes back.
#include <cstdint>
#include <cstring>

#include "core/allocator/caching_allocator.h"
#include "core/allocator/found_block.h"
#include "core/current_pool.h"
#include "core/fixtures.h"
#include "core/pages/size_classes.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

TEST(zero_bytes_are_null_and_free) {
  const FakeDevice device;
  CHECK(device.allocator->allocate(0) == nullptr);
  CHECK(device.allocator->deallocate(nullptr));
  CHECK_EQ(device.memory->calls(FakeMemory::Call::reserve_addresses), 0u);
}

TEST(blocks_are_aligned_writable_and_counted) {
  const FakeDevice device;
  std::vector<void*> blocks;
  std::int64_t expected = 0;
  for (std::size_t bytes = 1; bytes < 8 * kMiB; bytes = bytes * 5 / 3 + 1) {
    void* const block = device.allocator->allocate(bytes);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(block) % kMinAlignment, 0u);
    CHECK_EQ(block_bytes(block), round_block(bytes));
    std::memset(block, 1, bytes);
    expected += static_cast<std::int64_t>(round_block(bytes));
    blocks.push_back(block);
  }
  CHECK_EQ(device.allocated(), expected);
  CHECK_EQ(device.allocator->check_invariants(), "");
  for (void* block : blocks) CHECK(device.allocator->deallocate(block));
  device.check_empty();
}

TEST(what_is_not_a_block_is_refused) {
  const FakeDevice device;
  int local = 0;
  CHECK(!device.allocator->deallocate(&local));
  CHECK(!device.allocator->deallocate(reinterpret_cast<void*>(0x7fffffffffff)));
  CHECK(!device.allocator->deallocate(reinterpret_cast<void*>(UINTPTR_MAX - 63)));
}

TEST(a_size_that_overflows_is_out_of_memory) {
  const FakeDevice device;
  for (const std::size_t bytes : {SIZE_MAX, SIZE_MAX - 4096, std::size_t{1} << 63, (std::size_t{1} << 47) + 1}) {
    try {
      device.allocator->allocate(bytes);
      CHECK(false);
    } catch (const OutOfMemory& error) {
      CHECK_EQ(std::string(to_string(error.info().reason)), "size_overflow");
      CHECK_EQ(error.info().requested, bytes);
    }
  }
  device.check_empty();
}

TEST(large_blocks_are_packed_densely_and_memory_is_used_again) {
  const FakeDevice device;
  std::vector<void*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(device.allocator->allocate(kMiB + 4096));
  // Eight blocks of 1 MiB and a page: a fifth granule, not eight.
  CHECK_EQ(device.allocator->ledger().held(), 10 * kMiB);
  for (void* block : blocks) device.allocator->deallocate(block);
  const auto commits = device.memory->calls(FakeMemory::Call::commit);
  void* const whole = device.allocator->allocate(8 * (kMiB + 4096));  // they coalesced
  CHECK_EQ(device.memory->calls(FakeMemory::Call::commit), commits);
  device.allocator->deallocate(whole);
  device.check_empty();
}

TEST(a_cached_pair_calls_nobody) {
  const FakeDevice device;
  for (const std::size_t bytes : {std::size_t{100}, std::size_t{20000}, 300 * kPageBytes / 2, 3 * kMiB}) {
    device.allocator->deallocate(device.allocator->allocate(bytes));
    const auto calls = device.memory->fallible_calls();
    for (int i = 0; i < 100; ++i) device.allocator->deallocate(device.allocator->allocate(bytes));
    CHECK_EQ(device.memory->fallible_calls(), calls);
  }
  device.check_empty();
}

TEST(granules_of_small_blocks_serve_large_ones_when_free) {
  const FakeDevice device;
  std::vector<void*> blocks;
  for (int i = 0; i < 3000; ++i) blocks.push_back(device.allocator->allocate(8192));
  const std::size_t held = device.allocator->ledger().held();
  for (void* block : blocks) device.allocator->deallocate(block);
  device.allocator->trim(SIZE_MAX);  // recalls the thread cache, gives nothing back
  void* const large = device.allocator->allocate(20 * kMiB);
  CHECK_EQ(device.allocator->ledger().held(), held);
  device.allocator->deallocate(large);
  device.check_empty();
}

TEST(trim_stops_at_its_target) {
  const FakeDevice device;
  void* const kept = device.allocator->allocate(3 * kMiB);
  void* const freed = device.allocator->allocate(40 * kMiB);
  device.allocator->deallocate(freed);
  CHECK_EQ(device.allocator->ledger().held(), 44 * kMiB);
  CHECK_EQ(device.allocator->trim(20 * kMiB), 24 * kMiB);
  CHECK_EQ(device.allocator->ledger().held(), 20 * kMiB);
  CHECK_EQ(device.allocator->trim(0), 16 * kMiB);
  CHECK_EQ(device.allocator->ledger().held(), 4 * kMiB);
  device.allocator->deallocate(kept);
  device.check_empty();
}

TEST(whole_handles_go_back_where_they_cannot_be_cut) {
  const FakeDevice device({}, {.personality = FakeMemory::Personality::device});
  void* const first = device.allocator->allocate(40 * kMiB);
  void* const second = device.allocator->allocate(6 * kMiB);
  device.allocator->deallocate(first);
  CHECK_EQ(device.allocator->trim(44 * kMiB), 40 * kMiB);
  CHECK_EQ(device.allocator->check_invariants(), "");
  device.allocator->deallocate(second);
  device.check_empty();
}

TEST(the_device_limit_is_on_held_bytes_and_free_memory_is_given_up_first) {
  const FakeDevice device({.limit = 16 * kMiB, .stitch = false});
  void* const low = device.allocator->allocate(6 * kMiB);
  void* const middle = device.allocator->allocate(4 * kMiB);
  void* const high = device.allocator->allocate(6 * kMiB);
  CHECK_THROWS(OutOfMemory, device.allocator->allocate(64));
  device.allocator->deallocate(low);
  device.allocator->deallocate(high);
  // 12 MiB are free but not in one range: their granules are given back and asked for anew.
  void* const wide = device.allocator->allocate(12 * kMiB);
  CHECK_EQ(device.allocator->ledger().held(), 16 * kMiB);
  CHECK_EQ(device.allocator->stats().alloc_retries, 1);
  device.allocator->deallocate(wide);
  device.allocator->deallocate(middle);
  device.check_empty();
}

TEST(what_waits_in_a_cache_is_recalled_before_a_refusal) {
  const FakeDevice device({.limit = 2 * kMiB});
  std::vector<void*> blocks;
  for (int i = 0; i < 2; ++i) blocks.push_back(device.allocator->allocate(kMiB));
  for (void* block : blocks) device.allocator->deallocate(block);
  void* const other = device.allocator->allocate(kMiB + kPageBytes);
  CHECK(other != nullptr);
  device.allocator->deallocate(other);
  device.check_empty();
}

TEST(above_the_soft_limit_no_cache_keeps_medium_blocks) {
  Options options;
  options.soft_limit = 16 * kMiB;
  FakeDevice device(options);
  std::vector<void*> blocks;
  for (int i = 0; i < 120; ++i) blocks.push_back(device.allocator->allocate(kMiB));
  for (void* const block : blocks) device.allocator->deallocate(block);
  CHECK(device.allocator->ledger().held() <= 18 * kMiB);
  device.check_empty();
}

TEST(limits_below_what_is_in_use_are_refused) {
  const FakeDevice device;
  Account* const pool = device.allocator->pools().open("p", nullptr, false, kNoLimit, kNoLimit);
  fixtures::set_current_pool(*device.allocator, pool);
  void* const block = device.allocator->allocate(3 * kMiB);
  CHECK_THROWS(ConfigError, device.allocator->pools().set_limit(*pool, kMiB));
  CHECK_THROWS(ConfigError, device.allocator->set_limit(kMiB));
  device.allocator->pools().set_limit(*pool, 3 * kMiB);
  device.allocator->set_limit(4 * kMiB);
  CHECK_THROWS(OutOfMemory, device.allocator->allocate(1));
  fixtures::set_current_pool(*device.allocator, nullptr);
  device.allocator->deallocate(block);
  device.allocator->set_limit(kNoLimit);
  device.allocator->pools().drop(*pool);
  device.check_empty();
}

TEST(an_address_inside_a_block_or_freed_before_is_refused) {
  const FakeDevice device;
  for (const std::size_t bytes : {std::size_t{100}, std::size_t{100000}, 3 * kMiB}) {
    auto* const block = static_cast<char*>(device.allocator->allocate(bytes));
    CHECK(!device.allocator->deallocate(block + 64));
    CHECK(device.allocator->deallocate(block));
    CHECK(!device.allocator->deallocate(block));
  }
  device.check_empty();
}

TEST(small_blocks_take_the_ends_of_large_ranges_before_they_fail) {
  const FakeDevice device({.limit = 64 * kMiB});
  std::vector<void*> blocks;
  for (int i = 0; i < 42; ++i) blocks.push_back(device.allocator->allocate(3 * kMiB / 2));
  std::vector<void*> kept;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (i % 2 == 0) {
      kept.push_back(blocks[i]);
    } else {
      device.allocator->deallocate(blocks[i]);
    }
  }
  // No whole granule is free, and the limit allows no other.
  device.allocator->trim(0);
  for (const std::size_t bytes : {std::size_t{8192}, std::size_t{200000}, kMiB}) {
    kept.push_back(device.allocator->allocate(bytes));
    std::memset(kept.back(), 1, bytes);
  }
  CHECK_EQ(device.allocator->check_invariants(), "");
  for (void* block : kept) device.allocator->deallocate(block);
  device.check_empty();
}
