// Tells the ledger that this process shares with others what its devices' metrics are, for whichever of them is asked.
#pragma once

#include <vector>

#include "backend/shared_ledger.h"

namespace mempool {

// Those of the devices that are shared now. Without a ledger it does nothing.
void tell_metrics() noexcept;
// Tells them, and reads those of all processes in the ledger; nothing without one.
std::vector<SharedLedger::Worker> read_shared_metrics();

}  // namespace mempool
