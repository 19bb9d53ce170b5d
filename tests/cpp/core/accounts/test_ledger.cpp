// The ledger: charges, limits, leases and statistics of accounts.
#include <algorithm>
#include <array>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "core/accounts/ledger.h"

using mempool::Account;
using mempool::AccountRegistry;
using mempool::Amounts;
using mempool::BlockSize;
using mempool::kNoLimit;
using mempool::Ledger;
using mempool::OomReason;
using mempool::Shard;
using mempool::Shards;
using Outcome = Ledger::Charge::Outcome;

namespace {
// Both steps of a charge, as for a block that was found.
Ledger::Charge charge(Ledger& ledger, Account* account, std::size_t rounded, std::size_t asked) {
  if (account != nullptr) {
    const Ledger::Charge reserved = ledger.reserve(account, rounded);
    if (reserved.outcome != Outcome::charged) return reserved;
  }
  return ledger.confirm(account, {rounded, asked}, nullptr, false);
}
}  // namespace

TEST(a_charge_goes_up_the_chain_or_nowhere) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const model = accounts.open("model", nullptr, nullptr, false, 1000, kNoLimit);
  Account* const request = accounts.open("request", model, nullptr, false, kNoLimit, kNoLimit);
  CHECK(charge(ledger, request, 960, 950).outcome == Outcome::charged);
  const Ledger::Charge refused = charge(ledger, request, 64, 1);
  CHECK(refused.outcome == Outcome::refused);
  CHECK(refused.pool == model);
  CHECK_EQ(refused.allocated, 960u);
  CHECK_EQ(refused.limit, 1000u);
  CHECK_EQ(accounts.read(*request).blocks.bytes.current, 960);
  CHECK_EQ(accounts.read(*model).blocks.requested.current, 950);
  CHECK_EQ(ledger.read_stats().blocks.all.bytes.current, 960);
  CHECK(charge(ledger, request, 40, 40).outcome == Outcome::charged);
  ledger.uncharge(request->id, {960, 950}, nullptr);
  CHECK_EQ(accounts.read(*model).blocks.bytes.current, 40);
  CHECK_EQ(accounts.read(*model).blocks.bytes.peak, 1000);
  CHECK_EQ(accounts.read(*model).blocks.bytes.freed, 960);
}

TEST(a_closed_pool_goes_with_its_last_block_and_its_id_is_used_again) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const parent = accounts.open("parent", nullptr, nullptr, false, kNoLimit, kNoLimit);
  Account* const pool = accounts.open("pool", parent, nullptr, false, kNoLimit, kNoLimit);
  const std::uint32_t id = pool->id;
  charge(ledger, pool, 64, 64);
  accounts.close(*pool);
  CHECK(charge(ledger, pool, 64, 64).outcome == Outcome::closed);
  CHECK(accounts.drop(*pool) == nullptr);
  CHECK(accounts.drop(*parent) == nullptr);  // its child still has a block
  CHECK(ledger.uncharge(id, {64, 64}, nullptr).done == pool);
  CHECK(accounts.erase(pool) == parent);
  CHECK(accounts.erase(parent) == nullptr);
  const Account* const again = accounts.open("again", nullptr, nullptr, false, kNoLimit, kNoLimit);
  CHECK(again->id <= 2);
}

TEST(one_thread_alone_has_an_exact_peak) {
  constexpr std::size_t kLarge = mempool::kSmallPoolMax + 4096;
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Shards shards;
  const auto add = [&] {
    shards.small.add({1024, 1000});
    if (shards.small.is_ahead()) CHECK(ledger.settle(shards, true));
  };
  for (int i = 0; i < 10; ++i) add();
  for (int i = 0; i < 10; ++i) shards.small.subtract({1024, 1000});
  ledger.confirm(nullptr, {kLarge, kLarge - 1}, &shards, false);
  for (int i = 0; i < 3; ++i) add();
  ledger.fold(shards);
  const mempool::DeviceStats stats = ledger.read_stats();
  CHECK_EQ(stats.blocks.all.bytes.peak, static_cast<std::int64_t>(kLarge) + 3072);
  CHECK_EQ(stats.blocks.small.bytes.peak, 10240);
  CHECK_EQ(stats.blocks.all.count.peak, 10);
  CHECK_EQ(stats.blocks.small.requested.peak, 10000);
  CHECK_EQ(stats.blocks.all.bytes.current, static_cast<std::int64_t>(kLarge) + 3072);
  CHECK_EQ(stats.blocks.all.count.allocated, 14);
  CHECK_EQ(stats.blocks.small.bytes.freed, 10240);
  CHECK_EQ(stats.blocks.large.requested.current, static_cast<std::int64_t>(kLarge) - 1);
}

