// Makes fork() safe: in the child every allocator is whole, whatever other threads of the parent were doing, and what
// it holds counts for the child alone.
#pragma once

#include <mutex>

#include "backend/shared_ledger.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {

// The mutex under which allocators of the process are made. A forked child finds it free.
std::mutex& device_making();
// From now on the allocator takes part in every fork. It has to be immortal, and device_making() held. Throws
// std::bad_alloc.
void survive_fork(CachingAllocator& allocator);
// The same for the ledger that this process is in.
void survive_fork(SharedLedger& ledger);

}  // namespace mempool
