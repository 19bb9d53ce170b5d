#include "core/page_map.h"

#include <new>

namespace mempool {
namespace {

// Installs a zeroed node where there is none. Two threads may race for one slot: the loser's node is dropped.
template <typename Node>
Node* obtain(std::atomic<Node*>& slot) noexcept {
  Node* present = slot.load(std::memory_order_acquire);
  if (present != nullptr) return present;
  Node* fresh = new (std::nothrow) Node{};
  if (fresh == nullptr) return nullptr;
  if (slot.compare_exchange_strong(present, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;
  return present;
}

}  // namespace

PageMap& PageMap::instance() {
  static PageMap* const map = new PageMap;  // immortal: frees may come after static destruction
  return *map;
}

bool PageMap::prepare(std::uintptr_t start, std::size_t bytes) noexcept {
  const std::uintptr_t first = start / kPageBytes;
  const std::uintptr_t last = (start + bytes - 1) / kPageBytes;
  if (last >> kPageBits != 0) return false;
  for (std::uintptr_t leaf = first >> kLeafBits; leaf <= last >> kLeafBits; ++leaf) {
    Middle* middle = obtain(root_[leaf >> kMiddleBits]);
    if (middle == nullptr || obtain((*middle)[leaf & ((1u << kMiddleBits) - 1)]) == nullptr) return false;
  }
  return true;
}

void PageMap::set(std::uintptr_t start, std::size_t bytes, Span* span) noexcept {
  for (std::uintptr_t page = start / kPageBytes; page < (start + bytes) / kPageBytes; ++page) {
    Middle* middle = root_[page >> (kMiddleBits + kLeafBits)].load(std::memory_order_relaxed);
    Leaf* leaf = (*middle)[(page >> kLeafBits) & ((1u << kMiddleBits) - 1)].load(std::memory_order_relaxed);
    (*leaf)[page & ((1u << kLeafBits) - 1)].store(span, std::memory_order_release);
  }
}

}  // namespace mempool
