// An allocator over a FakeMemory that tests can inspect, and the settings that most tests go through.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/fake_memory.h"
#include "backend/host_memory.h"
#include "check.h"
#include "core/allocator/caching_allocator.h"
#include "core/allocator/found_block.h"

namespace fixtures {

using mempool::CachingAllocator;
using mempool::FakeMemory;
using mempool::Options;

inline constexpr std::size_t kMiB = std::size_t{1} << 20;

// An allocator over a fake backend that stays in reach.
struct FakeDevice {
  explicit FakeDevice(const Options& options = {}, const FakeMemory::Settings& settings = {}) {
    auto owned = std::make_unique<FakeMemory>(settings);
    memory = owned.get();
    allocator = std::make_unique<CachingAllocator>("fake", std::move(owned), options);
  }
  FakeMemory* memory = nullptr;
  std::unique_ptr<CachingAllocator> allocator;

  std::int64_t allocated() const { return allocator->stats().blocks.all.bytes.current; }
  // Nothing is live: every byte must be able to go back.
  void check_empty() const {
    CHECK_EQ(allocated(), 0);
    CHECK_EQ(allocator->check_invariants(), "");
    allocator->trim(0);
    CHECK_EQ(allocator->ledger().held(), 0u);
    CHECK_EQ(memory->committed_bytes(), 0u);
    CHECK_EQ(memory->reserved_bytes(), 0u);
    CHECK_EQ(memory->violation(), "");
  }
};

// One whose handles stay whole and whose work is done on streams, when a test says so.
inline FakeDevice device_with_streams(std::size_t capacity = SIZE_MAX, const Options& options = {}) {
  return FakeDevice(options,
                    {.personality = FakeMemory::Personality::device, .capacity_bytes = capacity, .has_streams = true});
}

// Blocks that were freed while other streams than their own use them.
inline std::int64_t waiting(const FakeDevice& device) { return device.allocator->stats().waiting.all.count.current; }

// A live block of stream 0 that stream 7 works with: freed now, it waits.
inline void* block_in_use(const FakeDevice& device, std::size_t bytes) {
  void* const block = device.allocator->allocate(bytes);
  CHECK(device.allocator->add_use(block, 7));
  device.memory->work(7);
  return block;
}

// One that was freed.
inline void* waiting_block(const FakeDevice& device, std::size_t bytes) {
  void* const block = block_in_use(device, bytes);
  CHECK(device.allocator->deallocate(block));
  return block;
}

// Whether other streams than its own use the live block: then its free is not over when deallocate() returns.
inline bool is_used_elsewhere(const void* address) {
  const mempool::FoundBlock block = mempool::FoundBlock::at(address);
  return block.is_found() && (block.tag->account & mempool::kUsedElsewhere) != 0;
}

// A turn of a workload whose two halves disagree about the layout. `small_pairs`: what else it allocates and frees.
inline void disagreeing_turn(CachingAllocator& allocator, int small_pairs) {
  std::vector<void*> blocks;
  for (int i = 0; i < 12; ++i) blocks.push_back(allocator.allocate(2 * kMiB + 64));
  for (std::size_t i = 0; i < blocks.size(); i += 2) allocator.deallocate(blocks[i]);
  void* const wide = allocator.allocate(12 * kMiB);
  for (std::size_t i = 1; i < blocks.size(); i += 2) allocator.deallocate(blocks[i]);
  allocator.deallocate(wide);
  for (int i = 0; i < small_pairs; ++i) allocator.deallocate(allocator.allocate(64));
}

inline std::vector<FakeMemory::Settings> personalities() {
  using Personality = FakeMemory::Personality;
  return {{.personality = Personality::host},
          {.personality = Personality::device},
          {.personality = Personality::host, .granule_bytes = std::size_t{64} << 10}};
}

}  // namespace fixtures
