#include "core/pages/sleeper.h"

#include <algorithm>
#include <utility>

#include "common/expects.h"
#include "common/fork_generation.h"

namespace mempool {

void Sleeper::pin(int change) noexcept {
  MEMPOOL_EXPECTS(pinned_ + change >= 0);
  pinned_ += change;
}

void Sleeper::fall() noexcept {
  MEMPOOL_EXPECTS(is_awake() && !is_pinned());
  state_ = State::falling_asleep;
}

void Sleeper::stay_awake() noexcept {
  MEMPOOL_EXPECTS(state_ == State::falling_asleep);
  state_ = State::awake;
}

bool Sleeper::sleep(const Footprint& footprint, std::unique_ptr<Backup> backup) noexcept {
  MEMPOOL_EXPECTS(state_ == State::falling_asleep);
  const bool all_given_up = give_up(footprint);
  backup_ = std::move(backup);
  if (all_given_up) return true;
  // What was given up comes back. If that fails too the heap sleeps, and waking it can be tried again.
  Refusal why = Refusal::none;
  if (!start_waking(footprint, why)) return true;
  if (backup_ != nullptr && !backup_->restore()) {
    sleep_on(footprint);
    return true;
  }
  wake();
  return false;
}

bool Sleeper::start_waking(const Footprint& footprint, Refusal& why) noexcept {
  if (!is_asleep()) return false;
  const Refusal refusal = refusal_of(ledger_.try_hold(bytes_));
  if (refusal != Refusal::none) {
    why = refusal;
    return false;
  }
  std::size_t bytes_to_share = footprint.shared_bytes;
  if (!take_handles(bytes_to_share)) {
    ledger_.unhold(bytes_);
    give_up_handles(footprint.shared_bytes - bytes_to_share);
    why = Refusal::backend;
    return false;
  }
  ledger_.share(static_cast<std::int64_t>(bytes_to_share), reserved_);  // of what the backend had kept
  ledger_.count_ranges(footprint.backed_ranges);
  state_ = State::waking;
  return true;
}

void Sleeper::wake() noexcept {
  MEMPOOL_EXPECTS(state_ == State::waking);
  backup_.reset();
  state_ = State::awake;
}

void Sleeper::sleep_on(const Footprint& footprint) noexcept {
  MEMPOOL_EXPECTS(state_ == State::waking);
  give_up(footprint);
}

// False: the backend kept some memory.
bool Sleeper::give_up(const Footprint& footprint) noexcept {
  ledger_.count_ranges(-footprint.backed_ranges);
  state_ = State::asleep;
  return give_up_handles(footprint.shared_bytes);
}

// `shared_bytes`: those that the ledger counts as shared; none are any more. False: the backend kept some memory.
bool Sleeper::give_up_handles(std::size_t shared_bytes) noexcept {
  while (!handles_.empty()) {
    const auto& [start, handle] = *handles_.all().begin();
    const std::size_t bytes = handle.bytes;
    const std::uint32_t generation = handle.generation;
    if (!memory_.decommit(handle)) break;
    const std::size_t shared = std::min(bytes, shared_bytes);
    shared_bytes -= shared;
    bytes_ += bytes;
    ledger_.count_decommit(bytes, shared, generation, reserved_);
    given_up_.insert(handles_.extract(start));
  }
  ledger_.share(-static_cast<std::int64_t>(shared_bytes), reserved_);
  return handles_.empty();
}

// Their bytes are held already. The first `bytes_to_share` count as shared; it goes down by what was taken of those.
// False: the backend refused some.
bool Sleeper::take_handles(std::size_t& bytes_to_share) noexcept {
  while (!given_up_.empty()) {
    const auto first = given_up_.begin();
    Handle& handle = first->second;
    if (!memory_.commit(handle.address, handle.bytes, handle)) return false;
    handle.generation = fork_generation().load(std::memory_order_relaxed);
    const std::size_t shared = std::min(handle.bytes, bytes_to_share);
    bytes_to_share -= shared;
    bytes_ -= handle.bytes;
    ledger_.count_commit(handle.bytes, shared, reserved_);
    const Handle taken = handle;
    handles_.insert(given_up_.extract(first));
    if (!memory_.open(taken.address, taken.bytes)) return false;
  }
  return true;
}

void Sleeper::forget_first() noexcept {
  MEMPOOL_EXPECTS(!given_up_.empty());
  bytes_ -= given_up_.begin()->second.bytes;
  given_up_.erase(given_up_.begin());
}

void Sleeper::forget_sleep() noexcept {
  MEMPOOL_EXPECTS(given_up_.empty());
  backup_.reset();
  state_ = State::awake;
}

std::size_t Sleeper::sum_of_handles() const noexcept {
  std::size_t sum = 0;
  for (const auto& [start, handle] : given_up_) sum += handle.bytes;
  return sum;
}

}  // namespace mempool
