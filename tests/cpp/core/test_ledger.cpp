#include "check.h"
#include "core/ledger.h"

using mempool::Account;
using mempool::kNoLimit;
using mempool::Ledger;
using Outcome = Ledger::Charge::Outcome;

namespace {
// Both steps of a charge, as for a block that was found.
Ledger::Charge charge(Ledger& ledger, Account* account, std::size_t rounded, std::size_t asked) {
  if (account != nullptr) {
    const Ledger::Charge reserved = ledger.reserve(account, rounded);
    if (reserved.outcome != Outcome::charged) return reserved;
  }
  return ledger.confirm(account, true, rounded, asked, nullptr);
}
}  // namespace

TEST(a_charge_goes_up_the_chain_or_nowhere) {
  Ledger ledger;
  Account* const model = ledger.open("model", nullptr, nullptr, false, 1000, kNoLimit);
  Account* const request = ledger.open("request", model, nullptr, false, kNoLimit, kNoLimit);
  CHECK(charge(ledger, request, 960, 950).outcome == Outcome::charged);
  const Ledger::Charge refused = charge(ledger, request, 64, 1);
  CHECK(refused.outcome == Outcome::refused);
  CHECK(refused.pool == model);
  CHECK_EQ(refused.allocated, 960u);
  CHECK_EQ(refused.limit, 1000u);
  CHECK_EQ(ledger.read(*request).blocks.bytes.current, 960);
  CHECK_EQ(ledger.read(*model).blocks.requested.current, 950);
  CHECK_EQ(ledger.read_stats().blocks.all.bytes.current, 960);
  CHECK(charge(ledger, request, 40, 40).outcome == Outcome::charged);
  ledger.uncharge(request->id, true, 960, 950, nullptr);
  CHECK_EQ(ledger.read(*model).blocks.bytes.current, 40);
  CHECK_EQ(ledger.read(*model).blocks.bytes.peak, 1000);
  CHECK_EQ(ledger.read(*model).blocks.bytes.freed, 960);
}

TEST(a_closed_pool_goes_with_its_last_block_and_its_id_is_used_again) {
  Ledger ledger;
  Account* const parent = ledger.open("parent", nullptr, nullptr, false, kNoLimit, kNoLimit);
  Account* const pool = ledger.open("pool", parent, nullptr, false, kNoLimit, kNoLimit);
  const std::uint32_t id = pool->id;
  charge(ledger, pool, 64, 64);
  ledger.close(*pool);
  CHECK(charge(ledger, pool, 64, 64).outcome == Outcome::closed);
  CHECK(ledger.drop(*pool) == nullptr);
  CHECK(ledger.drop(*parent) == nullptr);  // its child still has a block
  CHECK(ledger.uncharge(id, true, 64, 64, nullptr) == pool);
  CHECK(ledger.erase(pool) == parent);
  CHECK(ledger.erase(parent) == nullptr);
  const Account* const again = ledger.open("again", nullptr, nullptr, false, kNoLimit, kNoLimit);
  CHECK(again->id <= 2);
}

TEST(one_thread_alone_has_an_exact_peak) {
  Ledger ledger;
  Ledger::Shard shard;
  for (int i = 0; i < 10; ++i) shard.add(1024, 1000);
  for (int i = 0; i < 10; ++i) shard.subtract(1024, 1000);
  ledger.confirm(nullptr, false, 5000, 4999, &shard);
  for (int i = 0; i < 3; ++i) shard.add(1024, 1000);
  ledger.fold(shard);
  const mempool::DeviceStats stats = ledger.read_stats();
  CHECK_EQ(stats.blocks.all.bytes.peak, 10240);
  CHECK_EQ(stats.blocks.all.bytes.current, 5000 + 3072);
  CHECK_EQ(stats.blocks.all.count.allocated, 14);
  CHECK_EQ(stats.blocks.small.bytes.freed, 10240);
  CHECK_EQ(stats.blocks.large.requested.current, 4999);
}

TEST(a_soft_limit_fires_once_for_each_crossing) {
  Ledger ledger;
  Account* const pool = ledger.open("pool", nullptr, nullptr, false, kNoLimit, 100);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 0u);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 28u);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 0u);
  ledger.uncharge(pool->id, true, 64, 64, nullptr);
  ledger.uncharge(pool->id, true, 64, 64, nullptr);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 28u);
}

TEST(held_bytes_never_pass_the_device_limit) {
  Ledger ledger;
  CHECK(ledger.set_limit(100));
  CHECK(ledger.try_hold(60));
  CHECK(!ledger.try_hold(41));
  CHECK(ledger.try_hold(40));
  CHECK(!ledger.set_limit(99));
  CHECK_EQ(ledger.limit(), 100u);
  ledger.unhold(50);
  CHECK(ledger.set_limit(50));
  CHECK(!ledger.try_hold(1));
}

TEST(a_reservation_counts_toward_the_limit_and_nowhere_else) {
  Ledger ledger;
  Account* const pool = ledger.open("pool", nullptr, nullptr, false, 100, kNoLimit);
  CHECK(ledger.reserve(pool, 64).outcome == Outcome::charged);
  CHECK(ledger.reserve(pool, 64).outcome == Outcome::refused);
  CHECK(!ledger.set_limit(*pool, 63));
  CHECK_EQ(ledger.read(*pool).blocks.bytes.current, 0);
  CHECK(ledger.drop(*pool) == nullptr);
  ledger.cancel(pool, 64);
  CHECK_EQ(ledger.read(*pool).blocks.bytes.peak, 0);
  CHECK_EQ(ledger.read(*pool).blocks.bytes.allocated, 0);
  CHECK_EQ(ledger.read_stats().blocks.all.bytes.peak, 0);
}

TEST(a_pool_in_use_by_a_thread_outlives_its_handle) {
  Ledger ledger;
  Account* const pool = ledger.open("pool", nullptr, nullptr, false, kNoLimit, kNoLimit);
  CHECK(ledger.switch_user(nullptr, pool) == nullptr);
  CHECK(ledger.drop(*pool) == nullptr);
  CHECK(ledger.switch_user(pool, nullptr) == pool);
}

TEST(a_refusal_counts_for_the_asker_and_for_the_pool_that_refused) {
  Ledger ledger;
  Account* const parent = ledger.open("parent", nullptr, nullptr, false, 10, kNoLimit);
  Account* const child = ledger.open("child", parent, nullptr, false, kNoLimit, kNoLimit);
  ledger.count_oom(child, parent);
  ledger.count_oom(parent, parent);
  CHECK_EQ(ledger.read(*child).ooms, 1);
  CHECK_EQ(ledger.read(*parent).ooms, 2);
  CHECK_EQ(ledger.read_stats().ooms, 2);
}
