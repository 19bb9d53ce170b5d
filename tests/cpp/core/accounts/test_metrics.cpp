// Figures of labelled pools, which are counted with each block.
#include <string>
#include <vector>

#include "check.h"
#include "common/errors.h"
#include "core/accounts/account_registry.h"
#include "core/accounts/ledger.h"
#include "core/accounts/metrics.h"

using mempool::Account;
using mempool::AccountRegistry;
using mempool::BlockSize;
using mempool::ConfigError;
using mempool::kNoLimit;
using mempool::Ledger;
using mempool::OomReason;
using mempool::PoolGroup;
using mempool::PoolGroups;

namespace {

Account* open(AccountRegistry& accounts, Account* parent, const std::string& label, std::size_t limit = kNoLimit) {
  return accounts.open("pool", parent, nullptr, false, limit, kNoLimit, {.label = label});
}

void charge(Ledger& ledger, Account* pool, std::size_t bytes) {
  CHECK(ledger.reserve(pool, bytes).outcome == Ledger::Charge::Outcome::charged);
  ledger.confirm(pool, {bytes, bytes - 1}, nullptr, true);
}

PoolGroup group(const AccountRegistry& accounts, const std::string& label) {
  for (const PoolGroup& each : accounts.groups()) {
    if (each.label == label) return each;
  }
  CHECK(false);
  return {};
}

std::int64_t bytes(const AccountRegistry& accounts, const std::string& label) {
  return group(accounts, label).counts.blocks.bytes.current;
}

void end(AccountRegistry& accounts, Account* pool) {
  CHECK(accounts.drop(*pool) == pool);
  accounts.erase(pool);
}

}  // namespace

TEST(a_group_counts_each_block_of_its_pools_and_those_below_once) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const model = open(accounts, nullptr, "model");
  Account* const request = open(accounts, model, "");
  Account* const again = open(accounts, request, "model");  // the same label, below another of it
  Account* const part = open(accounts, again, "part");
  Account* const second = open(accounts, nullptr, "model");
  Account* const plain = open(accounts, nullptr, "");
  charge(ledger, model, 64);
  charge(ledger, request, 128);
  charge(ledger, again, 256);
  charge(ledger, part, 512);
  charge(ledger, second, 1024);
  charge(ledger, plain, 2048);
  CHECK_EQ(bytes(accounts, "model"), 64 + 128 + 256 + 512 + 1024);
  CHECK_EQ(bytes(accounts, "part"), 512);
  CHECK_EQ(bytes(accounts, "other"), 2048);
  CHECK_EQ(group(accounts, "model").counts.blocks.requested.current, 64 + 128 + 256 + 512 + 1024 - 5);
  CHECK_EQ(group(accounts, "model").pools, 4);
  CHECK_EQ(group(accounts, "model").heads, 2);
  ledger.uncharge(part->id, {512, 511}, nullptr);
  CHECK_EQ(bytes(accounts, "model"), 64 + 128 + 256 + 1024);
  CHECK_EQ(bytes(accounts, "part"), 0);
  CHECK_EQ(group(accounts, "model").counts.blocks.bytes.peak, 64 + 128 + 256 + 512 + 1024);
}

TEST(a_group_knows_the_limits_of_its_pools_as_they_come_change_and_go) {
  AccountRegistry accounts;
  const auto limit = [&] { return mempool::metrics_of(group(accounts, "model"), false).figures[5]; };
  Account* const one = open(accounts, nullptr, "model", 100);
  Account* const two = open(accounts, nullptr, "model", 50);
  open(accounts, one, "", 10);  // within that of its parent
  CHECK_EQ(std::string(mempool::kPoolFigures[5].name), "limit_bytes");
  CHECK_EQ(limit(), 150);
  CHECK(accounts.set_limit(*one, 200));
  CHECK_EQ(limit(), 250);
  CHECK(accounts.set_limit(*two, kNoLimit));
  CHECK_EQ(limit(), -1);
  end(accounts, two);
  CHECK_EQ(limit(), 200);
}

