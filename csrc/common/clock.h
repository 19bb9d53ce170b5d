// Milliseconds of the clock that never jumps and that all processes of the system share.
#pragma once

#include <chrono>
#include <cstdint>

namespace mempool {

inline std::int64_t monotonic_ms() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace mempool
