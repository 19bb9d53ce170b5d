#include "core/threads/pool_stack.h"

namespace mempool {
namespace {

// One for the process: here, for a variable of a header would be one of each library.
constinit std::atomic<std::uint64_t> g_last{0};

}  // namespace

std::uint64_t PoolStack::mark() noexcept { return g_last.load(std::memory_order_relaxed); }

void PoolStack::push(PoolEntry& entry, Account* account, ThreadCache& home) noexcept {
  MEMPOOL_EXPECTS(entry.home() == nullptr);
  entry.order_ = g_last.fetch_add(1, std::memory_order_relaxed) + 1;
  entry.account_ = account;
  entry.below_ = top_;
  entry.above_ = nullptr;
  if (top_ != nullptr) top_->above_ = &entry;
  top_ = &entry;
  current_.store(account, std::memory_order_relaxed);
  entry.home_.store(&home, std::memory_order_release);
}

Account* PoolStack::pop(PoolEntry& entry) noexcept {
  MEMPOOL_EXPECTS(entry.home() != nullptr && (entry.above_ != nullptr) == (&entry != top_));
  (entry.above_ != nullptr ? entry.above_->below_ : top_) = entry.below_;
  if (entry.below_ != nullptr) entry.below_->above_ = entry.above_;
  current_.store(top_ != nullptr ? top_->account_ : nullptr, std::memory_order_relaxed);
  Account* const account = entry.account_;
  entry.home_.store(nullptr, std::memory_order_release);  // last: its maker may end it from now on
  return account;
}

}  // namespace mempool
