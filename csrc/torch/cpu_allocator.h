// Makes the CPU's allocator torch's allocator for CPU tensors. Of torch it needs libc10 alone.
#pragma once

#include "core/allocator/caching_allocator.h"

namespace mempool::torch_cpu {

// From now on new CPU tensors come from `device`. Idempotent; any thread may call it; live tensors keep their deleters.
void enable(CachingAllocator& device);
// From now on new CPU tensors come from the allocator that was in place before. Live blocks stay valid.
void disable() noexcept;
bool is_enabled() noexcept;

}  // namespace mempool::torch_cpu
