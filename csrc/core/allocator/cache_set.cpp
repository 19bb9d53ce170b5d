#include "core/allocator/cache_set.h"

#include <mutex>

#include "core/allocator/policy.h"

namespace mempool {

CacheSet::CacheSet(Ledger& ledger, ThreadCache::Owner& owner, ArenaFamily& family, std::size_t most_small_bytes)
    : ledger_(ledger),
      owner_(owner),
      family_(family),
      most_small_bytes_(most_small_bytes),
      slot_(ThreadRegistry::instance().add_allocator()) {}

CacheSet::~CacheSet() { ThreadRegistry::instance().remove_allocator(slot_); }

ThreadCache* CacheSet::make() noexcept {
  return ThreadRegistry::instance().obtain(slot_, owner_, *family_.first.load(), most_small_bytes_);
}

void CacheSet::recall() noexcept {
  AllCaches caches(slot_);
  caches.for_each([](ThreadCache& cache) { cache.flush(); });
}

void CacheSet::flush_for_growth(ThreadCache& cache) noexcept {
  if (cache.is_worth_recalling()) cache.flush_small();
  cache.flush_spans();
}

void CacheSet::recall_for_growth(ThreadCache* mine) noexcept {
  if (mine != nullptr) {
    const std::lock_guard guard(mine->lock);
    flush_for_growth(*mine);
  }
  ThreadRegistry& registry = ThreadRegistry::instance();
  bool others = false;
  {
    const std::lock_guard guard(registry.mutex);
    registry.for_each(
        slot_, [&others](const ThreadCache& cache) { others |= cache.span_bytes() > 0 || cache.is_worth_recalling(); });
  }
  if (!others) return;
  AllCaches caches(slot_);
  caches.for_each(flush_for_growth);
}

// `mine` comes last: its block is the one that may pass the peak.
void CacheSet::fold_for_peak(ThreadCache* mine) noexcept {
  AllCaches caches(slot_);
  caches.for_each([this, mine](ThreadCache& cache) {
    if (&cache != mine) ledger_.fold(cache.shards);
  });
  if (mine != nullptr) ledger_.fold(mine->shards);
  ledger_.suspend_leases();
}

Ledger::Charge CacheSet::confirm_for_peak(Account* account, BlockSize size, ThreadCache* mine) noexcept {
  AllCaches caches(slot_);
  caches.for_each([this](ThreadCache& cache) { ledger_.fold(cache.shards); });
  ledger_.suspend_leases();
  return ledger_.confirm(account, size, mine != nullptr ? &mine->shards : nullptr, true);
}

void* CacheSet::settle_and_unlock(ThreadCache& mine, bool is_small, void* address) noexcept {
  const bool settled = ledger_.settle(mine.shards, is_small);
  mine.lock.unlock();
  if (!settled) fold_for_peak(&mine);
  return address;
}

bool CacheSet::ease_and_unlock(ThreadCache& mine, bool is_small) noexcept {
  ledger_.ease(mine.shards, is_small);
  mine.lock.unlock();
  return true;
}

ThreadCache::Unused CacheSet::fold_and_take_unused() noexcept {
  ThreadCache::Unused sum;
  AllCaches caches(slot_);
  caches.for_each([this, &sum](ThreadCache& cache) {
    ledger_.fold(cache.shards);
    const ThreadCache::Unused unused = cache.take_unused();
    sum.small_blocks += unused.small_blocks;
    sum.span_bytes += unused.span_bytes;
  });
  return sum;
}

}  // namespace mempool
