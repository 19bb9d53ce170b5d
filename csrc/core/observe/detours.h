// Why allocations leave the fast path at present. All the reasons lie in one byte, so that an allocation pays one
// relaxed load for them together.
#pragma once

#include <atomic>
#include <cstdint>

namespace mempool {

class Detours {
 public:
  enum Reason : std::uint8_t {
    observed = 1,  // somebody wants to hear of each allocation and free
    waiting = 2,   // freed blocks of torch's small pool wait for other streams, and one of them may serve the request
  };

  bool any() const noexcept { return reasons_.load(std::memory_order_relaxed) != 0; }
  bool has(Reason reason) const noexcept { return (reasons_.load(std::memory_order_relaxed) & reason) != 0; }
  void set(Reason reason, bool holds) noexcept {
    holds ? reasons_.fetch_or(reason) : reasons_.fetch_and(static_cast<std::uint8_t>(~reason));
  }

 private:
  std::atomic<std::uint8_t> reasons_{0};
};

}  // namespace mempool
