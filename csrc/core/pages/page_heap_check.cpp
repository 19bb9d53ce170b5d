// The deep walk over a PageHeap that tests and debug builds use. Apart from the heap so that the heap stays readable.
#include <string>

#include "common/align.h"
#include "core/pages/page_heap.h"
#include "core/pages/page_map.h"

namespace mempool {
namespace {

std::string at(const char* what, const Span& span) {
  return std::string(what) + " at span [" + std::to_string(span.start) + ", +" + std::to_string(span.bytes) + ")";
}

struct Sums {
  std::size_t free_large = 0;
  std::size_t free_shared = 0;
  std::size_t whole = 0;
  std::size_t holes = 0;
  std::size_t backed = 0;
  std::size_t stale = 0;  // spans
};

std::string check_span(const Span& span, const Segment& segment, std::size_t granule, Sums& sums) {
  const Span* const previous = span.previous;
  if (span.segment != &segment) return at("foreign segment", span);
  if (span.bytes == 0 || span.bytes % kPageBytes != 0) return at("odd size", span);
  if (previous == nullptr ? span.start != segment.start : span.start != previous->end() || previous->next != &span) {
    return at("gap or broken link", span);
  }
  const bool is_hole = !span.is_backed();
  if (is_hole && (span.start % granule != 0 || span.bytes % granule != 0)) return at("hole off granules", span);
  if (previous != nullptr && previous->state == span.state) {
    if (span.state == Span::State::hole) return at("two holes", span);
    if (span.state == Span::State::free && previous->shared == span.shared) return at("two free spans", span);
  }
  const bool known = PageMap::instance().find(span.address()) == &span;
  if (known != (span.state == Span::State::block || span.state == Span::State::slab)) return at("page map", span);
  // Where a chunk is one granule, a free granule is never left to the shared ranges.
  if (granule >= kMediumMax * 2 && span.shared && span.state == Span::State::free &&
      align_up(span.start, granule) < align_down(span.end(), granule)) {
    return at("stranded granule", span);
  }
  sums.backed += is_hole ? 0 : span.bytes;
  if (span.state == Span::State::hole) sums.holes += span.bytes;
  sums.stale += span.state == Span::State::stale ? 1 : 0;
  if (span.state == Span::State::free && !span.shared) {
    const std::uintptr_t low = align_up(span.start, granule);
    const std::uintptr_t high = align_down(span.end(), granule);
    sums.whole += low < high ? high - low : 0;
  }
  if (span.state == Span::State::free) (span.shared ? sums.free_shared : sums.free_large) += span.bytes;
  return {};
}

}  // namespace

std::string PageHeap::check_invariants() const {
  Sums sums;
  for (const Segment* segment = first_segment(); segment != nullptr; segment = segment->next) {
    const std::size_t backed_before = sums.backed;
    const Span* last = nullptr;
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      if (std::string broken = check_span(*span, *segment, space_.granule, sums); !broken.empty()) return broken;
      last = span;
    }
    if (last == nullptr || last->end() != segment->start + segment->bytes) return "segment is not covered";
    if (sums.backed - backed_before != segment->backed_bytes) return "backed bytes of a segment";
  }
  const FreeRanges& free = space_.free();
  if (sums.backed != backed_bytes()) return "backed bytes";
  if (sums.free_large != free.large().bytes()) return "bytes of the large index";
  if (sums.free_shared != free.shared().bytes()) return "bytes of the shared index";
  if (sums.whole != free.whole().bytes()) return "bytes of the index of whole granules";
  if (sums.stale != space_.stale.count()) return "stale spans";
  if (sums.holes != free.holes().bytes()) return "bytes of the hole index";
  if (static_cast<std::size_t>(free.stats().bytes.all.current) != sums.free_large + sums.free_shared) {
    return "free range statistics";
  }
  std::size_t in_handles = 0;
  std::uintptr_t end = 0;
  for (const auto& [start, handle] : space_.handles.all()) {
    if (start != reinterpret_cast<std::uintptr_t>(handle.address) || start < end) return "overlapping handles";
    end = start + handle.bytes;
    in_handles += handle.bytes;
  }
  const std::size_t given_up = sleeper_.sum_of_handles();
  if (given_up != sleeper_.bytes() || (given_up > 0 && !asleep())) return "bytes of sleeping handles";
  return in_handles + given_up == sums.backed ? std::string{} : "bytes of the handles";
}

}  // namespace mempool
