// Makes the allocator of pinned memory torch's allocator of pinned host memory (its HostAllocator for CUDA).
#pragma once

#include "core/allocator/caching_allocator.h"

namespace mempool::torch_pinned {

// From now on new pinned tensors come from `device`. Idempotent; any thread may call it; live blocks keep their
// deleters. Graphs and their pools stay with the allocator that they began with. Throws PoolStateError, with nothing
// changed, the first time while a graph is being captured.
void enable(CachingAllocator& device);
// From now on new pinned tensors come from the allocator that was in place before. Live blocks stay valid.
void disable() noexcept;
bool is_enabled() noexcept;

}  // namespace mempool::torch_pinned
