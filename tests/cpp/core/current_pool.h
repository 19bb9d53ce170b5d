// Sets the calling thread's pool for new blocks, for tests that need no stack of pools.
#pragma once

#include <map>
#include <memory>

#include "core/allocator/caching_allocator.h"

namespace fixtures {

// nullptr: the root.
inline void set_current_pool(mempool::CachingAllocator& allocator, mempool::Account* pool) {
  static thread_local std::map<mempool::CachingAllocator*, std::unique_ptr<mempool::PoolEntry>> entries;
  std::unique_ptr<mempool::PoolEntry>& entry = entries[&allocator];
  if (entry != nullptr) allocator.pools().leave(*entry);
  entry = std::make_unique<mempool::PoolEntry>();
  if (pool != nullptr) allocator.pools().enter(*entry, pool);
}

}  // namespace fixtures
