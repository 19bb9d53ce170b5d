// Pages of one arena: blocks of whole pages, growth, and giving memory back. Not thread-safe: the arena's mutex guards
// it.
//
// PageHeap decides, and its parts act: SegmentList (spans), HandleMap (memory), StaleRanges (what moves left
// behind), together a PageSpace; Filling makes a range longer; CommitPolicy says how much is taken; Sleeper lets go of
// all memory and takes it again.
//
// Invariants, beside those of the parts:
//   - a span that is not a hole and not stale is backed in full, unless the heap is asleep;
//   - shared spans come from whole granules; a granule that becomes free in it goes back to the large ranges;
//   - asleep, every span is as it was and may be freed;
//   - the page map knows the first page of each block and each page of each slab, and nothing else.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/options.h"
#include "core/accounts/ledger.h"
#include "core/pages/commit_policy.h"
#include "core/pages/filling.h"
#include "core/pages/growth_plan.h"
#include "core/pages/move_plan.h"
#include "core/pages/page_space.h"
#include "core/pages/refusal.h"
#include "core/pages/sleeper.h"
#include "core/pages/span.h"
#include "core/pages/supply.h"
#include "core/physical_memory.h"
#include "core/streams/stream_clock.h"

namespace mempool {

struct Gathering {
  std::size_t moved_bytes = 0;
  std::size_t moves = 0;
  std::size_t regained_bytes = 0;  // that the largest free range has more than before
};

class PageHeap {
 public:
  // `reserved`: of its family. `clock`: of the stream whose blocks these are. `movable`: else no memory ever gets
  // another address, goes to other heaps or to the backend, until let_go().
  PageHeap(PhysicalMemory& memory, Ledger& ledger, Ledger::Reserved& reserved, const Options& options, Arena* arena,
           StreamClock& clock, bool movable);
  PageHeap(const PageHeap&) = delete;
  PageHeap& operator=(const PageHeap&) = delete;
  // No block and no slab is left. Memory that the backend will not take back stays with it.
  ~PageHeap();

  // A span in state `block` of exactly `bytes` (a multiple of kPageBytes), known to the page map. nullptr, and nothing
  // changed, when refused. The heap must be awake.
  Span* allocate(std::size_t bytes, const Supply& supply, Refusal& why) noexcept;
  // As allocate(), at exactly that place. nullptr: not all of it is free.
  Span* allocate_at(std::uintptr_t start, std::size_t bytes) noexcept;
  // Turns a block into a slab: all its pages become known to the page map.
  void make_slab(Span* span, Slab* slab) noexcept;
  // A block or an empty slab of this heap.
  void free(Span* span) noexcept;

  // Moves free memory together until the largest free range holds all whole granules that are free, or as many as can
  // be moved.
  Gathering gather() noexcept;

  // Gives up all memory and keeps every address: an access faults until it wakes. From fall_asleep until it is awake,
  // blocks can be freed but not allocated.
  //   fall_asleep   lists what is in use, or says why it cannot now
  //   sleep         false: the backend kept some memory, and the heap is awake (what `backup` has not may be lost).
  //   stay_awake    instead of sleep
  //   start_waking  takes memory at the same addresses. False: refused; the heap is asleep and whole.
  //   wake, or sleep_on where the contents could not be restored
  struct UsedRange {
    void* address;
    std::size_t bytes;
  };
  enum class Unsleeping : std::uint8_t {
    none,     // it falls asleep
    at_rest,  // it sleeps already, or is on its way somewhere
    pinned,   // others know its handles
    in_use,   // work may use it still, and `obstacle` says why that is not known
    mapped,   // the backend keeps memory mapped where it was before it moved
  };
  // May throw std::bad_alloc, with nothing changed.
  Unsleeping fall_asleep(std::vector<UsedRange>& used, StreamClock::Obstacle& obstacle);
  bool sleep(std::unique_ptr<Backup> backup) noexcept { return sleeper_.sleep(footprint(), std::move(backup)); }
  void stay_awake() noexcept { sleeper_.stay_awake(); }
  bool start_waking(Refusal& why) noexcept { return sleeper_.start_waking(footprint(), why); }
  Backup* backup() noexcept { return sleeper_.backup(); }
  void wake() noexcept { sleeper_.wake(); }
  void sleep_on() noexcept { sleeper_.sleep_on(footprint()); }
  bool asleep() const noexcept { return !sleeper_.is_awake(); }
  bool sound_asleep() const noexcept { return sleeper_.is_asleep(); }
  // No block is left. Nothing is asleep any more.
  void forget_sleep() noexcept;
  // Blocks that keep it awake: others know their handles.
  void count_pinned(int change) noexcept { sleeper_.pin(change); }
  bool is_pinned() const noexcept { return sleeper_.is_pinned(); }

