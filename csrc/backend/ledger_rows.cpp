#include "backend/ledger_rows.h"

#include <array>

#include "common/text.h"

namespace mempool {
namespace {

template <typename Of, std::size_t N>
void add_counters_of(Of& to, const Of& from, const std::array<Figure, N>& figures) noexcept {
  for (std::size_t i = 0; i < N; ++i) {
    if (figures[i].kind == FigureKind::counter) to.figures[i] += from.figures[i];
  }
  for (std::size_t i = 0; i < to.refusals.size(); ++i) to.refusals[i] += from.refusals[i];
}

}  // namespace

// nullptr: there is no row for it, and none is free.
LedgerRows::Row* LedgerRows::row(int device, std::string_view label) noexcept {
  for (Row& row : pools_) {
    if (row.device < 0) {
      row.device = device;
      copy_text(row.label, label);
      return &row;
    }
    if (row.device == device && label == row.label) return &row;
  }
  return nullptr;
}

void LedgerRows::tell(const std::vector<OfDevice>& told) noexcept {
  *this = {};
  for (const OfDevice& each : told) {
    is_told_[each.device] = true;
    devices_[each.device] = each.metrics.device;
    for (const Metrics::Labelled& pool : each.metrics.pools) {
      if (Row* const own = row(each.device, pool.label)) own->metrics = pool.metrics;
    }
  }
}

std::vector<LedgerRows::OfDevice> LedgerRows::read() const {
  std::vector<OfDevice> out;
  for (int i = 0; i < kMostDevices; ++i) {
    if (!is_told_[i]) continue;
    OfDevice& added = out.emplace_back();
    added.device = i;
    added.metrics.device = devices_[i];
    for (const Row& row : pools_) {
      if (row.device == i) added.metrics.pools.push_back({row.label, row.metrics});
    }
  }
  return out;
}

void LedgerRows::add_counters(const LedgerRows& ended) noexcept {
  for (int i = 0; i < kMostDevices; ++i) {
    if (!ended.is_told_[i]) continue;
    is_told_[i] = true;
    add_counters_of(devices_[i], ended.devices_[i], kDeviceFigures);
  }
  for (const Row& each : ended.pools_) {
    if (each.device < 0) return;
    Row* to = row(each.device, each.label);
    if (to == nullptr) to = row(each.device, PoolGroups::kOther);  // of more labels than a process may have
    if (to != nullptr) add_counters_of(to->metrics, each.metrics, kPoolFigures);
  }
}

}  // namespace mempool
