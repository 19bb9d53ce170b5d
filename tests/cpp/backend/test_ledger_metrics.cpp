// The metrics of processes that share a ledger: each tells its own, and those that end leave their counters.
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "backend/ledger_fixtures.h"
#include "backend/shared_ledger.h"
#include "check.h"

using ledger_fixtures::ended_well;
using ledger_fixtures::Folder;
using ledger_fixtures::in_child;
using mempool::LedgerRows;
using mempool::Metrics;
using mempool::SharedLedger;

namespace {

constexpr std::size_t kAllocated = 0;      // of both tables
constexpr std::size_t kPressureCalls = 6;  // of pools

// Figures that differ: `n` blocks' bytes, and as many calls and refusals.
std::vector<LedgerRows::OfDevice> told(int device, std::int64_t n, std::size_t labels) {
  LedgerRows::OfDevice of{device, {}};
  of.metrics.device.figures[kAllocated] = n;
  of.metrics.device.refusals[1] = n;
  for (std::size_t i = 0; i < labels; ++i) {
    Metrics::Labelled pool{"label " + std::to_string(i), {}};
    pool.metrics.figures[kAllocated] = n + static_cast<std::int64_t>(i);
    pool.metrics.figures[kPressureCalls] = n;
    of.metrics.pools.push_back(pool);
  }
  return {of};
}

}  // namespace

TEST(each_process_tells_its_metrics_and_any_can_read_them) {
  const Folder folder;
  const auto ledger = folder.join("server");
  const int cpu = ledger->device("cpu");
  ledger->tell_metrics(told(cpu, 10, 2));
  const auto other = folder.join("worker");
  other->tell_metrics(told(cpu, 30, 1));
  other->tell_metrics(told(cpu, 20, LedgerRows::kMost));  // it takes their place
  const auto workers = ledger->read_metrics();
  CHECK_EQ(workers.size(), 3u);
  CHECK_EQ(workers[0].slot, -1);
  CHECK(workers[0].devices.empty());
  CHECK_EQ(workers[1].name, "server");
  CHECK_EQ(workers[2].name, "worker");
  CHECK_EQ(workers[2].pid, static_cast<int>(getpid()));
  const Metrics& mine = workers[1].devices.at(0).metrics;
  CHECK_EQ(mine.device.figures[kAllocated], 10);
  CHECK_EQ(mine.device.refusals[1], 10);
  CHECK_EQ(mine.pools.size(), 2u);
  CHECK_EQ(mine.pools[1].label, "label 1");
  CHECK_EQ(mine.pools[1].metrics.figures[kAllocated], 11);
  CHECK_EQ(workers[2].devices.at(0).metrics.pools.size(), LedgerRows::kMost);
}

TEST(counters_of_processes_that_have_ended_stay) {
  const Folder folder;
  const auto ledger = folder.join("server");
  const int cpu = ledger->device("cpu");
  for (int i = 0; i < 3; ++i) {
    CHECK(ended_well(in_child([&] {
      ledger->after_fork_in_child();
      ledger->tell_metrics(told(cpu, 5, 1));
      return true;  // without a word
    })));
  }
  const auto workers = ledger->read_metrics();
  CHECK_EQ(workers.size(), 2u);
  const Metrics& ended = workers[0].devices.at(0).metrics;
  CHECK_EQ(ended.device.refusals[1], 15);
  CHECK_EQ(ended.device.figures[kAllocated], 0);
  CHECK_EQ(ended.pools.at(0).label, "label 0");
  CHECK_EQ(ended.pools.at(0).metrics.figures[kPressureCalls], 15);
  CHECK_EQ(ended.pools.at(0).metrics.figures[kAllocated], 0);
  CHECK(workers[1].devices.empty());  // this one has told nothing
}
