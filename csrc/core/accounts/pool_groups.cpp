#include "core/accounts/pool_groups.h"

#include <utility>

namespace mempool {

constinit std::atomic<std::size_t> PoolGroups::g_count{0};

PoolGroups::~PoolGroups() { g_count.fetch_sub(count_); }

PoolGroup* PoolGroups::find(std::string_view label) const noexcept {
  for (const auto& group : all()) {
    if (group->label == label) return group.get();
  }
  return nullptr;
}

PoolGroup* PoolGroups::add(std::unique_ptr<PoolGroup>& fresh) noexcept {
  PoolGroup* const added = fresh.get();
  if (g_count.fetch_add(1) < kMost) {
    groups_[count_++] = std::move(fresh);
    return added;
  }
  g_count.fetch_sub(1);
  for (std::unique_ptr<PoolGroup>& group : groups_) {
    if (group == nullptr || group->pools > 0) continue;
    group.swap(fresh);
    return added;
  }
  return nullptr;
}

}  // namespace mempool
