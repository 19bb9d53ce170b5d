// Pools, limits, giving memory back, and fork.
#include <algorithm>
#include <utility>

#include "core/caching_allocator.h"

namespace mempool {
namespace {

using ArenaGuard = std::lock_guard<AdaptiveMutex>;

constexpr std::size_t kSmallBytesWorthwhile = std::size_t{1} << 20;

}  // namespace

CachingAllocator::CachingAllocator(std::string device, std::unique_ptr<PhysicalMemory> memory, const Options& options)
    : device_(std::move(device)),
      options_(options),
      memory_(std::move(memory)),
      slot_(ThreadRegistry::instance().add_allocator()),
      default_arena_(std::make_unique<Arena>("default", *memory_, ledger_, options_, options_.thread_cache_bytes > 0)),
      demand_(options.decay_ms) {
  ledger_.set_limit(options.limit);
  ledger_.set_soft_limit(options.soft_limit);
}

CachingAllocator::~CachingAllocator() {
  recall();
  ThreadRegistry::instance().remove_allocator(slot_);
}

ThreadCache* CachingAllocator::make_cache() noexcept {
  return ThreadRegistry::instance().obtain(slot_, *this, *default_arena_, options_.thread_cache_bytes);
}

// ---- pools -------------------------------------------------------------------------------------------------------

Account* CachingAllocator::open_pool(std::string name, Account* parent, bool isolated, std::size_t limit,
                                     std::size_t soft_limit) {
  if (!isolated) return ledger_.open(std::move(name), parent, &arena_of(parent), false, limit, soft_limit);
  auto arena = std::make_unique<Arena>(name, *memory_, ledger_, options_, false);
  const std::lock_guard guard(arenas_mutex_);
  isolated_.reserve(isolated_.size() + 1);
  Account* const account = ledger_.open(std::move(name), parent, arena.get(), true, limit, soft_limit);
  isolated_.push_back(std::move(arena));
  has_isolated_.store(true, std::memory_order_relaxed);
  return account;
}

void CachingAllocator::close_pool(Account& pool) noexcept { ledger_.close(pool); }

void CachingAllocator::drop_pool(Account& pool) noexcept {
  if (Account* const done = ledger_.drop(pool)) retire(done);
}

// Frees the record of a pool that nothing uses any more, its arena, and parents that only waited for it.
void CachingAllocator::retire(Account* account) noexcept {
  while (account != nullptr) {
    if (account->isolated) {
      const std::lock_guard guard(arenas_mutex_);
      {
        const ArenaGuard arena_guard(account->arena->mutex);
        account->arena->retired = true;
        account->arena->pages.forget_sleep();
        account->arena->pages.release(SIZE_MAX);
      }
      forget_retired();
    }
    account = ledger_.erase(account);
  }
}

// Deletes retired arenas that hold nothing; their sums go on in the device's. `arenas_mutex_` must be held. What the
// backend would not take back stays on the books until a later trim gets rid of it.
void CachingAllocator::forget_retired() noexcept {
  std::erase_if(isolated_, [this](const std::unique_ptr<Arena>& arena) {
    const ArenaGuard guard(arena->mutex);
    if (!arena->retired || arena->pages.backed_bytes() > 0) return false;
    retired_ranges_.absorb_retired(arena->pages.free_ranges());
    return true;
  });
  has_isolated_.store(!isolated_.empty(), std::memory_order_relaxed);
}

Account* CachingAllocator::set_current_pool(Account* pool) {
  ThreadCache* const mine = cache();
  if (mine == nullptr) throw std::bad_alloc();
  Account* const before = std::exchange(mine->current, pool);
  if (before != pool) {
    if (Account* const done = ledger_.switch_user(before, pool)) retire(done);
  }
  return before;
}

// A thread has ended, or is not in this forked child: its blocks, its counts and its hold on a pool return.
void CachingAllocator::take_back(ThreadCache& ended) noexcept {
  {
    const ForeignGuard guard(ended.lock);
    ended.flush();
    ledger_.fold(ended.shards);
  }
  if (Account* const done = ledger_.switch_user(std::exchange(ended.current, nullptr), nullptr)) retire(done);
}

std::size_t CachingAllocator::pool_held_bytes(const Account& pool) {
  if (!pool.isolated) return static_cast<std::size_t>(ledger_.read(pool).blocks.bytes.current);
  const ArenaGuard guard(pool.arena->mutex);
  return pool.arena->pages.held_bytes();
}

std::size_t CachingAllocator::trim_pool(Account& pool) noexcept {
  if (!pool.isolated) recall();
  const ArenaGuard guard(pool.arena->mutex);
  return pool.arena->pages.release(SIZE_MAX);
}

void CachingAllocator::set_pool_limit(Account& pool, std::size_t limit) {
  if (ledger_.set_limit(pool, limit)) return;
  const auto used = static_cast<std::size_t>(ledger_.read(pool).blocks.bytes.current);
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

std::size_t CachingAllocator::trim(std::size_t target_bytes) noexcept {
  recall();
  const std::size_t held = ledger_.held();
  return release(held > target_bytes ? held - target_bytes : 0);
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

std::size_t CachingAllocator::release(std::size_t bytes) noexcept {
  std::size_t given = 0;
  const std::lock_guard guard(arenas_mutex_);
  const auto take = [&](Arena& arena) {
    const ArenaGuard arena_guard(arena.mutex);
    given += arena.pages.release(given < bytes ? bytes - given : 0);  // with 0 it drops empty segments
  };
  for (const auto& arena : isolated_) take(*arena);
  take(*default_arena_);
  forget_retired();
  return given;
}

Gathering CachingAllocator::defragment() noexcept {
  recall();
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
  return std::clamp<std::int64_t>(options_.decay_ms / 20, 1, 40);
}

std::size_t CachingAllocator::decay(std::int64_t now_ms) noexcept {
  // A slice at a time, so that no allocation waits long for the arena.
  constexpr std::size_t kSlice = std::size_t{64} << 20;
  constexpr std::size_t kMarginShare = 32;
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
  for_each_arena([&](Arena& arena) { need += arena.pages.take_need(); });
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
  const std::size_t stays = highest + highest / kMarginShare;
  const std::size_t held = ledger_.held();
  if (held < stays + memory_->granule_bytes()) return 0;
  const std::size_t surplus = held - stays;
  std::size_t given = 0;
  while (given < surplus) {
    const std::size_t slice = release(std::min(kSlice, surplus - given));
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

// ---- sleep -------------------------------------------------------------------------------------------------------

namespace {

bool save_all(Backup& backup, const std::vector<PageHeap::UsedRange>& used) {
  return std::all_of(used.begin(), used.end(),
                     [&backup](const PageHeap::UsedRange& range) { return backup.save(range.address, range.bytes); });
}

}  // namespace

void CachingAllocator::sleep_pool(Account& pool, bool keep) {
  const std::string name = ledger_.read(pool).name;
  const auto refuse_to_sleep = [&name](const char* reason) {
    throw PoolStateError("mempool: pool '" + name + "' stays awake: " + reason);
  };
  if (!pool.isolated) {
    throw ConfigError("pool '" + name +
                      "' shares its memory with others and cannot sleep: make it with isolated=True.");
  }
  PageHeap& pages = pool.arena->pages;
  std::vector<PageHeap::UsedRange> used;
  {
    const ArenaGuard guard(pool.arena->mutex);
    if (pages.sound_asleep()) return;
    if (!pages.fall_asleep(used)) refuse_to_sleep("another thread is just putting it to sleep or waking it.");
  }
  std::unique_ptr<Backup> backup = keep ? memory_->make_backup() : nullptr;
  const bool saved = !keep || (backup != nullptr && save_all(*backup, used));
  const ArenaGuard guard(pool.arena->mutex);
  if (!saved) {
    pages.stay_awake();
    refuse_to_sleep("no place for its contents (see TMPDIR).");
  }
  if (!pages.sleep(std::move(backup))) {
    refuse_to_sleep(keep ? "the system did not take its memory back."
                         : "the system did not take its memory back. Some contents may be lost.");
  }
}

void CachingAllocator::wake_pool(Account& pool) {
  if (!pool.isolated) return;
  PageHeap& pages = pool.arena->pages;
  Refusal why = Refusal::none;
  std::size_t needed = 0;
  for (const bool released : {false, true}) {
    Backup* backup = nullptr;
    {
      const ArenaGuard guard(pool.arena->mutex);
      if (!pages.asleep()) return;
      if (!pages.sound_asleep()) {
        throw PoolStateError("mempool: pool '" + ledger_.read(pool).name +
                             "': another thread is just putting it to sleep or waking it.");
      }
      needed = pages.backed_bytes() - pages.held_bytes();
      if (pages.start_waking(why)) backup = pages.backup();
    }
    if (why == Refusal::none) {
      const bool restored = backup == nullptr || backup->restore();
      const ArenaGuard guard(pool.arena->mutex);
      restored ? pages.wake() : pages.sleep_on();
      if (restored) break;
      why = Refusal::backend;
    }
    if (released) break;
    recall();
    release(needed);
    why = Refusal::none;
  }
  if (why == Refusal::none) {
    if (const auto hook = growth_hook_.load(std::memory_order_relaxed)) hook(*this);
    return;
  }
  const Account account = ledger_.read(pool);
  ledger_.count_oom(&pool, nullptr);
  throw OutOfMemory({.reason = why == Refusal::limit ? OomReason::device_limit : OomReason::backend_refused,
                     .device = device_,
                     .pool = account.name,
                     .requested = needed,
                     .allocated = static_cast<std::size_t>(account.blocks.bytes.current),
                     .limit = why == Refusal::limit ? ledger_.limit() : kNoLimit,
                     .held = ledger_.held()});
}

bool CachingAllocator::pool_asleep(const Account& pool) {
  if (!pool.isolated) return false;
  const ArenaGuard guard(pool.arena->mutex);
  return pool.arena->pages.asleep();
}

// ---- fork --------------------------------------------------------------------------------------------------------

void CachingAllocator::prepare_fork() {
  observers_mutex_.lock();
  ThreadRegistry::instance().lock_caches(slot_);
  arenas_mutex_.lock();
  default_arena_->mutex.lock();
  for (const auto& arena : isolated_) arena->mutex.lock();
  ledger_.lock_for_fork().lock();
  history_.lock_for_fork().lock();
  recorder_.lock_for_fork().lock();
  demand_mutex_.lock();
}

void CachingAllocator::after_fork(bool in_child) noexcept {
  if (in_child) {
    recorder_.abandon();
    update_observed();
  }
  demand_mutex_.unlock();
  recorder_.lock_for_fork().unlock();
  history_.lock_for_fork().unlock();
  ledger_.lock_for_fork().unlock();
  for (const auto& arena : isolated_) arena->mutex.unlock();
  default_arena_->mutex.unlock();
  arenas_mutex_.unlock();
  ThreadRegistry::instance().unlock_caches(slot_);
  observers_mutex_.unlock();
}

}  // namespace mempool
