// Why pages could not be had.
#pragma once

#include <cstdint>

namespace mempool {

enum class Refusal : std::uint8_t {
  none,
  limit,     // of the device
  backend,   // it has no more, or the call failed
  metadata,  // no memory for records
  asleep,
};

}  // namespace mempool
