// The adapter between torch's CPU tensors and the allocator. Needs libc10 alone of torch.
#pragma once

#include "core/allocator/caching_allocator.h"

namespace mempool::torch_cpu {

// From now on new CPU tensors come from `device`. Idempotent; from any thread; live tensors keep their own deleters.
void enable(CachingAllocator& device);
// New tensors come from the allocator that was in place before. Blocks that are live stay valid.
void disable() noexcept;
bool is_enabled() noexcept;

}  // namespace mempool::torch_cpu
