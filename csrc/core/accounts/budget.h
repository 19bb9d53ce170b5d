// A limit on held bytes that several allocators share: those of other processes, too.
#pragma once

#include <cstddef>

namespace mempool {

// Asked where memory is mapped or given back, never for a block that is in a cache. Thread-safe.
class Budget {
 public:
  virtual ~Budget() = default;
  // Counts bytes that are about to be held. False, and nothing is counted: the limit would be passed.
  virtual bool try_hold(std::size_t bytes) noexcept = 0;
  // Bytes that were counted are held no longer.
  virtual void unhold(std::size_t bytes) noexcept = 0;
  // Whether this process can be counted at all; else nothing can be held for it, whatever the limit.
  virtual bool has_place() noexcept { return true; }
  // What all who share it may hold, and do.
  virtual std::size_t limit() const noexcept = 0;
  virtual std::size_t held() noexcept = 0;
};

}  // namespace mempool
