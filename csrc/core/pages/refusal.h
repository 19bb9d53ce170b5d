// Why pages could not be had.
#pragma once

#include <cstdint>

#include "common/errors.h"
#include "core/accounts/ledger.h"

namespace mempool {

enum class Refusal : std::uint8_t {
  none,
  limit,     // of the device
  budget,    // what processes share
  backend,   // it has no more, or the call failed
  metadata,  // no memory for records
  asleep,
};

// What the ledger has said. `none`: the bytes are counted.
constexpr Refusal refusal_of(Ledger::Hold hold) {
  switch (hold) {
    case Ledger::Hold::over_limit:
      return Refusal::limit;
    case Ledger::Hold::over_budget:
      return Refusal::budget;
    default:
      return Refusal::none;
  }
}

// The reason, and the limit where one has refused.
OomInfo facts_of(Refusal why, const Ledger& ledger);

}  // namespace mempool
