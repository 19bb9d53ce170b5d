#include "core/accounts/pool_groups.h"

#include <utility>

namespace mempool {

constinit std::atomic<std::size_t> PoolGroups::g_count{0};

PoolGroups::PoolGroups() : count_(1) {
  groups_[0] = std::make_unique<PoolGroup>();
  groups_[0]->label = kOther;
}

PoolGroups::~PoolGroups() { g_count.fetch_sub(count_ - 1); }

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
  for (std::size_t i = 1; i < count_; ++i) {
    if (groups_[i]->pools > 0) continue;
    groups_[i].swap(fresh);
    return added;
  }
  return nullptr;
}

}  // namespace mempool
