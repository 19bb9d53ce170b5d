#include "core/pages/refusal.h"

namespace mempool {

OomInfo facts_of(Refusal why, const Ledger& ledger) {
  OomInfo info;
  switch (why) {
    case Refusal::limit:
      info.reason = OomReason::device_limit;
      info.limit = ledger.limit();
      break;
    case Refusal::budget:
      if (!ledger.budget()->has_place()) {
        info.reason = OomReason::ledger_full;
        break;
      }
      info.reason = OomReason::shared_limit;
      info.limit = ledger.budget()->limit();
      info.held_by_all = ledger.budget()->held();
      break;
    case Refusal::metadata:
      info.reason = OomReason::metadata_refused;
      break;
    default:
      info.reason = OomReason::backend_refused;
  }
  return info;
}

}  // namespace mempool
