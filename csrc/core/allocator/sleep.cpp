// Sleep and wake of isolated pools: all arenas of the pool, or none.
#include <algorithm>
#include <utility>

#include "common/errors.h"
#include "common/expects.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {
namespace {

using Unsleeping = PageHeap::Unsleeping;

std::string text_of(StreamClock::Obstacle obstacle, StreamEvents* events) {
  switch (obstacle) {
    case StreamClock::Obstacle::failure: {
      const std::string failure = events != nullptr ? events->failure() : "";
      return failure.empty() ? "its device does not answer." : "its device has failed: " + failure + ".";
    }
    case StreamClock::Obstacle::capture:
      return "a stream of its device is being captured into a graph.";
    default:
      return "the driver gives no event by which the work on its device could be waited for.";
  }
}

std::string text_of(Unsleeping why, StreamClock::Obstacle obstacle, StreamEvents* events) {
  switch (why) {
    case Unsleeping::pinned:
      return "memory of it is shared with other processes. It can sleep once they have let go of it and the tensors "
             "that were shared are gone here, too.";
    case Unsleeping::in_use:
      return text_of(obstacle, events);
    case Unsleeping::mapped:
      return "the system keeps memory mapped where it was before it moved.";
    default:
      return "another thread is just putting it to sleep or waking it.";
  }
}

bool save_all(Backup& backup, const std::vector<PageHeap::UsedRange>& used) {
  return std::all_of(used.begin(), used.end(),
                     [&backup](const PageHeap::UsedRange& range) { return backup.save(range.address, range.bytes); });
}

template <typename Predicate>
bool any_of(const std::vector<Arena*>& arenas, Predicate predicate) {
  return std::any_of(arenas.begin(), arenas.end(), [&](Arena* arena) {
    const ArenaGuard guard(arena->mutex);
    return predicate(arena->pages);
  });
}

// Whatever happens, not empty.
std::string problem_of(const Backup& backup) noexcept {
  try {
    return backup.problem();
  } catch (const std::bad_alloc&) {
    return "no memory";  // short enough to need none
  }
}

// Wakes those that sleep, with their contents. False, and all of them asleep and whole, when one cannot be woken:
// `why`, or where contents could not be read back, `problem`.
bool wake_all(const std::vector<Arena*>& arenas, Refusal& why, std::string& problem) {
  std::vector<Arena*> woken;
  woken.reserve(arenas.size());
  bool is_done = true;
  for (Arena* const arena : arenas) {
    Backup* backup = nullptr;
    {
      const ArenaGuard guard(arena->mutex);
      if (!arena->pages.sound_asleep()) continue;
      is_done = arena->pages.start_waking(why);
      if (!is_done) break;
      backup = arena->pages.backup();
    }
    woken.push_back(arena);
    is_done = backup == nullptr || backup->restore();  // without the lock: it may take long
    if (!is_done) {
      problem = problem_of(*backup);
      break;
    }
  }
  for (Arena* const arena : woken) {
    const ArenaGuard guard(arena->mutex);
    is_done ? arena->pages.wake() : arena->pages.sleep_on();
  }
  return is_done;
}

// Arenas that were told to fall asleep, with what is in use in them. Those that do not sleep in the end stay awake,
// whatever ends the attempt.
class Falling {
 public:
  using Used = std::vector<PageHeap::UsedRange>;
  // Expects that no more arenas fall asleep than this. So a step that was taken cannot fail to be noted.
  explicit Falling(std::size_t most) { arenas_.reserve(most); }
  Falling(const Falling&) = delete;
  Falling& operator=(const Falling&) = delete;
  ~Falling() { stay_awake(0); }

  // What keeps the arena awake; `obstacle` as of PageHeap::fall_asleep().
  Unsleeping add(Arena& arena, StreamClock::Obstacle& obstacle) {
    Used used;
    MEMPOOL_EXPECTS(arenas_.size() < arenas_.capacity());
    const ArenaGuard guard(arena.mutex);
    const Unsleeping why = arena.pages.fall_asleep(used, obstacle);
    if (why == Unsleeping::none) arenas_.emplace_back(&arena, std::move(used));
    return why;
  }
  std::size_t size() const { return arenas_.size(); }
  Arena& arena(std::size_t i) const { return *arenas_[i].first; }
  const Used& used(std::size_t i) const { return arenas_[i].second; }
  // All but the first `asleep`.
  void stay_awake(std::size_t asleep) noexcept {
    for (std::size_t i = asleep; i < arenas_.size(); ++i) {
      const ArenaGuard guard(arena(i).mutex);
      arena(i).pages.stay_awake();
    }
    arenas_.clear();
  }
  void done() noexcept { arenas_.clear(); }

 private:
  std::vector<std::pair<Arena*, Used>> arenas_;
};

}  // namespace

