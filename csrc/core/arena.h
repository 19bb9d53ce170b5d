// Segments and free lists under one mutex. The device's default arena serves every pool that is not isolated.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "common/spin_lock.h"
#include "core/page_heap.h"
#include "core/slab_heap.h"

namespace mempool {

class Arena {
 public:
  Arena(std::string name_in, PhysicalMemory& memory, Ledger& ledger, const Options& options, bool thread_cached_in)
      : name(std::move(name_in)), thread_cached(thread_cached_in), pages(memory, ledger, options, this), slabs(pages) {}

  const std::string name;

  // Whether blocks of this arena may wait in thread caches. Isolated arenas keep all of theirs, so that closing one
  // finds everything in its place.
  const bool thread_cached;

  AdaptiveMutex mutex;   // guards what follows
  bool retired = false;  // its pool is gone: deleted as soon as nothing is backed
  PageHeap pages;
  SlabHeap slabs;

  std::string check_invariants() const {
    std::string broken = pages.check_invariants();
    return broken.empty() ? slabs.check_invariants() : broken;
  }
};

}  // namespace mempool
