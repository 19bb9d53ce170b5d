// What monitoring reads: figures of a device, and of the pools of each label, as plain arrays that processes can share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/accounts/pool_groups.h"
#include "core/accounts/stats.h"

namespace mempool {

// How figures of several processes are taken together.
enum class FigureKind : std::uint8_t {
  gauge,    // a sum
  peak,     // the highest
  limit,    // a sum, unless one has none
  counter,  // a sum, those included that have ended
};

struct Figure {
  const char* name;
  FigureKind kind;
};

inline constexpr std::array kPoolFigures = {
    Figure{"allocated_bytes", FigureKind::gauge},
    Figure{"allocated_peak_bytes", FigureKind::peak},
    Figure{"requested_bytes", FigureKind::gauge},
    Figure{"blocks", FigureKind::gauge},
    Figure{"pools", FigureKind::gauge},
    Figure{"limit_bytes", FigureKind::limit},
    Figure{"pressure_calls", FigureKind::counter},
};
inline constexpr std::array kDeviceFigures = {
    Figure{"allocated_bytes", FigureKind::gauge}, Figure{"allocated_peak_bytes", FigureKind::peak},
    Figure{"requested_bytes", FigureKind::gauge}, Figure{"blocks", FigureKind::gauge},
    Figure{"held_bytes", FigureKind::gauge},      Figure{"held_peak_bytes", FigureKind::peak},
    Figure{"limit_bytes", FigureKind::limit},     Figure{"soft_limit_bytes", FigureKind::limit},
    Figure{"outside_bytes", FigureKind::gauge},   Figure{"pressure_calls", FigureKind::counter},
    Figure{"alloc_retries", FigureKind::counter}, Figure{"moves", FigureKind::counter},
    Figure{"moved_bytes", FigureKind::counter},   Figure{"commits", FigureKind::counter},
    Figure{"decommits", FigureKind::counter},     Figure{"decayed_bytes", FigureKind::counter},
};

// The figures in the order of these tables; a limit that is not there is -1.
struct PoolMetrics {
  std::array<std::int64_t, kPoolFigures.size()> figures{};
  Refusals refusals{};
};
struct DeviceMetrics {
  std::array<std::int64_t, kDeviceFigures.size()> figures{};
  Refusals refusals{};
};

// Of one device.
struct Metrics {
  DeviceMetrics device;
  struct Labelled {
    std::string label;
    PoolMetrics metrics;
  };
  std::vector<Labelled> pools{};
};

// `own`: without the blocks and the counts that a forked process has from its parent, which counts them.
PoolMetrics metrics_of(const PoolGroup& group, bool own);
struct DeviceLimits {
  std::size_t limit;
  std::size_t soft_limit;
  std::size_t outside;
};
// `inherited`: what is the parent's; nothing, for all that this process has.
DeviceMetrics metrics_of(const DeviceStats& now, const DeviceStats& inherited, const DeviceLimits& limits);

}  // namespace mempool