void CachingAllocator::sleep_pool(Account& pool, bool keep) {
  const std::string name = parts_.accounts.read(pool).name;
  const auto refuse_to_sleep = [&name](const std::string& reason) {
    throw PoolStateError("mempool: pool '" + name + "' stays awake: " + reason);
  };
  if (!pool.isolated) {
    throw ConfigError("pool '" + name +
                      "' shares its memory with others and cannot sleep: make it with isolated=True.");
  }
  if (parts_.memory->capabilities().backs_addresses) {
    throw ConfigError("pool '" + name + "' cannot sleep: device " + device() +
                      " cannot manage virtual memory, and its memory would come back at other addresses.");
  }
  const std::vector<Arena*> arenas = parts_.arenas.arenas_of(*pool.family);
  if (pool.family->asleep.load() || any_of(arenas, [](const PageHeap& pages) { return pages.sound_asleep(); })) return;
  if (any_of(arenas, [](const PageHeap& pages) { return pages.is_pinned(); })) {
    refuse_to_sleep(text_of(Unsleeping::pinned, StreamClock::Obstacle::none, nullptr));
  }
  // Whatever uses the memory comes to its end first, blocks that are freed and wait for that too.
  settle();
  StreamClock::Obstacle obstacle = parts_.clocks.wait_for_all();
  if (obstacle != StreamClock::Obstacle::none) refuse_to_sleep(text_of(obstacle, parts_.memory->stream_events()));

  Falling falling(arenas.size());
  for (Arena* const arena : arenas) {
    const Unsleeping why = falling.add(*arena, obstacle);
    if (why != Unsleeping::none) refuse_to_sleep(text_of(why, obstacle, parts_.memory->stream_events()));
  }
  std::vector<std::unique_ptr<Backup>> backups(falling.size());
  for (std::size_t i = 0; keep && i < falling.size(); ++i) {
    backups[i] = parts_.memory->make_backup();
    if (backups[i] == nullptr) throw std::bad_alloc();
    if (!save_all(*backups[i], falling.used(i))) refuse_to_sleep(backups[i]->problem() + ".");
  }
  pool.family->asleep.store(true);
  for (std::size_t i = 0; i < falling.size(); ++i) {
    {
      const ArenaGuard guard(falling.arena(i).mutex);
      if (falling.arena(i).pages.sleep(std::move(backups[i]))) continue;
    }
    falling.stay_awake(i + 1);
    Refusal why = Refusal::none;
    std::string problem;
    const bool is_awake = wake_all(arenas, why, problem);
    pool.family->asleep.store(!is_awake);
    if (!is_awake) {
      throw PoolStateError(
          "mempool: pool '" + name +
          "' sleeps, but the system did not take all of its memory back. wake() brings back the rest.");
    }
    refuse_to_sleep(keep ? "the system did not take its memory back."
                         : "the system did not take its memory back. Some contents may be lost.");
  }
  falling.done();
}

void CachingAllocator::wake_pool(Account& pool) {
  if (!pool.isolated) return;
  const std::vector<Arena*> arenas = parts_.arenas.arenas_of(*pool.family);
  Refusal why = Refusal::none;
  std::size_t needed = 0;
  for (const bool released : {false, true}) {
    if (any_of(arenas, [](const PageHeap& pages) { return pages.asleep() && !pages.sound_asleep(); })) {
      throw PoolStateError("mempool: pool '" + parts_.accounts.read(pool).name +
                           "': another thread is just putting it to sleep or waking it.");
    }
    needed = 0;
    any_of(arenas, [&needed](const PageHeap& pages) {
      needed += pages.backed_bytes() - pages.held_bytes();
      return false;
    });
    why = Refusal::none;
    std::string problem;
    if (wake_all(arenas, why, problem)) {
      pool.family->asleep.store(false);
      parts_.tell_growth();
      return;
    }
    if (!problem.empty()) {
      throw PoolStateError("mempool: pool '" + parts_.accounts.read(pool).name + "' sleeps on: " + problem + ".");
    }
    if (released) break;
    parts_.caches.recall();
    parts_.arenas.release(needed, true);
  }
  const Account account = parts_.accounts.read(pool);
  OomInfo info = facts_of(why, parts_.ledger);
  parts_.ledger.count_oom(&pool, nullptr, info.reason);
  info.device = device();
  info.pool = account.name;
  info.requested = needed;
  info.allocated = static_cast<std::size_t>(account.blocks.bytes.current);
  info.held = parts_.ledger.held();
  info.outside = parts_.ledger.outside();
  throw OutOfMemory(std::move(info));
}

bool CachingAllocator::pool_asleep(const Account& pool) {
  return pool.isolated && (pool.family->asleep.load() || any_of(parts_.arenas.arenas_of(*pool.family),
                                                                [](const PageHeap& pages) { return pages.asleep(); }));
}

}  // namespace mempool
