// Pages of one arena: segments, spans, growth, and giving memory back. Not thread-safe: the arena's mutex guards it.
//
// Invariants:
//   - the spans of a segment cover it without a gap; two neighbours are never both holes, nor both free with the same
//     `shared`;
//   - a span that is not a hole is backed in full; holes begin and end on granules;
//   - a stale span is mapped and belongs to nobody: it becomes a hole once its moment has passed;
//   - shared spans come from whole granules; a granule that becomes free in it goes back to the large ranges;
//   - asleep, every span is as it was and may be freed; what lies under it is listed in sleeping_ instead of handles_;
//   - the page map knows the first page of each block and each page of each slab, and nothing else.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/options.h"
#include "core/accounts/ledger.h"
#include "core/accounts/stats.h"
#include "core/pages/free_index.h"
#include "core/pages/recurrence.h"
#include "core/pages/span.h"
#include "core/pages/stitch_plan.h"
#include "core/physical_memory.h"
#include "core/streams/stream_clock.h"

namespace mempool {

// Why pages could not be had.
enum class Refusal : std::uint8_t { none, limit, backend, metadata, asleep };

class PageHeap;

// What a heap may do for a range that it does not have.
struct Supply {
  bool may_grow = false;                 // else it comes from what is free already, or not at all
  std::span<PageHeap* const> lenders{};  // other heaps, locked by the caller, whose free memory may move here
  bool may_commit = true;                // ask the backend for new memory; else only move what is free
  bool may_wait = false;                 // for work on other streams that still uses it; else only what is idle moves
};

struct Gathering {
  std::size_t moved_bytes = 0;
  std::size_t moves = 0;
  std::size_t regained_bytes = 0;  // that the largest free range has more than before
};

class PageHeap {
 public:
  // `clock`: of the stream whose blocks these are. `movable`: else no memory ever gets another address, goes to other
  // heaps or to the backend, until let_go().
  PageHeap(PhysicalMemory& memory, Ledger& ledger, const Options& options, Arena* arena, StreamClock& clock,
           bool movable);
  PageHeap(const PageHeap&) = delete;
  PageHeap& operator=(const PageHeap&) = delete;
  // Precondition: no block and no slab is left. Memory that the backend will not take back stays with it.
  ~PageHeap();

  // A span in state `block` of exactly `bytes` (a multiple of kPageBytes), known to the page map. nullptr, and nothing
  // changed, when refused. Precondition: awake.
  Span* allocate(std::size_t bytes, const Supply& supply, Refusal& why) noexcept;
  // As allocate(), at exactly that place. nullptr: not all of it is free.
  Span* allocate_at(std::uintptr_t start, std::size_t bytes) noexcept;
  // Turns a block into a slab: all its pages become known to the page map.
  void make_slab(Span* span, Slab* slab) noexcept;
  // Precondition: a block or an empty slab of this heap.
  void free(Span* span) noexcept;

  // Moves free memory together until the largest free range holds all whole granules that are free, or as many as can
  // be moved.
  Gathering gather() noexcept;

  // Gives up all memory and keeps every address: an access faults until it wakes. In steps, so that contents are copied
  // without the arena's lock; from the first to the last of them blocks are freed but not made.
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
  bool sleep(std::unique_ptr<Backup> backup) noexcept;
  void stay_awake() noexcept;
  bool start_waking(Refusal& why) noexcept;
  Backup* backup() noexcept { return backup_.get(); }
  void wake() noexcept;
  void sleep_on() noexcept;
  bool asleep() const noexcept { return rest_ != Rest::awake; }
  bool sound_asleep() const noexcept { return rest_ == Rest::asleep; }
  // Precondition: no block is left. Nothing is asleep any more.
  void forget_sleep() noexcept;

  // Gives free memory back to the backend, at least `bytes` if that much is free in whole handles, the largest ranges
  // first. Returns the bytes given back. `may_wait`: for work that still uses it; else what is in use stays.
  std::size_t release(std::size_t bytes, bool may_wait) noexcept;
  // Nobody writes to what is free any more: the memory of a heap that is not movable may go back.
  void let_go() noexcept { is_let_go_ = true; }
  bool open_again() noexcept;
  // The handles that a block or a slab lies in. They stay where they are as long as it is there, unless the heap falls
  // asleep. May throw std::bad_alloc.
  std::vector<Handle> handles_of(const Span& span) const;
  // Blocks that keep it awake: others know their handles.
  void count_pinned(int change) noexcept { pinned_ += change; }
  bool is_pinned() const noexcept { return pinned_ > 0; }
  // So that it becomes known when what is free now is idle. Without an effect when nothing was freed since.
  void mark() noexcept { clock_.mark(latest_free_); }
  StreamClock& clock() noexcept { return clock_; }

