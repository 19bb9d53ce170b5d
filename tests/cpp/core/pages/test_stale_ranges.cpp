// Old addresses of moved handles stay mapped until the work that uses them has finished.
#include <vector>

#include "backend/fake_memory.h"
#include "check.h"
#include "core/pages/handle_map.h"
#include "core/pages/stale_ranges.h"

using mempool::FakeMemory;
using mempool::HandleMap;
using mempool::Refusal;
using mempool::Span;
using mempool::StaleRanges;
using mempool::StreamClock;

namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;
constexpr int kRanges = 4;

// Four granules in a row whose memory has moved away, each with a moment of its own.
struct Fixture {
  FakeMemory memory{{.personality = FakeMemory::Personality::device, .accessible = false, .has_streams = true}};
  StreamClock clock{memory.stream_events(), 1};
  HandleMap handles{memory};
  StaleRanges stale{memory, clock};
  std::vector<Span> spans{kRanges};
  std::vector<Span*> unmapped;

  explicit Fixture(std::initializer_list<int> busy) {
    const auto base = reinterpret_cast<std::uintptr_t>(memory.reserve_addresses(2 * kRanges * kGranule));
    Refusal why = Refusal::none;
    for (std::size_t i = 0; i < kRanges; ++i) {
      const std::uintptr_t start = base + i * kGranule;
      CHECK(handles.commit(start, kGranule, why));
      CHECK(stale.reserve(start));
      CHECK(handles.move(start, start + kRanges * kGranule));
      handles.adopt(handles, start, start + kRanges * kGranule);
      spans[i].start = start;
      spans[i].bytes = kGranule;
      spans[i].state = Span::State::stale;
      if (i > 0) {
        spans[i].previous = &spans[i - 1];
        spans[i - 1].next = &spans[i];
      }
    }
    for (const int i : busy) spans[static_cast<std::size_t>(i)].moment = clock.now();
    if (busy.size() > 0) memory.work(1);
    for (Span& span : spans) stale.set(&span);
  }
  void unmap_idle(bool may_wait) {
    clock.mark(clock.now());
    clock.poll();
    stale.unmap_idle(may_wait, [this](Span* span) { unmapped.push_back(span); });
  }
  std::uint64_t unmaps() const { return memory.calls(FakeMemory::Call::unmap); }
};

}  // namespace

TEST(idle_neighbours_are_unmapped_in_one_call) {
  Fixture f({});
  f.unmap_idle(false);
  CHECK(f.stale.empty());
  CHECK_EQ(f.unmaps(), 1u);
  CHECK_EQ(f.unmapped.size(), 4u);
  CHECK_EQ(f.memory.violation(), "");
}

TEST(what_work_may_still_use_stays_mapped_until_it_is_done_or_waited_for) {
  Fixture f({1});
  f.unmap_idle(false);
  CHECK_EQ(f.stale.count(), 1u);
  CHECK_EQ(f.unmaps(), 2u);
  CHECK(f.unmapped == (std::vector<Span*>{&f.spans[0], &f.spans[2], &f.spans[3]}));
  f.unmap_idle(true);
  CHECK(f.stale.empty());
  CHECK_EQ(f.memory.waits(), 1u);
  CHECK_EQ(f.memory.violation(), "");
}

TEST(what_the_backend_does_not_unmap_stays) {
  Fixture f({1});
  f.memory.fail_call(2);  // the first is the event's
  f.unmap_idle(false);
  CHECK_EQ(f.stale.count(), 2u);
  CHECK(f.unmapped == (std::vector<Span*>{&f.spans[2], &f.spans[3]}));
}

TEST(where_a_move_leaves_nothing_behind_there_is_nothing_to_reserve) {
  FakeMemory memory({.accessible = false});
  StreamClock clock(nullptr, 0);
  StaleRanges stale(memory, clock);
  CHECK(stale.reserve(kGranule));
  CHECK(stale.empty());
}
