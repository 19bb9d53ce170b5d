#include "core/allocator/arena_set.h"

#include <algorithm>
#include <map>
#include <new>
#include <utility>

#include "common/expects.h"

namespace mempool {

ArenaSet::ArenaSet(CachingAllocator& owner, PhysicalMemory& memory, Ledger& ledger, StreamClocks& clocks,
                   const Options& options)
    : owner_(owner),
      memory_(memory),
      ledger_(ledger),
      clocks_(clocks),
      options_(options),
      default_family_(families_
                          .emplace_back(std::make_unique<ArenaFamily>(owner, "default", ArenaFamily::Kind::shared,
                                                                      options.thread_cache_bytes > 0))
                          .get()) {
  if (arena_of(*default_family_, 0) == nullptr) throw std::bad_alloc();
}

ArenaFamily& ArenaSet::open(std::string name, ArenaFamily::Kind kind, ArenaFamily::MemoryFactory make_memory) {
  const std::lock_guard guard(mutex_);
  return *families_.emplace_back(
      std::make_unique<ArenaFamily>(owner_, std::move(name), kind, false, std::move(make_memory)));
}

void ArenaSet::close(ArenaFamily& family) noexcept {
  const std::lock_guard guard(mutex_);
  family.floor.store(0);
  family.retired = true;
  visit(family.arenas, [&family](Arena& arena) {
    arena.pages.let_go();
    // A graph's memory goes when somebody needs it: that takes a wait for the whole device. Memory of the family's own
    // is of use to nobody else.
    if (family.kind != ArenaFamily::Kind::fixed || family.has_own_memory()) arena.pages.release(SIZE_MAX, true);
  });
  forget_retired();
}

Arena* ArenaSet::arena_of(ArenaFamily& family, StreamId stream) noexcept {
  if (Arena* const first = family.first.load(std::memory_order_acquire); first != nullptr && first->stream() == stream)
    return first;
  const std::lock_guard guard(mutex_);
  for (Arena* const arena : family.arenas) {
    if (arena->stream() == stream) return arena;
  }
  try {
    arenas_.reserve(arenas_.size() + 1);
    family.arenas.reserve(family.arenas.size() + 1);
    auto arena = std::make_unique<Arena>(family, clocks_.of(stream), memory_, ledger_, options_);
    family.arenas.push_back(arena.get());
    arenas_.push_back(std::move(arena));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  if (family.arenas.size() == 1) family.first.store(family.arenas[0], std::memory_order_release);
  has_others_.store(arenas_.size() > 1, std::memory_order_relaxed);
  return family.arenas.back();
}

std::vector<Arena*> ArenaSet::arenas_of(const ArenaFamily& family) {
  const std::lock_guard guard(mutex_);
  return family.arenas;
}

// The default stream's arena of the default family comes last: it is the one most likely to ask again.
std::size_t ArenaSet::release(std::size_t bytes, bool may_wait, const ArenaFamily* asker) noexcept {
  std::size_t given = 0;
  const std::lock_guard guard(mutex_);
  for (auto arena = arenas_.rbegin(); arena != arenas_.rend(); ++arena) {
    const ArenaGuard arena_guard((*arena)->mutex);
    const ArenaFamily& family = (*arena)->family;
    const std::size_t most = &family == asker ? SIZE_MAX : above_floor(family);
    given += (*arena)->pages.release(given < bytes ? bytes - given : 0, may_wait, most);
  }
  forget_retired();
  return given;
}

std::size_t ArenaSet::release(ArenaFamily& family, std::size_t bytes) noexcept {
  std::size_t given = 0;
  const std::lock_guard guard(mutex_);
  visit(family.arenas, [&](Arena& arena) {
    given += arena.pages.release(given < bytes ? bytes - given : 0, true, above_floor(family));
  });
  return given;
}

// What its arenas hold grows meanwhile, at most.
std::size_t ArenaSet::above_floor(const ArenaFamily& family) const noexcept {
  const std::size_t floor = family.floor.load();
  if (floor == 0) return SIZE_MAX;
  const auto held = static_cast<std::size_t>(ledger_.read(*family.reserved).all.current);
  return held > floor ? held - floor : 0;
}

std::size_t ArenaSet::release_for(ArenaFamily& family) noexcept {
  if (family.kind != ArenaFamily::Kind::fixed || family.captured) return 0;
  std::size_t given = 0;
  const std::lock_guard guard(mutex_);
  visit(family.arenas, [&given](Arena& arena) { given += arena.pages.release_unmovable(); });
  return given;
}

std::size_t ArenaSet::release_closed() noexcept {
  std::size_t given = 0;
  const std::lock_guard guard(mutex_);
  visit(arenas_, [&given](Arena& arena) {
    if (arena.family.retired) given += arena.pages.release(SIZE_MAX, true);
  });
  forget_retired();
  return given;
}

void ArenaSet::clear_out(ArenaFamily& family, bool is_empty) noexcept {
  const std::lock_guard guard(mutex_);
  family.floor.store(0);
  visit(family.arenas, [is_empty](Arena& arena) {
    if (is_empty && arena.pages.sound_asleep()) arena.pages.forget_sleep();
    arena.pages.release(SIZE_MAX, true);
  });
  if (is_empty) family.asleep.store(false);
}

void ArenaSet::retire(ArenaFamily& family) noexcept {
  {
    const std::lock_guard guard(mutex_);
    visit(family.arenas, [](Arena& arena) { arena.pages.forget_sleep(); });
  }
  close(family);
}

// Expects that the mutex is held. Deletes retired families that hold nothing; their sums go on in the device's. What
// the backend would not take back stays on the books until a later trim gets rid of it.
void ArenaSet::forget_retired() noexcept {
  const auto is_done = [](const ArenaFamily& family) {
    return family.retired && std::all_of(family.arenas.begin(), family.arenas.end(), [](Arena* arena) {
             const ArenaGuard guard(arena->mutex);
             return arena->pages.backed_bytes() == 0;
           });
  };
  std::erase_if(families_, [&](const std::unique_ptr<ArenaFamily>& family) {
    if (!is_done(*family)) return false;
    for (Arena* const arena : family->arenas) {
      const ArenaGuard guard(arena->mutex);
      retired_ranges_.absorb_retired(arena->pages.free_ranges());
      retired_locks_.add(arena->mutex.counts());
    }
    std::erase_if(arenas_, [&](const std::unique_ptr<Arena>& arena) { return &arena->family == family.get(); });
    return true;
  });
  has_others_.store(arenas_.size() > 1, std::memory_order_relaxed);
}

ArenaSet::Lenders::Lenders(ArenaSet& set, const Arena& own, bool wanted) {
  if (!wanted || !set.has_others_.load(std::memory_order_relaxed)) return;
  registry_ = std::unique_lock(set.mutex_);
  try {
    heaps_.reserve(set.arenas_.size());
    locks_.reserve(set.arenas_.size());
  } catch (const std::bad_alloc&) {
    return;
  }
  for (const auto& arena : set.arenas_) {
    if (arena.get() == &own || arena->family.kind == ArenaFamily::Kind::fixed) continue;
    if (arena->family.floor.load() > 0 && &arena->family != &own.family) continue;  // it is kept for that family
    std::unique_lock<CountedMutex> guard(arena->mutex);
    if (arena->pages.whole_free_bytes() == 0) continue;
    heaps_.push_back(&arena->pages);
    locks_.push_back(std::move(guard));
  }
}

bool ArenaSet::open_again() noexcept {
  bool all = true;
  for_each([&all](Arena& arena) { all &= arena.pages.open_again(); });
  return all;
}

Gathering ArenaSet::gather() noexcept {
  Gathering sum;
  for_each([&sum](Arena& arena) {
    const Gathering one = arena.pages.gather();
    sum.moved_bytes += one.moved_bytes;
    sum.moves += one.moves;
    sum.regained_bytes += one.regained_bytes;
  });
  return sum;
}

std::size_t ArenaSet::held_bytes() noexcept {
  std::size_t held = 0;
  for_each([&held](Arena& arena) { held += arena.pages.held_bytes(); });
  return held;
}

std::size_t ArenaSet::held_bytes(const ArenaFamily& family) noexcept {
  std::size_t held = 0;
  const std::lock_guard guard(mutex_);
  visit(family.arenas, [&held](Arena& arena) { held += arena.pages.held_bytes(); });
  return held;
}

std::size_t ArenaSet::floors() noexcept {
  std::size_t sum = 0;
  const std::lock_guard guard(mutex_);
  for (const auto& family : families_) sum += family->floor.load();
  return sum;
}

bool ArenaSet::reserved_is_exact() noexcept {
  std::map<const Ledger::Reserved*, std::size_t> held;  // a closed family and its successor share theirs
  for_each([&held](Arena& arena) { held[arena.family.reserved.get()] += arena.pages.held_bytes(); });
  return std::all_of(held.begin(), held.end(), [this](const auto& each) {
    return each.second == static_cast<std::size_t>(ledger_.read(*each.first).all.current);
  });
}

std::size_t ArenaSet::free_bytes() noexcept {
  std::size_t free = 0;
  for_each([&free](Arena& arena) { free += static_cast<std::size_t>(arena.pages.free_ranges().bytes.all.current); });
  return free;
}

// What is kept for a family counts as needed, used or not: else as much of other families' memory would seem too much.
template <typename NeedOf>
std::size_t ArenaSet::sum_of_needs(NeedOf need_of) noexcept {
  std::size_t sum = 0;
  const std::lock_guard guard(mutex_);
  for (const auto& family : families_) {
    std::size_t need = 0;
    std::size_t held = 0;
    visit(family->arenas, [&](Arena& arena) {
      need += need_of(arena.pages);
      held += arena.pages.held_bytes();
    });
    sum += std::max(need, std::min(held, family->floor.load()));
  }
  return sum;
}

std::size_t ArenaSet::need() noexcept {
  return sum_of_needs([](PageHeap& pages) { return pages.need(); });
}

std::size_t ArenaSet::take_need() noexcept {
  return sum_of_needs([](PageHeap& pages) {
    const std::size_t need = pages.take_need();
    pages.clock().poll();
    pages.mark();
    return need;
  });
}

std::size_t ArenaSet::largest_free() noexcept {
  std::size_t largest = 0;
  for_each([&largest](Arena& arena) { largest = std::max(largest, arena.pages.largest_free()); });
  return largest;
}

FreeRangeStats ArenaSet::free_ranges() noexcept {
  FreeRangeStats sum;
  const std::lock_guard guard(mutex_);
  visit(arenas_, [&sum](Arena& arena) {
    FreeRangeStats ranges = arena.pages.free_ranges();
    if (arena.pages.asleep()) ranges.for_each([](Stat& stat) { stat.current = 0; });
    sum.absorb(ranges);
  });
  sum.absorb(retired_ranges_);
  return sum;
}

CountedMutex::Counts ArenaSet::lock_counts() noexcept {
  const std::lock_guard guard(mutex_);
  CountedMutex::Counts sum = retired_locks_;
  visit(arenas_, [&sum](Arena& arena) { sum.add(arena.mutex.counts()); });
  return sum;
}

void ArenaSet::reset(void (*action)(Stat&)) noexcept {
  const std::lock_guard guard(mutex_);
  visit(arenas_, [action](Arena& arena) { arena.pages.free_ranges().for_each(action); });
  retired_ranges_.for_each(action);
}

std::string ArenaSet::check_invariants() {
  std::string broken;
  for_each([&broken](Arena& arena) {
    if (broken.empty()) broken = arena.check_invariants();
  });
  return broken;
}

std::size_t ArenaSet::number_of(const ArenaFamily& family) const noexcept {
  const auto found =
      std::find_if(families_.begin(), families_.end(),
                   [&family](const std::unique_ptr<ArenaFamily>& each) { return each.get() == &family; });
  MEMPOOL_EXPECTS(found != families_.end());
  return static_cast<std::size_t>(found - families_.begin());
}

void ArenaSet::lock_for_fork() {
  mutex_.lock();
  for (const auto& arena : arenas_) arena->mutex.uncounted().lock();
}

void ArenaSet::unlock_after_fork() noexcept {
  for (const auto& arena : arenas_) arena->mutex.uncounted().unlock();
  mutex_.unlock();
}

}  // namespace mempool
