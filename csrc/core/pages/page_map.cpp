#include "core/pages/page_map.h"

#include <type_traits>

#include "common/zero_pages.h"

namespace mempool {
namespace {

// Installs a table where there is none. Two threads may race for one slot: the loser's table is dropped.
template <typename Table>
bool install(std::atomic<Table*>& slot) noexcept {
  Table* present = slot.load(std::memory_order_acquire);
  if (present != nullptr) return true;
  auto* const fresh = static_cast<Table*>(map_zero_pages(sizeof(Table)));  // all zeros: null pointers
  if (fresh == nullptr) return false;
  if (!slot.compare_exchange_strong(present, fresh, std::memory_order_acq_rel)) {
    unmap_zero_pages(fresh, sizeof(Table));
  }
  return true;
}

}  // namespace

static_assert(std::is_trivially_destructible_v<PageMap>);
constinit PageMap PageMap::instance_{};

bool PageMap::prepare(std::uintptr_t start, std::size_t bytes) noexcept {
  const std::uintptr_t last = start + bytes - 1;
  if (last >> kAddressBits != 0) return false;
  for (std::uintptr_t i = start >> kTableBits; i <= last >> kTableBits; ++i) {
    if (!install(root_[i].pages) || !install(root_[i].large)) return false;
  }
  return true;
}

}  // namespace mempool