  // Gives free memory back to the backend, at least `bytes` if that much is free in whole handles, the largest ranges
  // first, and never more than `most`. Returns the bytes given back. `may_wait`: for work that still uses it; else what
  // is in use stays.
  std::size_t release(std::size_t bytes, bool may_wait, std::size_t most = SIZE_MAX) noexcept;
  // Takes new memory from the backend, `bytes` in whole granules or a part of that, which is free then. Returns where
  // it is; {0, 0}: refused. The heap must be awake.
  struct Range {
    std::uintptr_t start = 0;
    std::size_t bytes = 0;
  };
  Range extend(std::size_t bytes, Refusal& why) noexcept;
  // All that is free of a heap that is not movable. Expects that no captured graph writes there.
  std::size_t release_unmovable() noexcept;
  // No captured graph writes to free memory any more: a heap that is not movable may give memory back, too.
  void let_go() noexcept { is_let_go_ = true; }
  bool open_again() noexcept { return space_.handles.open_all(); }
  // The handles that a block or a slab lies in. They stay where they are as long as it is there, unless the heap falls
  // asleep. May throw std::bad_alloc.
  std::vector<Handle> handles_of(const Span& span) const { return space_.handles.overlapping(span.start, span.end()); }
  // So that it becomes known when what is free now is idle. Without an effect when nothing was freed since.
  void mark() noexcept { space_.mark(); }
  StreamClock& clock() noexcept { return space_.clock; }

  // Whether any free granule can move by itself.
  bool handles_can_cut() const noexcept { return space_.capabilities.can_cut; }
  std::size_t largest_free() const noexcept { return space_.free().largest(); }
  std::size_t backed_bytes() const noexcept { return space_.segments.backed_bytes(); }  // asleep or not
  std::size_t held_bytes() const noexcept { return backed_bytes() - sleeper_.bytes(); }
  // Bytes of the handles that are not entirely free, what waits in thread caches included; and the most of them since
  // the last call.
  std::size_t need() const noexcept { return held_bytes() - (may_release() ? whole_free_bytes() : 0); }
  std::size_t take_need() noexcept { return std::max(std::exchange(need_, need()), need()); }
  std::size_t whole_free_bytes() const noexcept { return asleep() ? 0 : space_.free().whole().bytes(); }
  const Segment* first_segment() const noexcept { return space_.segments.first(); }
  FreeRangeStats& free_ranges() noexcept { return space_.segments.free().stats(); }

  // Walks everything and returns the first broken invariant, or an empty string.
  std::string check_invariants() const;

 private:
  // What a block is sought with.
  struct Request {
    std::size_t bytes;
    bool is_chunk;  // whole granules that will be shared; else a block
    const Supply& supply;
    Refusal& why;
    std::size_t bytes_to_share;  // bytes of the chunk that are not counted as shared yet
  };

  Span* allocate_medium(std::size_t bytes, const Supply& supply, Refusal& why) noexcept;
  Span* allocate_large(Request& request) noexcept;
  bool is_worth_saving(const Span& span, std::size_t chunk) const noexcept;
  bool take_chunk(std::size_t bytes, const Supply& supply, Refusal& why) noexcept;
  void return_granules(Span* span) noexcept;

  std::size_t give_back(std::size_t bytes, bool may_wait, bool may_release, std::size_t most) noexcept;
  bool grow(Request& request) noexcept;
  bool grow_by_segment(Request& request) noexcept;
  bool take_segment(std::size_t bytes, Request& request) noexcept;
  Range extend_by_segment(std::size_t bytes, Refusal& why) noexcept;
  Range extend_hole(std::size_t bytes, Refusal& why) noexcept;
  void make_way(std::size_t bytes) noexcept;
  Growth plan_growth_of(const Request& request) const noexcept;
  bool rests_better_on_new_memory(const Request& request, const Growth& growth) noexcept;
  bool fill(const Growth& growth, bool moves, Request& request) noexcept;
  enum class Generosity : std::uint8_t { none, part, whole };  // none: nothing has changed
  Generosity fill_generously(Growth growth, Request& request) noexcept;
  // May throw std::bad_alloc.
  MovePlan plan_moves_under(const Growth& growth, bool own, const Supply& supply);

  bool may_release() const noexcept { return space_.is_movable || is_let_go_; }
  Sleeper::Footprint footprint() const noexcept { return {space_.segments.backed_ranges(), shared_bytes_}; }

  Ledger& ledger_;
  const std::size_t chunk_;  // the least that medium blocks and slabs share, one piece; a multiple of the granule
  PageSpace space_;
  CommitPolicy commit_policy_;
  Sleeper sleeper_;
  bool is_let_go_ = false;
  std::size_t shared_bytes_ = 0;  // of chunks
  std::size_t need_ = 0;          // the highest need() since take_need()
};

}  // namespace mempool
