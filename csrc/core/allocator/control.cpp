// Pools, families of arenas, limits, and giving memory back.
#include <algorithm>
#include <utility>

#include "core/allocator/caching_allocator.h"
#include "core/allocator/policy.h"

namespace mempool {
namespace {

using ArenaGuard = std::lock_guard<AdaptiveMutex>;

}  // namespace

CachingAllocator::CachingAllocator(std::string device, std::unique_ptr<PhysicalMemory> memory, const Options& options)
    : device_(std::move(device)),
      options_(options),
      memory_(std::move(memory)),
      slot_(ThreadRegistry::instance().add_allocator()),
      clocks_(memory_->stream_events()),
      default_family_(families_
                          .emplace_back(std::make_unique<ArenaFamily>(*this, "default", ArenaFamily::Kind::shared,
                                                                      options_.thread_cache_bytes > 0))
                          .get()),
      demand_(options.decay_ms) {
  if (arena_of(*default_family_, 0) == nullptr) throw std::bad_alloc();
  ledger_.set_limit(options.limit);
  ledger_.set_soft_limit(options.soft_limit);
}

CachingAllocator::~CachingAllocator() {
  recall();
  while (await_other_streams(0)) continue;
  clocks_.wait_for_all();
  ThreadRegistry::instance().remove_allocator(slot_);
}

ThreadCache* CachingAllocator::make_cache() noexcept {
  return ThreadRegistry::instance().obtain(slot_, *this, *default_family_->first.load(), options_.thread_cache_bytes);
}

// ---- pools -------------------------------------------------------------------------------------------------------

Account* CachingAllocator::open_pool(std::string name, Account* parent, bool isolated, std::size_t limit,
                                     std::size_t soft_limit) {
  if (!isolated) return accounts_.open(std::move(name), parent, &family_of(parent), false, limit, soft_limit);
  ArenaFamily& family = add_family(name, ArenaFamily::Kind::isolated);
  try {
    return accounts_.open(std::move(name), parent, &family, true, limit, soft_limit);
  } catch (...) {
    close_family(family);
    throw;
  }
}

ArenaFamily& CachingAllocator::add_family(std::string name, ArenaFamily::Kind kind) {
  const std::lock_guard guard(arenas_mutex_);
  return *families_.emplace_back(std::make_unique<ArenaFamily>(*this, std::move(name), kind, false));
}

ArenaFamily& CachingAllocator::open_family(std::string name, bool fixed) {
  return add_family(std::move(name), fixed ? ArenaFamily::Kind::fixed : ArenaFamily::Kind::isolated);
}

void CachingAllocator::close_family(ArenaFamily& family) noexcept {
  const std::lock_guard guard(arenas_mutex_);
  family.retired = true;
  for (Arena* const arena : family.arenas) {
    const ArenaGuard arena_guard(arena->mutex);
    arena->pages.let_go();
    // A graph's memory goes when somebody needs it: that takes a wait for the whole device.
    if (family.kind != ArenaFamily::Kind::fixed) arena->pages.release(SIZE_MAX, true);
  }
  forget_retired();
}

std::size_t CachingAllocator::trim_family(ArenaFamily& family) noexcept {
  while (await_other_streams(0)) continue;
  std::size_t given = 0;
  const std::lock_guard guard(arenas_mutex_);
  for (Arena* const arena : family.arenas) {
    const ArenaGuard arena_guard(arena->mutex);
    given += arena->pages.release(SIZE_MAX, true);
  }
  return given;
}

std::vector<Arena*> CachingAllocator::arenas_of(const ArenaFamily& family) {
  const std::lock_guard guard(arenas_mutex_);
  return family.arenas;
}

std::size_t CachingAllocator::family_held_bytes(const ArenaFamily& family) {
  std::size_t held = 0;
  const std::lock_guard guard(arenas_mutex_);
  for (Arena* const arena : family.arenas) {
    const ArenaGuard arena_guard(arena->mutex);
    held += arena->pages.held_bytes();
  }
  return held;
}

Arena* CachingAllocator::arena_of(ArenaFamily& family, StreamId stream) noexcept {
  if (Arena* const first = family.first.load(std::memory_order_acquire); first != nullptr && first->stream() == stream)
    return first;
  const std::lock_guard guard(arenas_mutex_);
  for (Arena* const arena : family.arenas) {
    if (arena->stream() == stream) return arena;
  }
  try {
    arenas_.reserve(arenas_.size() + 1);
    family.arenas.reserve(family.arenas.size() + 1);
    auto arena = std::make_unique<Arena>(family, clocks_.of(stream), *memory_, ledger_, options_);
    family.arenas.push_back(arena.get());
    arenas_.push_back(std::move(arena));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  if (family.arenas.size() == 1) family.first.store(family.arenas[0], std::memory_order_release);
  has_more_arenas_.store(arenas_.size() > 1, std::memory_order_relaxed);
  return family.arenas.back();
}

void CachingAllocator::close_pool(Account& pool) noexcept {
  accounts_.close(pool);
  clear_out_below(pool);
}

void CachingAllocator::drop_pool(Account& pool) noexcept {
  accounts_.keep(&pool);
  if (accounts_.drop(pool) == nullptr) clear_out_below(pool);
  if (Account* const done = accounts_.release(&pool)) retire(done);
}

// Pools that nobody can allocate from any more and that have no block: what they hold goes back, though their handles
// may live on.
void CachingAllocator::clear_out_below(const Account& closed) noexcept {
  for (std::uint32_t next_id = 0; Account* const idle = accounts_.next_idle(closed, next_id);) clear_out(*idle);
}

void CachingAllocator::end(const AccountRegistry::Ended& ended) noexcept {
  if (ended.idle != nullptr) [[unlikely]]
    clear_out(*ended.idle);
  if (ended.done != nullptr) [[unlikely]]
    retire(ended.done);
}

// Precondition: the ledger keeps the pool alive for this call.
void CachingAllocator::clear_out(Account& idle) noexcept {
  // A block that waits for other streams keeps it alive as well. Then what sleeps sleeps on: it holds no memory.
  const bool is_empty = accounts_.read(idle).users == 1;
  {
    const std::lock_guard guard(arenas_mutex_);
    for (Arena* const arena : idle.family->arenas) {
      const ArenaGuard arena_guard(arena->mutex);
      if (is_empty && arena->pages.sound_asleep()) arena->pages.forget_sleep();
      arena->pages.release(SIZE_MAX, true);
    }
    if (is_empty) idle.family->asleep.store(false);
  }
  if (Account* const done = accounts_.release(&idle)) retire(done);
}

// Frees the record of a pool that nothing uses any more, its arena, and parents that only waited for it.
void CachingAllocator::retire(Account* account) noexcept {
  while (account != nullptr) {
    if (account->isolated) {
      {
        const std::lock_guard guard(arenas_mutex_);
        for (Arena* const arena : account->family->arenas) {
          const ArenaGuard arena_guard(arena->mutex);
          arena->pages.forget_sleep();
        }
      }
      close_family(*account->family);
    }
    account = accounts_.erase(account);
  }
}

// Deletes retired families that hold nothing; their sums go on in the device's. `arenas_mutex_` must be held. What the
// backend would not take back stays on the books until a later trim gets rid of it.
void CachingAllocator::forget_retired() noexcept {
  const auto is_done = [](const ArenaFamily& family) {
    return family.retired && std::all_of(family.arenas.begin(), family.arenas.end(), [](Arena* arena) {
             const ArenaGuard guard(arena->mutex);
             return arena->pages.backed_bytes() == 0;
           });
  };
  std::erase_if(families_, [&](const std::unique_ptr<ArenaFamily>& family) {
    if (!is_done(*family)) return false;
    for (Arena* const arena : family->arenas) retired_ranges_.absorb_retired(arena->pages.free_ranges());
    std::erase_if(arenas_, [&](const std::unique_ptr<Arena>& arena) { return &arena->family == family.get(); });
    return true;
  });
  has_more_arenas_.store(arenas_.size() > 1, std::memory_order_relaxed);
}

void CachingAllocator::enter_pool(PoolEntry& entry, Account* pool) {
  ThreadCache* const mine = cache();
  if (mine == nullptr) throw std::bad_alloc();
  accounts_.keep(pool);
  const std::lock_guard guard(mine->lock);
  mine->pools.push(entry, pool, *mine);
}

bool CachingAllocator::leave_pool(PoolEntry& entry) noexcept {
  Account* left = nullptr;
  bool is_done = false;
  if (ThreadCache* const mine = ThreadRegistry::find(slot_); mine != nullptr && entry.home() == mine) {
    const std::lock_guard guard(mine->lock);
    is_done = entry.home() == mine;  // still: another thread may have been faster
    if (is_done) left = mine->pools.pop(entry);
  } else {
    ThreadRegistry& registry = ThreadRegistry::instance();
    const std::lock_guard guard(registry.mutex);  // its thread does not end meanwhile
    if (ThreadCache* const home = entry.home()) {
      const ForeignGuard home_guard(home->lock);
      is_done = entry.home() == home;
      if (is_done) left = home->pools.pop(entry);
    }
  }
  if (Account* const done = accounts_.release(left)) retire(done);
  return is_done;
}

void CachingAllocator::take_back(ThreadCache& ended) noexcept {
  while (true) {
    Account* left = nullptr;
    bool is_last = false;
    {
      const ForeignGuard guard(ended.lock);
      PoolEntry* const entry = ended.pools.top();
      is_last = entry == nullptr;
      if (is_last) {
        ended.flush();
        ledger_.fold(ended.shards);
      } else {
        left = ended.pools.pop(*entry);
      }
    }
    if (is_last) return;
    if (Account* const done = accounts_.release(left)) retire(done);
  }
}

std::size_t CachingAllocator::pool_held_bytes(const Account& pool) {
  if (!pool.isolated) return static_cast<std::size_t>(accounts_.read(pool).blocks.bytes.current);
  return family_held_bytes(*pool.family);
}

std::size_t CachingAllocator::trim_pool(Account& pool) noexcept {
  if (!pool.isolated) recall();
  return trim_family(*pool.family);
}

void CachingAllocator::set_pool_limit(Account& pool, std::size_t limit) {
  if (accounts_.set_limit(pool, limit)) return;
  const auto used = static_cast<std::size_t>(accounts_.read(pool).blocks.bytes.current);
  throw ConfigError("a limit of " + format_bytes(limit) + " (" + std::to_string(limit) + " bytes) for pool '" +
                    pool.name + "' is below the " + std::to_string(used) +
                    " bytes that it has in use: free tensors first. The limit is unchanged.");
}

// ---- device ------------------------------------------------------------------------------------------------------

void CachingAllocator::set_limit(std::size_t limit) {
  if (ledger_.set_limit(limit)) return;
  trim(limit);
  if (ledger_.set_limit(limit)) return;
  throw ConfigError("a limit of " + format_bytes(limit) + " (" + std::to_string(limit) + " bytes) for device " +
                    device_ + " is below the " + std::to_string(ledger_.held()) +
                    " bytes that it holds even after a trim: free tensors first. The limit is unchanged.");
}

void CachingAllocator::set_soft_limit(std::size_t limit) noexcept {
  ledger_.set_soft_limit(limit);
  if (ledger_.held() > limit) trim(limit);
}

std::size_t CachingAllocator::trim(std::size_t target_bytes, bool may_wait) noexcept {
  recall();
  collect();
  while (may_wait && ledger_.held() > target_bytes && await_other_streams(0)) continue;
  const std::size_t held = ledger_.held();
  return release(held > target_bytes ? held - target_bytes : 0, may_wait);
}

// Takes the free blocks out of every thread's cache.
void CachingAllocator::recall() noexcept {
  AllCaches caches(slot_);
  caches.for_each([](ThreadCache& cache) { cache.flush(); });
}

// Takes what waits in the caches, so that the arena can make longer ranges of it: medium and large blocks of all
// threads, and of this one the small blocks too if they come to something. A few of them would only cost their slabs.
void CachingAllocator::recall_for_growth(ThreadCache* mine) noexcept {
  if (mine != nullptr) {
    const std::lock_guard guard(mine->lock);
    if (mine->small_bytes() >= kSmallBytesWorthwhile) mine->flush_small();
    mine->flush_spans();
  }
  ThreadRegistry& registry = ThreadRegistry::instance();
  bool others = false;
  {
    const std::lock_guard guard(registry.mutex);
    registry.for_each(slot_, [&others](const ThreadCache& cache) { others |= cache.span_bytes() > 0; });
  }
  if (!others) return;
  AllCaches caches(slot_);
  caches.for_each([](ThreadCache& cache) { cache.flush_spans(); });
}

// Totals that hold for this moment, where a block of `mine` could be a new peak.
void CachingAllocator::fold_for_peak(ThreadCache* mine) noexcept {
  AllCaches caches(slot_);
  caches.for_each([this, mine](ThreadCache& cache) {
    if (&cache != mine) ledger_.fold(cache.shards);
  });
  if (mine != nullptr) ledger_.fold(mine->shards);
  ledger_.suspend_leases();
}

// The default stream's arena of the default family comes last: it is the one most likely to ask again.
std::size_t CachingAllocator::release(std::size_t bytes, bool may_wait) noexcept {
  std::size_t given = 0;
  const std::lock_guard guard(arenas_mutex_);
  for (auto arena = arenas_.rbegin(); arena != arenas_.rend(); ++arena) {
    const ArenaGuard arena_guard((*arena)->mutex);
    // With 0 it drops empty segments.
    given += (*arena)->pages.release(given < bytes ? bytes - given : 0, may_wait);
  }
  forget_retired();
  return given;
}

bool CachingAllocator::open_again() noexcept {
  bool all = true;
  for_each_arena([&all](Arena& arena) { all &= arena.pages.open_again(); });
  return all;
}

Gathering CachingAllocator::defragment() noexcept {
  recall();
  collect();
  Gathering sum;
  for_each_arena([&sum](Arena& arena) {
    const Gathering one = arena.pages.gather();
    sum.moved_bytes += one.moved_bytes;
    sum.moves += one.moves;
    sum.regained_bytes += one.regained_bytes;
  });
  return sum;
}

std::int64_t CachingAllocator::decay_tick_ms() const noexcept {
  return std::clamp<std::int64_t>(options_.decay_ms / kDecayTicks, kShortestTickMs, kLongestTickMs);
}

std::size_t CachingAllocator::decay(std::int64_t now_ms) noexcept {
  if (options_.decay_ms == kNeverDecays) return 0;
  std::size_t unused = 0;
  {
    AllCaches caches(slot_);
    caches.for_each([&](ThreadCache& cache) {
      ledger_.fold(cache.shards);
      unused += cache.take_unused_bytes();
    });
  }
  std::size_t need = 0;
  clocks_.wait_for_gone();
  collect();
  for_each_arena([&](Arena& arena) {
    need += arena.pages.take_need();
    arena.pages.clock().poll();
    arena.pages.mark();  // so that at the next tick it is known what is idle
  });
  std::size_t highest = 0;
  try {
    const std::lock_guard guard(demand_mutex_);
    demand_.add(now_ms, static_cast<std::int64_t>(need - std::min(unused, need)));
    highest = static_cast<std::size_t>(demand_.highest());
  } catch (const std::bad_alloc&) {
    return 0;
  }
  highest -= std::min(highest, recall_unused(now_ms, unused));
  // Demand comes back in other sizes and places: what that may cost it stays as well.
  const std::size_t stays = highest + highest / kDecayMarginShare;
  const std::size_t held = ledger_.held();
  if (held < stays + memory_->granule_bytes()) return 0;
  const std::size_t surplus = held - stays;
  std::size_t given = 0;
  while (given < surplus) {
    const std::size_t slice = release(std::min(kDecaySlice, surplus - given), false);
    if (slice == 0) break;
    given += slice;
  }
  return given;
}

// Recalls the caches once blocks have waited in them for all of decay_ms. Returns by how much the need of that time was
// taken for too high: handles that are free but for such a block count as needed, though only the block is unused.
std::size_t CachingAllocator::recall_unused(std::int64_t now_ms, std::size_t unused) noexcept {
  if (unused < memory_->granule_bytes()) {
    unused_since_ms_ = kNotUnused;
    return 0;
  }
  if (unused_since_ms_ == kNotUnused) unused_since_ms_ = now_ms;
  if (now_ms - unused_since_ms_ < options_.decay_ms) return 0;
  unused_since_ms_ = kNotUnused;
  const auto need_now = [this] {
    std::size_t need = 0;
    for_each_arena([&need](Arena& arena) { need += arena.pages.need(); });
    return need;
  };
  const std::size_t before = need_now();
  recall();
  const std::size_t after = need_now();
  return before > after + unused ? before - after - unused : 0;
}

std::size_t CachingAllocator::largest_free() noexcept {
  std::size_t largest = 0;
  for_each_arena([&largest](Arena& arena) { largest = std::max(largest, arena.pages.largest_free()); });
  return largest;
}

}  // namespace mempool
