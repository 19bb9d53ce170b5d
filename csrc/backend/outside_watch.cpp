#include "backend/outside_watch.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "backend/decay_thread.h"
#include "backend/host_info.h"
#include "backend/memory_room.h"
#include "backend/process_ledger.h"
#include "common/clock.h"

namespace mempool {
namespace {

// The margin is a 32nd part of what may be used, within these bounds.
constexpr std::size_t kMarginShare = 32;
constexpr std::size_t kLeastMargin = std::size_t{16} << 20;
constexpr std::size_t kLargestMargin = std::size_t{1} << 30;
// Looking at what is resident takes at most this part of the time; where a request is about to be refused, more.
constexpr std::int64_t kLookShare = 100;
constexpr std::int64_t kFreshLookShare = 10;
// Tasks wait for memory for more than this part of a second.
constexpr std::int64_t kStallMs = 1000;
constexpr std::uint64_t kStallUs = 100'000;

std::size_t minus(std::size_t from, std::size_t what) { return from > what ? from - what : 0; }

// Immortal. The mutex guards the watch itself; whether there is one is read without it.
std::mutex& watch_mutex() {
  static std::mutex* const mutex = new std::mutex;
  return *mutex;
}
std::unique_ptr<OutsideWatch>& the_watch() {
  static auto* const watch = new std::unique_ptr<OutsideWatch>;
  return *watch;
}
std::atomic<CachingAllocator*> g_watched{nullptr};

std::size_t outside_of(CachingAllocator& device) noexcept {
  try {
    const std::lock_guard guard(watch_mutex());
    if (the_watch() != nullptr) return the_watch()->look();
  } catch (const std::exception&) {  // no memory to read the files: what was counted stays
    return device.ledger().outside();
  }
  return 0;
}

}  // namespace

AutoLimit auto_limit(const std::string& root) {
  const std::size_t capacity = memory_room(root).capacity;
  const std::size_t margin = std::clamp(capacity / kMarginShare, kLeastMargin, kLargestMargin);
  return {capacity, std::max(minus(capacity, margin), capacity / 2)};
}

std::size_t OutsideLevel::add(std::int64_t now_ms, std::size_t bytes) {
  std::erase_if(readings_, [&](const auto& each) { return each.first <= now_ms - kFallMs || each.second <= bytes; });
  readings_.emplace_back(now_ms, bytes);
  return readings_.front().second;
}

std::size_t resident_bytes(const std::vector<std::pair<std::uintptr_t, std::size_t>>& ranges) noexcept {
  const std::size_t page = page_bytes();
  unsigned char present[4096];
  std::size_t out = 0;
  for (const auto& [start, bytes] : ranges) {
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t part = std::min(bytes - done, sizeof present * page);
      // What was unmapped meanwhile is an error, and not resident.
      if (mincore(reinterpret_cast<void*>(start + done), part, present) == 0) {  // NOLINT(performance-no-int-to-ptr)
        const auto count = std::count_if(present, present + part / page, [](unsigned char c) { return (c & 1) != 0; });
        out += static_cast<std::size_t>(count) * page;
      }
      done += part;
    }
  }
  return out;
}

OutsideWatch::OutsideWatch(CachingAllocator& device, std::size_t capacity, std::string root)
    : device_(device), capacity_(capacity), root_(std::move(root)) {}

// A lower bound: what was resident when it was last looked at, less all that went back since.
std::size_t OutsideWatch::resident(std::int64_t at_ms, bool fresh) {
  if (at_ms - looked_ms_ >= std::max<std::int64_t>((fresh ? kFreshLookShare : kLookShare) * took_ms_, 1)) {
    const std::int64_t before = device_.ledger().read_stats().decommitted_bytes;
    const std::int64_t began = monotonic_ms();
    resident_ = resident_bytes(device_.backed_ranges());
    took_ms_ = monotonic_ms() - began;
    decommitted_ = before;
    looked_ms_ = at_ms;
  }
  return minus(resident_, static_cast<std::size_t>(device_.ledger().read_stats().decommitted_bytes - decommitted_));
}

// Of this process, and of all that share its limit, which it tells its own.
std::size_t OutsideWatch::resident_of_all(std::int64_t at_ms, bool fresh) {
  const std::size_t own = resident(at_ms, fresh);
  const SharedBudget* const shared = budget_of(device_);
  if (shared == nullptr) return own;
  // What it has inherited its parent tells of.
  shared->ledger().tell_resident(shared->device(), minus(own, device_.ledger().inherited_held()));
  return shared->ledger().resident(shared->device());
}

// `resident` was read before: what is touched in between counts as others'.
std::size_t OutsideWatch::outside_beside(std::size_t resident) const {
  const MemoryRoom room = memory_room(root_);
  return minus(minus(capacity_, std::min(room.left, capacity_)), resident);
}