  // Whether any free granule can move by itself.
  bool handles_can_cut() const noexcept { return capabilities_.can_cut; }
  std::size_t largest_free() const noexcept;
  std::size_t backed_bytes() const noexcept { return backed_bytes_; }  // asleep or not
  std::size_t held_bytes() const noexcept { return backed_bytes() - sleeping_bytes_; }
  // Bytes of the handles that are not entirely free, what waits in thread caches included; and the most of them since
  // the last call.
  std::size_t need() const noexcept { return held_bytes() - (movable_ || is_let_go_ ? whole_free_bytes() : 0); }
  std::size_t take_need() noexcept { return std::max(std::exchange(need_, need()), need()); }
  std::size_t whole_free_bytes() const noexcept { return asleep() ? 0 : whole_.bytes(); }
  const Segment* first_segment() const noexcept { return segments_; }
  FreeRangeStats& free_ranges() noexcept { return free_ranges_; }

  // Walks everything and returns the first broken invariant, or an empty string.
  std::string check_invariants() const;

 private:
  // Records that one step on a span needs at most: the two ends of a cut.
  static constexpr std::size_t kRecordsForCut = 2;
  // And one operation: the ends of two cuts, and a new segment's hole.
  static constexpr std::size_t kRecordsForOperation = 8;

  struct Growth {
    Span* hole = nullptr;
    std::uintptr_t start = 0;
    std::size_t bytes = 0;
    std::size_t consumed = 0;  // bytes of whole granules in the range, those that are in their place already included
    std::size_t leftover = 0;  // bytes behind the range that are less than a granule
  };

  FreeIndex& index_of(const Span& span) noexcept { return span.shared ? shared_ : large_; }
  void index(Span* span) noexcept;
  // At the end of each operation that changes a free range.
  void settle_ranges() noexcept { free_ranges_.apply(std::exchange(range_changes_, {})); }
  void count_ranges(int change) noexcept {
    counting_ranges_ != nullptr ? void(*counting_ranges_ += change) : ledger_.count_ranges(change);
  }
  void count_commit(std::size_t bytes) noexcept;
  void unindex(Span* span) noexcept;

  bool reserve_records(std::size_t spans) noexcept;
  Span* take_record() noexcept;
  void return_record(Span* span) noexcept;

  // Cuts [start, start + bytes) out of `span`, which must not be indexed. What lies before and behind become spans of
  // the same state; they are returned to the index if free. Needs two records.
  Span* isolate(Span* span, std::uintptr_t start, std::size_t bytes) noexcept;
  Span* cut_front(Span* span, std::size_t bytes) noexcept;
  Span* merge(Span* span) noexcept;
  static bool mergeable(const Span* a, const Span* b) noexcept;

  Span* allocate_large(std::size_t bytes, bool aligned, const Supply& supply, Refusal& why) noexcept;
  Span* allocate_medium(std::size_t bytes, const Supply& supply, Refusal& why) noexcept;
  bool take_chunk(const Supply& supply, Refusal& why) noexcept;
  void return_granules(Span* span) noexcept;
  Span* find_free(std::size_t bytes, bool aligned) const noexcept;

  bool grow(std::size_t bytes, bool aligned, const Supply& supply, Refusal& why) noexcept;
  bool grow_by_segment(std::size_t bytes, bool aligned, const Supply& supply, Refusal& why) noexcept;
  bool take_segment(std::size_t bytes, Refusal& why) noexcept;
  bool can_stitch() const noexcept { return capabilities_.can_move && stitching_; }
  bool rests_better_on_new_memory(std::size_t bytes, const Growth& growth) noexcept;
  Growth plan_growth(std::size_t bytes, bool aligned) const noexcept;
  Growth growth_in(Span* hole, std::size_t bytes) const noexcept;
  // A range that is being made. It is accounted for in one step, once all of it can be used.
  struct Filling {
    Span* hole = nullptr;
    std::uintptr_t start = 0;
    std::uintptr_t end = 0;  // what is mapped so far
    struct Piece {
      PageHeap* source;  // nullptr: new memory
      std::uintptr_t from;
      std::uintptr_t to;
      std::size_t bytes;
      Span* near;
      StreamClock::Moment moment;
    };
    std::vector<Piece> pieces;
  };
  bool fill_with_more(Growth growth) noexcept;
  bool fill(Growth growth, bool moves, const Supply& supply, Refusal& why) noexcept;
  bool commit_piece(Filling& filling, std::size_t bytes, Refusal& why) noexcept;
  bool map_piece(Filling& filling, std::size_t bytes, Refusal& why) noexcept;
  std::size_t available() const noexcept;
  std::size_t handle_bytes(std::size_t wanted) const noexcept;
  void give_back_new(Filling& filling) noexcept;
  bool commit_rest(Filling& filling, std::size_t bytes, Refusal& why) noexcept;
  bool move_piece(const FreePiece& piece, Filling& filling) noexcept;
  bool move_handle(PageHeap& source, std::uintptr_t from, Span* near, Filling& filling) noexcept;
  bool finish(Filling& filling, Refusal& why) noexcept;
  void undo(Filling& filling) noexcept;
  Span* fill_hole(Span* hole, std::uintptr_t start, std::size_t bytes, StreamClock::Moment moment) noexcept;

