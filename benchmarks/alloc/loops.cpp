// The loops of the allocation benchmark: torch's CPU allocator, called as torch calls it.
#include <c10/core/Allocator.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// Keeps the compiler from seeing that a block is not used.
void use(const c10::DataPtr& block) { asm volatile("" ::"r"(block.get()) : "memory"); }

}  // namespace

extern "C" {

// One block at a time: allocated, freed.
void allocate_pairs(std::size_t bytes, std::int64_t pairs) {
  c10::Allocator& allocator = *c10::GetAllocator(c10::DeviceType::CPU);
  for (std::int64_t i = 0; i < pairs; ++i) use(allocator.allocate(bytes));
}

// `live` blocks allocated, then all freed in the same order, until `pairs` were made.
void allocate_batches(std::size_t bytes, std::int64_t pairs, std::int64_t live) {
  c10::Allocator& allocator = *c10::GetAllocator(c10::DeviceType::CPU);
  std::vector<c10::DataPtr> blocks(static_cast<std::size_t>(live));
  for (std::int64_t done = 0; done < pairs; done += live) {
    for (c10::DataPtr& block : blocks) use(block = allocator.allocate(bytes));
    for (c10::DataPtr& block : blocks) block.clear();
  }
}

// As many turns of a loop that writes to the thread's own stack alone.
void share_nothing(std::int64_t turns) {
  std::uint64_t words[64] = {};
  std::uint64_t number = 1;
  for (std::int64_t i = 0; i < turns; ++i) {
    for (int step = 0; step < 8; ++step) words[(number >> 58) & 63] += number = number * 6364136223846793005 + 1;
    asm volatile("" ::"r"(words) : "memory");
  }
}
}
