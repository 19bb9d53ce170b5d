// What a process tells of its metrics, as plain data that lies in memory which processes share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/accounts/metrics.h"

namespace mempool {

// Not thread-safe.
class LedgerRows {
 public:
  static constexpr int kMostDevices = 18;                                 // the CPU, pinned memory, and GPUs
  static constexpr std::size_t kMost = PoolGroups::kMost + kMostDevices;  // of labels on devices, "other" on each

  // `device`: its number in the ledger.
  struct OfDevice {
    int device = 0;
    Metrics metrics{};
  };

  // These take the place of all that was told.
  void tell(const std::vector<OfDevice>& devices) noexcept;
  std::vector<OfDevice> read() const;
  // Adds what only grows of a process that has ended.
  void add_counters(const LedgerRows& ended) noexcept;

 private:
  struct Row {
    std::int32_t device = -1;  // -1: it is free, and so are those that follow
    char label[PoolGroups::kLongestLabel + 1] = {};
    PoolMetrics metrics{};
  };
  Row* row(int device, std::string_view label) noexcept;

  bool is_told_[kMostDevices] = {};
  DeviceMetrics devices_[kMostDevices]{};
  Row pools_[kMost]{};
};

}  // namespace mempool
