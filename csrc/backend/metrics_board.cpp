#include "backend/metrics_board.h"

#include <new>

#include "backend/cpu_device.h"
#include "backend/cuda_device.h"
#include "backend/pinned_device.h"
#include "backend/process_ledger.h"

namespace mempool {

void tell_metrics() noexcept {
  SharedLedger* const ledger = process_ledger();
  if (ledger == nullptr) return;
  try {
    std::vector<LedgerRows::OfDevice> told;
    const auto tell = [&](CachingAllocator* device) {
      if (device != nullptr && is_shared(*device)) told.push_back({shared_number(*device), device->metrics(true)});
    };
    tell(cpu_device_if_made());
    tell(pinned_device_if_made());
    for (int i = 0; i < kMaxCudaDevices; ++i) tell(cuda_device_if_made(i));
    ledger->tell_metrics(told);
  } catch (const std::bad_alloc&) {
    // The next time tells them.
  }
}

std::vector<SharedLedger::Worker> read_shared_metrics() {
  tell_metrics();
  SharedLedger* const ledger = process_ledger();
  return ledger != nullptr ? ledger->read_metrics() : std::vector<SharedLedger::Worker>{};
}

}  // namespace mempool
