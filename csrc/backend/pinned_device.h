// The allocator of pinned host memory, one in a process.
#pragma once

#include "backend/pinned_memory.h"
#include "backend/process_ledger.h"
#include "common/options.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {

// Made at the first call, with `options`; never destroyed. Survives fork: in a forked child that cannot use CUDA, live
// blocks stay readable, and nothing is taken or given back. Later calls ignore `options`. No driver is asked before the
// first block.
CachingAllocator& pinned_device(const Options& options);
// The allocator of pinned memory, or nullptr before it was made.
CachingAllocator* pinned_device_if_made() noexcept;
// Its backend, once it was made.
PinnedMemory& pinned_memory() noexcept;
// What the allocator knows a stream of a CUDA device by. `stream`: the driver's handle.
StreamId pinned_stream(int ordinal, std::uint64_t stream) noexcept;
// Shares what pinned memory holds with other processes, if its allocator was made: see share().
void share_pinned_device(SharedLimit limit);

}  // namespace mempool