  std::vector<FreePiece> plan(Growth& growth, bool own, const Supply& supply);
  std::size_t add_whole_handles(const Span* not_this, const Span* nor_this, const PageHeap& receiver, bool may_wait,
                                std::vector<FreePiece>& out);
  bool make_one_handle(const FreePiece& piece) noexcept;
  // Whether memory that was free since `moment` may go to `receiver` now, or after a wait.
  bool may_lend(StreamClock::Moment moment, const PageHeap& receiver, bool may_wait) noexcept;
  void leave(Span* span, std::uintptr_t start, std::size_t bytes) noexcept;
  // Ends what moves left behind, as far as work on the device allows.
  void sweep(bool may_wait) noexcept;

  // Whether the ledger counts the heap's memory: its ranges, and which part is shared.
  bool is_counted() const noexcept { return rest_ != Rest::asleep; }
  bool give_up_all(std::size_t shared_bytes) noexcept;
  bool take_all() noexcept;
  int backed_ranges() const noexcept;
  Span* free_span_at(std::uintptr_t address, Span* near) const noexcept;
  bool add_segment(std::size_t bytes, Refusal& why) noexcept;
  void remove_segment(Segment* segment) noexcept;
  static bool is_empty(const Segment& segment) noexcept {
    return segment.first->state == Span::State::hole && segment.first->next == nullptr;
  }

  std::size_t release_from(Span* span, std::size_t bytes) noexcept;
  Span* cut_hole(Span* span, std::uintptr_t start, std::size_t bytes, Span::State state) noexcept;
  bool cut_handle_at(std::uintptr_t address) noexcept;
  bool join_with_previous(std::map<std::uintptr_t, Handle>::iterator record, const Segment& segment) noexcept;
  Span* make_hole(Span* span, std::uintptr_t start, std::size_t bytes) noexcept;

  PhysicalMemory& memory_;
  Ledger& ledger_;
  const PhysicalMemory::Capabilities capabilities_;
  const std::size_t granule_;
  const std::size_t chunk_;  // what medium blocks and slabs share, one piece; a multiple of the granule
  const std::size_t segment_bytes_;
  Arena* const arena_;
  StreamClock& clock_;
  const bool movable_;
  bool is_let_go_ = false;
  StreamClock::Moment latest_free_ = StreamClock::kAlways;
  const bool stitching_;

  FreeIndex large_{0, 0};
  FreeIndex shared_{0, 0};
  FreeIndex holes_{0, 0};
  FreeIndex whole_;  // the spans of large_ that hold whole granules, by the bytes of these
  FreeRangeStats free_ranges_;
  FreeRangeStats::Changes range_changes_;  // of the operation that is under way
  int* counting_ranges_ = nullptr;         // where backed ranges are counted while several heaps change in one step
  std::size_t still_to_share_ = 0;         // of the chunk that is being made: what no commit has counted as shared yet
  Recurrence recurrence_;
  Segment* segments_ = nullptr;
  std::map<std::uintptr_t, Handle> handles_;  // by address
  std::map<std::uintptr_t, Span*> stale_;     // by address
  int pinned_ = 0;                            // blocks
  std::size_t stranded_ = 0;                  // free bytes that could not move, as of the last plan
  std::size_t shared_bytes_ = 0;              // of chunks

  enum class Rest : std::uint8_t { awake, falling_asleep, asleep, waking } rest_ = Rest::awake;
  std::map<std::uintptr_t, Handle> sleeping_;  // handles that were given up, where they were
  std::size_t backed_bytes_ = 0;
  std::size_t need_ = 0;  // the highest need() since take_need()
  std::size_t sleeping_bytes_ = 0;
  std::unique_ptr<Backup> backup_;

  std::vector<std::unique_ptr<Span[]>> record_chunks_;
  Span* free_records_ = nullptr;
  std::size_t free_record_count_ = 0;
};

}  // namespace mempool