namespace {

// Threads of which each does one thing at a time: whatever the order, no peak is missed, and of large blocks none is
// made up.
struct Threads {
  static constexpr std::size_t kCount = 4;

  void add(std::size_t thread, std::size_t bytes) { add(thread, bytes, bytes - 1); }
  void add(std::size_t thread, std::size_t bytes, std::size_t asked) {
    const BlockSize size{bytes, asked};
    Shard& shard = shards[thread].of(size.is_small());
    shard.add(size);
    now.add({1, static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(asked)});
    high.count = std::max(high.count, now.count);
    high.bytes = std::max(high.bytes, now.bytes);
    high.requested = std::max(high.requested, now.requested);
    if (!shard.is_ahead() || ledger.settle(shards[thread], size.is_small())) return;
    for (std::size_t other = 0; other < kCount; ++other) {
      if (other != thread) ledger.fold(shards[other]);
    }
    ledger.fold(shards[thread]);
    ledger.suspend_leases();
    ++recalls;
  }
  void subtract(std::size_t thread, std::size_t bytes) { subtract(thread, bytes, bytes - 1); }
  void subtract(std::size_t thread, std::size_t bytes, std::size_t asked) {
    const BlockSize size{bytes, asked};
    Shard& shard = shards[thread].of(size.is_small());
    shard.subtract(size);
    now.subtract({1, static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(asked)});
    if (shard.is_behind()) ledger.ease(shards[thread], size.is_small());
  }

  AccountRegistry accounts;
  Ledger ledger{accounts};
  std::array<Shards, kCount> shards;
  Amounts now;
  Amounts high;
  int recalls = 0;
};

}  // namespace

TEST(leases_never_hide_a_peak) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    Threads threads;
    std::mt19937 random(seed);
    std::vector<std::pair<std::size_t, std::size_t>> live;
    std::int64_t leased_steps = 0;
    for (int step = 0; step < 3000; ++step) {
      if (live.size() < 2 || (live.size() < 12 && random() % 2 == 0)) {
        const std::size_t bytes = (std::size_t{2} << 20) + (random() % 8) * (std::size_t{1} << 20);
        live.emplace_back(random() % Threads::kCount, bytes);
        threads.add(live.back().first, bytes);
      } else {
        std::swap(live[random() % live.size()], live.back());
        threads.subtract(live.back().first, live.back().second);
        live.pop_back();
      }
      for (const Shards& shards : threads.shards) leased_steps += shards.large.lease.bytes > 0;
    }
    for (Shards& shards : threads.shards) threads.ledger.fold(shards);
    const mempool::DeviceStats stats = threads.ledger.read_stats();
    CHECK_EQ(stats.blocks.large.bytes.peak, threads.high.bytes);
    CHECK_EQ(stats.blocks.all.bytes.peak, threads.high.bytes);
    CHECK_EQ(stats.blocks.all.count.peak, threads.high.count);
    CHECK_EQ(stats.blocks.all.requested.peak, threads.high.requested);
    CHECK_EQ(stats.blocks.all.bytes.current, threads.now.bytes);
    CHECK(leased_steps > 1000);
    CHECK(threads.recalls > 0);
  }
}

