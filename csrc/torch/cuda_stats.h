// Figures of mempool as torch has them.
#pragma once

#include <c10/core/Allocator.h>

#include "core/accounts/stats.h"

namespace mempool::torch_cuda {

inline c10::CachingAllocator::Stat to_torch(const Stat& stat) {
  c10::CachingAllocator::Stat out;
  out.current = stat.current;
  out.peak = stat.peak;
  out.allocated = stat.allocated;
  out.freed = stat.freed;
  return out;
}

inline c10::CachingAllocator::StatArray to_torch(const ByPool<Stat>& stats) {
  return {to_torch(stats.all), to_torch(stats.small), to_torch(stats.large)};
}

inline c10::CachingAllocator::StatArray to_torch(const ByPool<BlockStats>& stats, Stat BlockStats::*member) {
  return {to_torch(stats.all.*member), to_torch(stats.small.*member), to_torch(stats.large.*member)};
}

}  // namespace mempool::torch_cuda
