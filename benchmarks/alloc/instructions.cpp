// Allocates and frees through torch's c10::Allocator with mempool under it, in no Python, so that callgrind can count
// what a cached pair costs:  instructions SIZE PAIRS [pool]
#include <c10/core/Allocator.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "backend/cpu_device.h"
#include "torch/cpu_allocator.h"

namespace {

// Keeps the compiler from seeing that a block is not used.
void use(const c10::DataPtr& block) { asm volatile("" ::"r"(block.get()) : "memory"); }

}  // namespace

int main(int count, char** words) {
  if (count < 3) return 2;
  const auto bytes = static_cast<std::size_t>(std::atoll(words[1]));
  const long pairs = std::atol(words[2]);
  mempool::Options options;
  options.huge_pages = false;
  options.decay_ms = mempool::kNeverDecays;  // no thread beside this one
  mempool::CachingAllocator& device = mempool::cpu_device(options);
  mempool::torch_cpu::enable(device);
  mempool::PoolEntry entry;
  if (count > 3 && std::strcmp(words[3], "pool") == 0) {
    device.pools().enter(entry, device.pools().open("pool", nullptr, false, std::size_t{1} << 30, mempool::kNoLimit));
  }
  c10::Allocator& allocator = *c10::GetAllocator(c10::DeviceType::CPU);
  for (long i = 0; i < pairs; ++i) use(allocator.allocate(bytes));
  device.pools().leave(entry);
  return 0;
}
