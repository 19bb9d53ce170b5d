// The CPU's allocator, one in a process.
#pragma once

#include "common/options.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {

// Made at the first call, with `options`; never destroyed. Survives fork. Later calls ignore `options`.
CachingAllocator& cpu_device(const Options& options);
// The CPU's allocator, or nullptr before it was made.
CachingAllocator* cpu_device_if_made() noexcept;

}  // namespace mempool
