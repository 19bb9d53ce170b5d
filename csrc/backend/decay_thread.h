// The clock of an allocator's decay: one detached thread that ends when nothing is held any more.
#pragma once

#include "core/allocator/caching_allocator.h"

namespace mempool {

// Starts the thread unless it runs. Precondition: the allocator is immortal. Does nothing when its memory never decays,
// or when the system has no thread to give: then the next growth tries again.
void ensure_decay_thread(CachingAllocator& allocator) noexcept;
// In a forked child: the thread is not there. It starts again with the next growth.
void forget_decay_thread() noexcept;

}  // namespace mempool
