// Figures of pools in groups, for monitoring: it cannot look at each of 100,000 pools at every scrape, so these are
// counted with each block.
//
// A pool belongs to the group of its label, else to its parent's, else to that of the label "other". A group counts the
// blocks of its pools and, as each pool does, those of all pools below them, each block once: the outermost pool of a
// group on the way to the root counts for it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/bytes.h"
#include "core/accounts/stats.h"

namespace mempool {

struct PoolGroup {
  struct Counts {
    BlockStats blocks;
    Refusals refusals{};  // of requests by pools of the group, or by their limits
    std::int64_t pressure_calls = 0;
  };

  std::string label{};
  Counts counts{};
  Counts inherited{};          // what of that this process has from the one that it was forked from
  std::int64_t pools = 0;      // members: they are open, or some of their blocks are alive
  std::int64_t heads = 0;      // members that count for it
  std::int64_t unlimited = 0;  // heads without a limit
  std::uint64_t limits = 0;    // the sum of the others'

  void add_head(std::size_t limit) { change_heads(limit, 1); }
  void remove_head(std::size_t limit) { change_heads(limit, -1); }

 private:
  void change_heads(std::size_t limit, int change) {
    heads += change;
    if (limit == kNoLimit) {
      unlimited += change;
    } else {
      limits += static_cast<std::uint64_t>(change) * limit;
    }
  }
};

// The groups of one device. Not thread-safe: the registry's lock guards them.
class PoolGroups {
 public:
  // Of all devices together: a label is for a kind of pools, and what reads metrics keeps a series for each.
  static constexpr std::size_t kMost = 64;
  static constexpr std::size_t kLongestLabel = 47;  // bytes
  static constexpr std::string_view kOther = "other";

  // With the group "other", which never makes way and is not among the kMost: a pool without a label always has a
  // group.
  PoolGroups();
  PoolGroups(const PoolGroups&) = delete;
  PoolGroups& operator=(const PoolGroups&) = delete;
  ~PoolGroups();

  // nullptr: there is none.
  PoolGroup* find(std::string_view label) const noexcept;
  // Where there are kMost, the new one takes the place of one that has no pools any more, whose figures are lost, and
  // which is in `fresh` then. nullptr, and nothing is taken: all have some.
  PoolGroup* add(std::unique_ptr<PoolGroup>& fresh) noexcept;
  std::span<const std::unique_ptr<PoolGroup>> all() const noexcept { return {groups_.data(), count_}; }

 private:
  static std::atomic<std::size_t> g_count;  // of all devices
  std::array<std::unique_ptr<PoolGroup>, 1 + kMost> groups_{};
  std::size_t count_ = 0;
};

}  // namespace mempool
