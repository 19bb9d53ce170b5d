// The half of the ledger that bounds what the device holds: its limits, the budget of several processes, and what
// another allocator holds beside it.
#include <algorithm>
#include <mutex>
#include <utility>

#include "common/expects.h"
#include "common/fork_generation.h"
#include "core/accounts/ledger.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<SpinLock>;

}  // namespace

void Ledger::hold_locked(std::size_t bytes) {
  held_ += bytes;
  if (held_ > soft_limit_) soft_crossed_.store(true);
  above_soft_.store(held_ > soft_limit_, std::memory_order_relaxed);
}

Ledger::Hold Ledger::try_hold(std::size_t bytes) {
  {
    const Guard guard(lock_);
    if (!fits_locked(bytes)) return Hold::over_limit;
    if (budget() == nullptr) {
      hold_locked(bytes);
      return Hold::counted;
    }
  }
  const std::lock_guard turn(budget_turn_);
  {
    const Guard guard(lock_);
    if (!fits_locked(bytes)) return Hold::over_limit;
  }
  if (!budget()->try_hold(bytes)) return Hold::over_budget;
  const Guard guard(lock_);  // since it fitted, memory can only have gone back
  hold_locked(bytes);
  return Hold::counted;
}

Budget* Ledger::unhold_locked(std::size_t bytes) {
  MEMPOOL_EXPECTS(held_ >= bytes);
  held_ -= bytes;
  rearm_soft();
  return budget();
}

void Ledger::unhold(std::size_t bytes) {
  Budget* shared = nullptr;
  {
    const Guard guard(lock_);
    shared = unhold_locked(bytes);
  }
  if (shared != nullptr) shared->unhold(bytes);
}

void Ledger::set_outside(std::size_t bytes) {
  const std::lock_guard turn(budget_turn_);
  if (Budget* const shared = budget()) {
    if (bytes < outside_in_budget_) shared->unhold(outside_in_budget_ - bytes);
    if (bytes <= outside_in_budget_ || shared->try_hold(bytes - outside_in_budget_)) outside_in_budget_ = bytes;
  }
  const Guard guard(lock_);
  outside_ = bytes;
}

std::size_t Ledger::outside() const {
  const Guard guard(lock_);
  return outside_;
}

bool Ledger::join(Budget& budget) {
  const std::lock_guard turn(budget_turn_);
  MEMPOOL_EXPECTS(this->budget() == nullptr);
  while (true) {
    const std::size_t counted = held();
    if (!budget.try_hold(counted)) return false;
    {
      const Guard guard(lock_);
      if (held_ == counted) {
        budget_.store(&budget, std::memory_order_release);
        return true;
      }
    }
    budget.unhold(counted);  // another thread took memory or gave some back meanwhile
  }
}

void Ledger::after_fork_in_child() noexcept {
  outside_ = outside_in_budget_ = 0;
  inherited_ = stats_;
  accounts_.after_fork_in_child();
  if (budget() != nullptr) counted_since_ = fork_generation().load();
}

std::size_t Ledger::most_held() const {
  const Budget* const shared = budget();
  return shared != nullptr ? std::min(limit(), shared->limit()) : limit();
}

std::size_t Ledger::room() const {
  const auto left = [](std::size_t limit, std::size_t held) { return limit > held ? limit - held : 0; };
  std::size_t own = 0;
  {
    const Guard guard(lock_);
    own = left(limit_, held_ + outside_);
  }
  Budget* const shared = budget();
  return shared != nullptr ? std::min(own, left(shared->limit(), shared->held())) : own;
}

bool Ledger::take_soft_crossing() {
  return soft_crossed_.load(std::memory_order_relaxed) && soft_crossed_.exchange(false);
}

bool Ledger::take_soft_alarm() {
  const Guard guard(lock_);
  return held_ > soft_limit_ && std::exchange(soft_armed_, false);
}

std::size_t Ledger::held() const {
  const Guard guard(lock_);
  return held_;
}

std::size_t Ledger::limit() const {
  const Guard guard(lock_);
  return limit_;
}

std::size_t Ledger::soft_limit() const {
  const Guard guard(lock_);
  return soft_limit_;
}

bool Ledger::set_limit(std::size_t limit) {
  const std::lock_guard turn(budget_turn_);
  const Guard guard(lock_);
  if (limit < held_ + outside_) return false;
  limit_ = limit;
  return true;
}

void Ledger::force_limit(std::size_t limit) {
  const Guard guard(lock_);
  limit_ = limit;
}

void Ledger::set_soft_limit(std::size_t limit) {
  const Guard guard(lock_);
  soft_limit_ = limit;
  soft_armed_ = true;
  above_soft_.store(held_ > limit, std::memory_order_relaxed);
}

}  // namespace mempool
