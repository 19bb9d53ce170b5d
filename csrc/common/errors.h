// The typed errors of the library. Bindings turn each into one Python exception; nothing here prints or aborts.
#pragma once

#include <cstddef>
#include <new>
#include <stdexcept>
#include <string>

#include "common/bytes.h"

namespace mempool {

// A setting is wrong: the option is unknown, the size does not parse, the limit is below what is in use.
class ConfigError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A pool cannot do what was asked in the state that it is in.
class PoolStateError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A closed pool was asked for memory or for a child.
class PoolClosedError : public PoolStateError {
 public:
  using PoolStateError::PoolStateError;
};

// A sleeping pool was asked for memory.
class PoolAsleepError : public PoolStateError {
 public:
  using PoolStateError::PoolStateError;
};

// Why an allocation was refused, in the words that users see in `oom_info(exc)["reason"]`.
enum class OomReason {
  pool_limit,        // the allocated bytes of a pool would pass its limit
  device_limit,      // the held bytes of the device would pass its limit
  shared_limit,      // those of all processes that share a limit would pass it
  ledger_full,       // this process has no place among those that share a limit, and so cannot be counted
  backend_refused,   // the operating system or driver gave no memory
  metadata_refused,  // no memory for the allocator's own records
  size_overflow,     // the size cannot be represented once rounded
};
inline constexpr std::size_t kOomReasons = static_cast<std::size_t>(OomReason::size_overflow) + 1;

const char* to_string(OomReason reason);

// What `oom_info` returns. Bytes everywhere; kNoLimit where no limit is set.
struct OomInfo {
  OomReason reason = OomReason::backend_refused;
  std::string device{};
  std::string pool{};                 // the pool whose limit refused, else the pool that asked
  std::size_t requested = 0;          // as asked by the caller, not rounded
  std::size_t allocated = 0;          // rounded bytes live in that pool
  std::size_t limit = kNoLimit;       // the limit that refused
  std::size_t held = 0;               // physical memory of the whole device, in this process
  std::size_t outside = 0;            // held there by another allocator of this process: it counts in the limit
  std::size_t held_by_all = 0;        // of shared_limit: in all processes that share it
  std::size_t largest_free = 0;       // largest contiguous free range in the pool's arena
  std::size_t pressure_calls = 0;     // callbacks that ran before giving up
  std::string callback_error{};       // text of the first error that a callback raised, or empty
  std::size_t callback_error_id = 0;  // the installer's key for that error, 0 = none
  std::string device_failure{};       // what the device has failed with, or empty
  std::string source{};               // whose memory it is where it is not the device's own, or empty
  std::string source_refusal{};       // what that source, or else the device's own, said; or empty
  std::string help{};                 // what whoever captures refusals has to say, or empty
  std::string capture{};              // the file that a picture of this moment is written to, or empty
};

// Derives from bad_alloc, so that code which knows only the standard library treats it rightly.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(OomInfo info);
  const char* what() const noexcept override { return message_.c_str(); }
  const OomInfo& info() const noexcept { return info_; }

 private:
  OomInfo info_;
  std::string message_;
};

}  // namespace mempool
