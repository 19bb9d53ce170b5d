// The thread that calls decay() of all allocators of the process every few milliseconds and, where the process shares a
// ledger, tells its metrics there, and looks at what others use where a limit moves with that. Else it ends when they
// hold no memory any more.
#pragma once

#include "core/allocator/caching_allocator.h"

namespace mempool {

// Starts the thread unless it runs. The allocator has to be immortal. Does nothing when there is nothing to do, or
// when the system refuses a thread: then the next growth tries again.
void ensure_decay_thread(CachingAllocator& allocator) noexcept;
// The same for memory of the CUDA driver: in a forked child none can go back, and no thread is started.
void ensure_decay_thread_of_driver(CachingAllocator& allocator) noexcept;
// For a forked child, in which the thread does not run. Its next growth, pool or refusal starts it.
void forget_decay_thread() noexcept;

}  // namespace mempool
