#include "core/accounts/demand_window.h"

namespace mempool {

void DemandWindow::add(std::int64_t now_ms, std::int64_t highest) {
  falling_.push_back({now_ms, highest});
  while (falling_.size() > 1 && falling_[falling_.size() - 2].bytes <= highest) {
    falling_.pop_back();
    falling_.back() = {now_ms, highest};
  }
  while (falling_.front().time_ms <= now_ms - span_ms_ && falling_.size() > 1) falling_.pop_front();
}

}  // namespace mempool
