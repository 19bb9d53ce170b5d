// One request that its thread's cache could not serve: from its place under the limits to its block, or to the error
// that says why there is none.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/errors.h"
#include "core/allocator/device_parts.h"
#include "core/allocator/hooks.h"

namespace mempool {

// What a request for `bytes` costs; 0 bytes rounded where no block can be that large. Expects that `bytes` is not 0.
BlockSize size_of_request(std::size_t bytes) noexcept;

class Allocation {
 public:
  // `family`: where the block comes from; nullptr: of the pool that the calling thread is in.
  Allocation(DeviceParts& parts, BlockSize size, StreamId stream, ArenaFamily* family) noexcept;
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  // The block. Throws OutOfMemory, PoolClosedError or PoolAsleepError. Called once.
  void* run();
  // The same for a block that was found by other means, for the root pool.
  void* hand_over(void* address);

 private:
  // How hard the request was tried already.
  enum class Effort : std::uint8_t { none, recalled, awaited, waited, released, relieved, pressed, borrowed };

  std::uint32_t account_id() const noexcept { return account_ != nullptr ? account_->id : 0; }

  Ledger::Charge reserve_current();
  void insist(Ledger::Charge result);
  void let_go(const Ledger::Charge& charge);
  [[gnu::always_inline]] void confirm();
  Ledger::Charge charge() noexcept;
  void serve_stream() noexcept;

  void* obtain(Refusal& why) noexcept;
  void* take(bool may_grow, Refusal& why) noexcept;
  void* borrow(Refusal& why) noexcept;
  [[gnu::always_inline]] void* take_cached(ThreadCache& keeper) noexcept;
  void* take_from(Arena& arena, const Supply& supply, ThreadCache* keeper, Refusal& why) noexcept;
  void refill(Arena& arena, ThreadCache& keeper) noexcept;
  bool is_hopeless(Refusal& why) const noexcept;
  bool may_fit() noexcept;
  void make_room(Refusal why);
  void release() noexcept;
  void try_anew() noexcept;

  void after_growth();
  void press(const Account* refuser, std::size_t needed, bool failing, PressureOutcome& outcome);
  void tell_refusal(OomInfo& info, const Account* of);
  [[noreturn]] void refuse(OomInfo info, const Account* refuser, const PressureOutcome& outcome);

  DeviceParts& parts_;
  const BlockSize size_;
  const StreamId stream_;
  ThreadCache* const cache_;  // the calling thread's; nullptr: it has none
  Account* account_ = nullptr;
  ArenaFamily* family_;
  Arena* arena_ = nullptr;
  Pools::Stay stay_;  // what keeps the account alive while none of its bytes are reserved
  PressureOutcome outcome_;
  Effort effort_ = Effort::none;
  Refusal refusal_ = Refusal::none;  // the last that was given
  bool may_commit_ = true;           // else only what is free may move: the backend has just refused
  bool may_wait_ = false;            // for work on other streams
};

}  // namespace mempool
