// Functions that the layers above install, so that the core never calls upward. All run with no allocator lock held,
// and may allocate; an allocation inside a pressure callback that fails in turn does not call the callbacks again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/errors.h"

namespace mempool {

struct PressureOutcome {
  std::size_t calls = 0;     // callbacks that ran
  std::string error;         // text of the first error that one raised
  std::size_t error_id = 0;  // the installer's key for that error; 0 = none
};

class CachingAllocator;

// A request that is about to be refused.
struct RefusedRequest {
  CachingAllocator& device;
  OomInfo& info;       // `capture` and `help` are the hook's to fill
  std::string label;   // of the group of the pool whose limit refused, else of that which asked; of none: ""
  bool is_of_request;  // that pool is one of many short-lived ones: Account::for_one_request
};

struct Hooks {
  // `failing`: the allocation is about to be refused; else a soft limit was crossed and it will succeed anyway.
  void (*pressure)(const char* pool, std::size_t needed_bytes, bool failing,
                   PressureOutcome& outcome) noexcept = nullptr;
  void (*refused)(RefusedRequest& request) noexcept = nullptr;
  // An id for the calling thread's stack, for History; 0 = unknown.
  std::uint32_t (*capture_stack)() noexcept = nullptr;
};

// `hooks` must outlive its installation; nullptr removes.
void set_hooks(const Hooks* hooks) noexcept;
const Hooks* installed_hooks() noexcept;  // nullptr: none
// By the installed hook; 0 without one.
std::uint32_t capture_stack();

}  // namespace mempool