std::size_t OutsideWatch::look() {
  const std::size_t outside = outside_beside(resident_of_all(monotonic_ms(), true));
  count(outside);
  return is_shared(device_) ? 0 : outside;
}

void OutsideWatch::count(std::size_t outside) {
  if (const SharedBudget* const shared = budget_of(device_)) {
    shared->ledger().set_outside(shared->device(), outside);
  } else {
    device_.ledger().set_outside(outside);
  }
}

std::size_t OutsideWatch::tick(std::int64_t at_ms) {
  const SharedBudget* const shared = budget_of(device_);
  const std::size_t resident = resident_of_all(at_ms, false);
  // Of processes that share a limit one looks at a time.
  if (shared == nullptr || shared->ledger().take_turn(shared->device(), at_ms, at_ms - kTickMs / 2)) {
    count(level_.add(at_ms, outside_beside(resident)));
  }
  return std::max(relieve_limit(), relieve_stall(at_ms));
}

// What is held and outside passes the limit: free memory goes back, and the program is asked for the rest, once.
std::size_t OutsideWatch::relieve_limit() {
  const auto over = [this] {
    if (SharedBudget* const shared = budget_of(device_)) return minus(shared->held(), shared->limit());
    Ledger& ledger = device_.ledger();
    return minus(ledger.held() + ledger.outside(), ledger.limit());
  };
  const bool was_over = std::exchange(is_over_, false);
  if (const std::size_t bytes = over(); bytes > 0) device_.trim(minus(device_.ledger().held(), bytes), false);
  const std::size_t left = over();
  is_over_ = left > 0;
  return is_over_ && !was_over ? left : 0;
}

// Tasks wait for memory, whatever the limits say: what is free goes back first; if they still wait a second later, the
// program is asked, too, once until they do not.
std::size_t OutsideWatch::relieve_stall(std::int64_t at_ms) {
  const std::int64_t span_ms = at_ms - stall_read_ms_;
  if (span_ms < kStallMs) return 0;
  const std::optional<std::uint64_t> now = memory_stall_us(root_);
  const std::uint64_t waited_us = now && stall_us_ && *now > *stall_us_ ? *now - *stall_us_ : 0;
  stall_us_ = now;
  stall_read_ms_ = at_ms;
  if (waited_us < kStallUs * static_cast<std::uint64_t>(std::min<std::int64_t>(span_ms, 60'000)) / kStallMs) {
    stalled_times_ = 0;
    return 0;
  }
  if (stalled_times_++ == 0) device_.trim(0, false);
  return stalled_times_ == 2 ? std::max<std::size_t>(device_.ledger().held() / kMarginShare, 1) : 0;
}

void watch_outside(CachingAllocator& cpu, bool on, const std::string& root) {
  if (!on) {
    {
      const std::lock_guard guard(watch_mutex());
      if (the_watch() == nullptr) return;
      the_watch().reset();
      g_watched.store(nullptr);
    }
    cpu.set_outside_hook(nullptr);
    cpu.ledger().set_outside(0);
    return;
  }
  const AutoLimit automatic = auto_limit(root);
  auto made = std::make_unique<OutsideWatch>(cpu, automatic.capacity, root);
  if (!is_shared(cpu)) cpu.ledger().force_limit(automatic.limit);
  made->look();
  made->relieve_limit();
  {
    const std::lock_guard guard(watch_mutex());
    the_watch() = std::move(made);
    g_watched.store(&cpu);
  }
  cpu.set_outside_hook(outside_of);
  ensure_decay_thread(cpu);
}

bool is_watching_outside() noexcept { return g_watched.load() != nullptr; }

void tick_outside_watch(std::int64_t at_ms) noexcept {
  static std::atomic<std::int64_t> next_ms{0};
  CachingAllocator* const device = g_watched.load();
  if (device == nullptr || at_ms < next_ms.load()) return;
  next_ms.store(at_ms + OutsideWatch::kTickMs);
  std::size_t needed = 0;
  try {
    const std::lock_guard guard(watch_mutex());
    if (the_watch() != nullptr) needed = the_watch()->tick(at_ms);
  } catch (const std::bad_alloc&) {
    // The next tick looks again.
  }
  if (needed > 0) device->press(needed);  // without the mutex: callbacks allocate
}

void restart_outside_watch() noexcept {
  std::construct_at(&watch_mutex());
  CachingAllocator* const device = g_watched.load();
  if (device == nullptr) return;
  const OutsideWatch* const left = the_watch().release();  // the rest of it may be half changed
  try {
    the_watch() = std::make_unique<OutsideWatch>(*device, left->capacity(), left->root());
  } catch (const std::bad_alloc&) {
    g_watched.store(nullptr);
  }
}

}  // namespace mempool
