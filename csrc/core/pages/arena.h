// An arena is the page heap and the slabs of one stream under one mutex; a family is the arenas of one purpose.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/spin_lock.h"
#include "core/pages/page_heap.h"
#include "core/pages/slab_heap.h"
#include "core/streams/stream_clock.h"

namespace mempool {

class ArenaFamily;
class CachingAllocator;

class Arena {
 public:
  // `memory`: the device's, for a family that has none of its own. Throws std::bad_alloc.
  Arena(ArenaFamily& family_in, StreamClock& clock, PhysicalMemory& memory, Ledger& ledger, const Options& options);

  ArenaFamily& family;
  StreamId stream() const noexcept { return stream_; }
  PhysicalMemory& memory() const noexcept { return memory_; }

 private:
  const std::unique_ptr<PhysicalMemory> own_memory_;  // nullptr: the device's serves; outlives the pages
  PhysicalMemory& memory_;

 public:
  CountedMutex mutex;  // guards what follows
  PageHeap pages;
  SlabHeap slabs;

  std::string check_invariants() const {
    std::string broken = pages.check_invariants();
    return broken.empty() ? slabs.check_invariants() : broken;
  }

 private:
  const StreamId stream_;
};

// The arenas of one purpose, one for each stream that has asked: a block that is freed serves its own stream again at
// once. The device's default family serves every pool that is not isolated.
class ArenaFamily {
 public:
  enum class Kind : std::uint8_t {
    shared,    // the device's default
    isolated,  // one pool's own
    fixed,     // captured graphs write to its addresses whenever they are replayed, freed or not: no memory moves in it
  };
  // Makes the memory for the arena of a stream. Throws std::bad_alloc.
  using MemoryFactory = std::function<std::unique_ptr<PhysicalMemory>(StreamId)>;

  ArenaFamily(CachingAllocator& owner_in, std::string name_in, Kind kind_in, bool is_thread_cached_in,
              MemoryFactory make_memory_in = nullptr)
      : owner(owner_in),
        name(std::move(name_in)),
        kind(kind_in),
        is_thread_cached(is_thread_cached_in),
        make_memory_(std::move(make_memory_in)) {}
  ArenaFamily(const ArenaFamily&) = delete;
  ArenaFamily& operator=(const ArenaFamily&) = delete;

  CachingAllocator& owner;
  const std::string name;
  const Kind kind;
  // Whether blocks may wait in thread caches. Only the default family's may, so that closing another finds everything
  // in its place.
  const bool is_thread_cached;

  // Else the memory of its arenas is the device's, which families lend each other.
  bool has_own_memory() const noexcept { return make_memory_ != nullptr; }
  // For one more arena: nullptr, the device's serves. Throws std::bad_alloc.
  std::unique_ptr<PhysicalMemory> make_memory(StreamId stream) const {
    return has_own_memory() ? make_memory_(stream) : nullptr;
  }

  // The arena that was made first, which lives as long as the family: found without a lock. nullptr before.
  std::atomic<Arena*> first{nullptr};

  std::atomic<bool> asleep{false};  // or on its way there: no arena gives blocks
  // Of a fixed family: a captured graph writes to what is free in it, so that none of it goes back before it is closed.
  std::atomic<bool> captured{false};
  std::atomic<bool> lends{false};  // what is free serves the default family's requests before they are refused

  // Bytes that its arenas go on holding, free or not: memory beyond them alone goes to other families or back to the
  // backend, unless the family itself needs it in another form.
  std::atomic<std::size_t> floor{0};

  // Bytes that its arenas hold. Readers share it, since the figures outlive the family. Before the family has an arena,
  // it may be replaced by an earlier family's, whose figures go on then.
  std::shared_ptr<Ledger::Reserved> reserved = std::make_shared<Ledger::Reserved>();

  // By which the framework above knows the family; {0, 0}: it does not. Set before it has an arena.
  std::pair<std::uint64_t, std::uint64_t> framework_id{};

  // Guarded by the allocator's list of arenas.
  std::vector<Arena*> arenas;
  bool retired = false;  // closed: each arena is destroyed as soon as it holds no memory

 private:
  const MemoryFactory make_memory_;
};

inline Arena::Arena(ArenaFamily& family_in, StreamClock& clock, PhysicalMemory& memory, Ledger& ledger,
                    const Options& options)
    : family(family_in),
      own_memory_(family_in.make_memory(clock.stream())),
      memory_(own_memory_ != nullptr ? *own_memory_ : memory),
      pages(memory_, ledger, *family_in.reserved, options, this, clock, family_in.kind != ArenaFamily::Kind::fixed),
      slabs(pages),
      stream_(clock.stream()) {}

}  // namespace mempool