TEST(a_refusal_counts_by_its_reason_once_in_each_group) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const app = open(accounts, nullptr, "app", 10);
  Account* const request = open(accounts, app, "");
  Account* const model = open(accounts, app, "model");
  ledger.count_oom(request, app, OomReason::pool_limit);
  ledger.count_oom(model, app, OomReason::pool_limit);
  ledger.count_oom(model, nullptr, OomReason::device_limit);
  ledger.count_pressure_call(model, app);
  const auto refused = [&](const char* label, OomReason why) {
    return group(accounts, label).counts.refusals[static_cast<std::size_t>(why)];
  };
  CHECK_EQ(refused("app", OomReason::pool_limit), 2);
  CHECK_EQ(refused("app", OomReason::device_limit), 0);
  CHECK_EQ(refused("model", OomReason::pool_limit), 1);
  CHECK_EQ(refused("model", OomReason::device_limit), 1);
  CHECK_EQ(group(accounts, "app").counts.pressure_calls, 1);
  CHECK_EQ(ledger.read_stats().ooms(), 3);
}

TEST(a_process_has_so_many_labels_and_those_without_pools_make_way) {
  AccountRegistry accounts;
  AccountRegistry others;  // of another device: they count together
  std::vector<Account*> pools;
  for (std::size_t i = 0; i < PoolGroups::kMost; ++i) {
    pools.push_back(open(i % 2 == 0 ? accounts : others, nullptr, "label " + std::to_string(i)));
  }
  try {
    open(accounts, nullptr, "one more");
    CHECK(false);
  } catch (const ConfigError&) {
    CHECK_EQ(accounts.groups().size(), 1 + PoolGroups::kMost / 2);
  }
  open(accounts, nullptr, "");  // what has no label needs none
  CHECK_EQ(group(accounts, "other").pools, 1);
  open(accounts, nullptr, "label 0");  // it is known
  end(accounts, pools[2]);
  CHECK_EQ(group(accounts, "label 2").pools, 0);  // it stays, with its figures
  open(accounts, nullptr, "one more");
  CHECK_EQ(group(accounts, "one more").pools, 1);
  CHECK_EQ(accounts.groups().size(), 1 + PoolGroups::kMost / 2);
}

TEST(a_peak_of_a_group_is_reset_with_that_of_its_only_pool) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const pool = open(accounts, nullptr, "model");
  charge(ledger, pool, 64);
  ledger.uncharge(pool->id, {64, 63}, nullptr);
  Account* const second = open(accounts, nullptr, "model");
  accounts.reset_peaks(*pool);
  CHECK_EQ(group(accounts, "model").counts.blocks.bytes.peak, 64);
  end(accounts, second);
  accounts.reset_peaks(*pool);
  CHECK_EQ(group(accounts, "model").counts.blocks.bytes.peak, 0);
}

TEST(what_a_forked_process_inherits_is_its_parents) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const pool = open(accounts, nullptr, "model");
  charge(ledger, pool, 64);
  ledger.count_oom(pool, nullptr, OomReason::device_limit);
  ledger.after_fork_in_child();
  charge(ledger, pool, 128);
  const auto own = mempool::metrics_of(group(accounts, "model"), true);
  const auto all = mempool::metrics_of(group(accounts, "model"), false);
  CHECK_EQ(own.figures[0], 128);
  CHECK_EQ(all.figures[0], 192);
  CHECK_EQ(own.refusals[1], 0);
  CHECK_EQ(all.refusals[1], 1);
  CHECK_EQ(ledger.read_metrics(true).figures[0], 128);
  CHECK_EQ(ledger.read_metrics(false).figures[0], 192);
  ledger.uncharge(pool->id, {64, 63}, nullptr);
  ledger.uncharge(pool->id, {128, 127}, nullptr);
  CHECK_EQ(mempool::metrics_of(group(accounts, "model"), true).figures[0], 0);
}