TEST(peaks_are_never_too_low_and_at_most_a_fold_a_thread_too_high) {
  struct Live {
    std::size_t thread, bytes, asked;
  };
  for (unsigned seed = 0; seed < 20; ++seed) {
    Threads threads;
    std::mt19937 random(seed);
    std::vector<Live> live;
    std::int64_t leased_steps = 0;
    for (int step = 0; step < 20000; ++step) {
      const bool falls = step / 2000 % 2 == 1;
      if (live.empty() || random() % 8 < (falls ? 3u : 5u)) {
        const unsigned kind = random() % 16;
        const std::size_t bytes = kind == 0 ? std::size_t{3} << 20 : kind < 8 ? 64 : 64 + random() % 16384;
        live.push_back({random() % Threads::kCount, bytes, 1 + random() % bytes});
        threads.add(live.back().thread, bytes, live.back().asked);
      } else {
        std::swap(live[random() % live.size()], live.back());
        const Live& gone = live.back();
        const bool by_another = random() % 4 == 0;
        threads.subtract(by_another ? random() % Threads::kCount : gone.thread, gone.bytes, gone.asked);
        live.pop_back();
      }
      for (const Shards& shards : threads.shards) leased_steps += shards.small.lease.bytes > 0;
    }
    for (Shards& shards : threads.shards) threads.ledger.fold(shards);
    const mempool::DeviceStats stats = threads.ledger.read_stats();
    constexpr std::int64_t kKinds = 2;
    constexpr std::int64_t kBytes = kKinds * static_cast<std::int64_t>(Threads::kCount) * mempool::kFoldBytes;
    constexpr std::int64_t kBlocks = kKinds * static_cast<std::int64_t>(Threads::kCount) * mempool::kFoldBlocks;
    CHECK(stats.blocks.all.bytes.peak >= threads.high.bytes);
    CHECK(stats.blocks.all.bytes.peak <= threads.high.bytes + kBytes);
    CHECK(stats.blocks.all.requested.peak >= threads.high.requested);
    CHECK(stats.blocks.all.requested.peak <= threads.high.requested + kBytes);
    CHECK(stats.blocks.all.count.peak >= threads.high.count);
    CHECK(stats.blocks.all.count.peak <= threads.high.count + kBlocks);
    CHECK_EQ(stats.blocks.all.bytes.current, threads.now.bytes);
    CHECK(leased_steps > 1000);
  }
}

TEST(a_lease_of_blocks_alone_is_a_lease) {
  Threads threads;
  threads.add(0, 192 << 10);
  for (int i = 0; i < 5000; ++i) threads.add(0, 64);
  for (int i = 0; i < 4000; ++i) threads.subtract(0, 64);
  threads.ledger.fold(threads.shards[0]);
  threads.subtract(1, 192 << 10);  // so far behind in bytes that its lease of blocks is one of no bytes
  for (int i = 0; i < 2900; ++i) threads.add(1, 64);
  for (int i = 0; i < 3100; ++i) threads.add(0, 64);
  for (int i = 0; i < 3100; ++i) threads.subtract(0, 64);
  for (Shards& shards : threads.shards) threads.ledger.fold(shards);
  CHECK_EQ(threads.high.count, 7000);
  CHECK_EQ(threads.ledger.read_stats().blocks.all.count.peak, 7000);
}

TEST(handing_many_small_blocks_for_a_large_one_does_not_make_up_peaks) {
  Threads threads;
  for (int round = 0; round < 200; ++round) {  // bytes balance in each thread, blocks do not
    for (int i = 0; i < 512; ++i) threads.add(0, 64, round % 2 == 0 ? 64 : 1);
    for (int i = 0; i < 512; ++i) threads.subtract(1, 64, round % 2 == 0 ? 64 : 1);
    threads.add(1, 32 << 10);
    threads.subtract(0, 32 << 10);
  }
  for (Shards& shards : threads.shards) threads.ledger.fold(shards);
  const mempool::DeviceStats stats = threads.ledger.read_stats();
  CHECK(stats.blocks.all.count.peak <= threads.high.count + mempool::kFoldBlocks);
  CHECK(stats.blocks.all.requested.peak <= threads.high.requested + mempool::kFoldBytes);
}

TEST(two_threads_at_their_common_peak_lease_and_touch_nothing_shared) {
  Threads threads;
  constexpr std::size_t kBlock = std::size_t{4} << 20;
  for (const std::size_t thread : {0u, 1u}) threads.add(thread, kBlock);
  for (const std::size_t thread : {0u, 1u}) threads.subtract(thread, kBlock);
  for (int i = 0; i < 100; ++i) {  // past the refusals that follow a recall
    for (const std::size_t thread : {0u, 1u}) threads.add(thread, kBlock);
    for (const std::size_t thread : {0u, 1u}) threads.subtract(thread, kBlock);
  }
  const int recalls = threads.recalls;
  for (int i = 0; i < 100; ++i) {
    for (const std::size_t thread : {0u, 1u}) {
      threads.shards[thread].large.add({kBlock, kBlock - 1});
      CHECK(!threads.shards[thread].large.is_ahead());
    }
    for (const std::size_t thread : {0u, 1u}) {
      threads.shards[thread].large.subtract({kBlock, kBlock - 1});
      CHECK(!threads.shards[thread].large.is_behind());
    }
  }
  CHECK_EQ(threads.recalls, recalls);
}

// Each thread goes up and down by itself, now together and now in turn: it asks the ledger a number of times that grows
// with the logarithm of the way, and hardly ever all threads are folded.
TEST(threads_that_go_up_and_down_hardly_meet_at_the_ledger) {
  Threads threads;
  constexpr std::size_t kBlock = std::size_t{1} << 20;
  constexpr int kHigh = 256;
  const auto turn = [&](int lag, auto count) {
    for (int step = 0; step < 2 * kHigh + 3 * lag; ++step) {
      for (std::size_t thread = 0; thread < Threads::kCount; ++thread) {
        const int at = step - static_cast<int>(thread) * lag;
        if (at < 0 || at >= 2 * kHigh) continue;
        const Amounts before = threads.shards[thread].small.lease;
        at < kHigh ? threads.add(thread, kBlock) : threads.subtract(thread, kBlock);
        count(before, threads.shards[thread].small.lease);
      }
    }
  };
  const auto no_count = [](const Amounts&, const Amounts&) {};
  turn(0, no_count);
  turn(0, no_count);
  int changes = 0;
  const int recalls = threads.recalls;
  for (const int lag : {0, 32, 64, 128, 256}) {
    turn(lag, [&changes](const Amounts& before, const Amounts& after) { changes += before.bytes != after.bytes; });
  }
  CHECK(threads.recalls - recalls <= 8);
  CHECK(changes < static_cast<int>(5 * Threads::kCount) * 40);  // of 512 steps
  CHECK_EQ(threads.high.count, static_cast<std::int64_t>(Threads::kCount) * kHigh);
  for (Shards& shards : threads.shards) threads.ledger.fold(shards);
  CHECK_EQ(threads.ledger.read_stats().blocks.all.count.peak, threads.high.count);
}

TEST(a_soft_limit_fires_once_for_each_crossing) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const pool = accounts.open("pool", nullptr, nullptr, false, kNoLimit, 100);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 0u);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 28u);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 0u);
  ledger.uncharge(pool->id, {64, 64}, nullptr);
  ledger.uncharge(pool->id, {64, 64}, nullptr);
  CHECK_EQ(charge(ledger, pool, 64, 64).soft_over, 28u);
}

TEST(a_reservation_counts_toward_the_limit_and_nowhere_else) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const pool = accounts.open("pool", nullptr, nullptr, false, 100, kNoLimit);
  CHECK(ledger.reserve(pool, 64).outcome == Outcome::charged);
  CHECK(ledger.reserve(pool, 64).outcome == Outcome::refused);
  CHECK(!accounts.set_limit(*pool, 63));
  CHECK_EQ(accounts.read(*pool).blocks.bytes.current, 0);
  CHECK(accounts.drop(*pool) == nullptr);
  ledger.cancel(pool, 64);
  CHECK_EQ(accounts.read(*pool).blocks.bytes.peak, 0);
  CHECK_EQ(accounts.read(*pool).blocks.bytes.allocated, 0);
  CHECK_EQ(ledger.read_stats().blocks.all.bytes.peak, 0);
}

TEST(a_refusal_counts_for_the_asker_and_for_the_pool_that_refused) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const parent = accounts.open("parent", nullptr, nullptr, false, 10, kNoLimit);
  Account* const child = accounts.open("child", parent, nullptr, false, kNoLimit, kNoLimit);
  ledger.count_oom(child, parent, OomReason::pool_limit);
  ledger.count_oom(parent, parent, OomReason::pool_limit);
  CHECK_EQ(accounts.read(*child).ooms, 1);
  CHECK_EQ(accounts.read(*parent).ooms, 2);
  CHECK_EQ(ledger.read_stats().ooms(), 2);
}
