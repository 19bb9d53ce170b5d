// What the device holds, under its limit, the budget of several processes and what another allocator holds.
#include "check.h"
#include "common/fork_generation.h"
#include "core/accounts/ledger.h"
#include "core/pages/refusal.h"

using mempool::AccountRegistry;
using mempool::Ledger;

TEST(held_bytes_never_pass_the_device_limit) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  CHECK(ledger.set_limit(100));
  CHECK(ledger.try_hold(60) == Ledger::Hold::counted);
  CHECK(ledger.try_hold(41) == Ledger::Hold::over_limit);
  CHECK(ledger.try_hold(40) == Ledger::Hold::counted);
  CHECK(!ledger.set_limit(99));
  CHECK_EQ(ledger.limit(), 100u);
  ledger.unhold(50);
  CHECK(ledger.set_limit(50));
  CHECK(ledger.try_hold(1) == Ledger::Hold::over_limit);
}

namespace {

// A budget of 100 bytes, of which others hold some.
class SmallBudget final : public mempool::Budget {
 public:
  bool try_hold(std::size_t bytes) noexcept override {
    if (bytes > 100 - mine - others) return false;
    mine += bytes;
    return true;
  }
  void unhold(std::size_t bytes) noexcept override { mine -= bytes; }
  bool has_place() noexcept override { return is_counted; }
  std::size_t limit() const noexcept override { return 100; }
  std::size_t held() noexcept override { return mine + others; }

  std::size_t mine = 0;
  std::size_t others = 0;
  bool is_counted = true;
};

}  // namespace

TEST(a_budget_that_cannot_count_a_process_is_not_taken_for_one_that_is_used_up) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  SmallBudget budget;
  CHECK(ledger.join(budget));
  const mempool::OomInfo used_up = mempool::facts_of(mempool::Refusal::budget, ledger);
  CHECK(used_up.reason == mempool::OomReason::shared_limit);
  CHECK_EQ(used_up.limit, 100u);
  budget.is_counted = false;
  const mempool::OomInfo uncounted = mempool::facts_of(mempool::Refusal::budget, ledger);
  CHECK(uncounted.reason == mempool::OomReason::ledger_full);
  CHECK_EQ(uncounted.limit, mempool::kNoLimit);
}

TEST(a_budget_counts_what_was_held_before_it_and_whatever_is_held_later) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  SmallBudget budget;
  CHECK(ledger.try_hold(40) == Ledger::Hold::counted);
  budget.others = 61;
  CHECK(!ledger.join(budget));
  CHECK(ledger.budget() == nullptr);
  CHECK_EQ(budget.mine, 0u);
  budget.others = 50;
  CHECK(ledger.join(budget));
  CHECK_EQ(budget.mine, 40u);
  CHECK_EQ(ledger.room(), 10u);
  CHECK(ledger.try_hold(11) == Ledger::Hold::over_budget);
  CHECK_EQ(ledger.held(), 40u);
  CHECK(ledger.try_hold(10) == Ledger::Hold::counted);
  ledger.unhold(30);
  Ledger::Reserved reserved;
  ledger.count_commit(20, 0, reserved);
  ledger.count_decommit(15, 0, 0, reserved);
  CHECK_EQ(ledger.held(), 5u);
  CHECK_EQ(budget.mine, 5u);
}

TEST(what_a_forked_child_gives_back_is_uncounted_only_if_it_has_taken_it) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  SmallBudget budget;
  Ledger::Reserved reserved;
  CHECK(ledger.join(budget));
  const auto commit = [&](std::size_t bytes) {
    CHECK(ledger.try_hold(bytes) == Ledger::Hold::counted);
    ledger.count_commit(bytes, 0, reserved);
    return mempool::fork_generation().load();
  };
  const std::uint32_t before = commit(40);
  mempool::fork_generation().fetch_add(1);  // as in a child
  ledger.after_fork_in_child();
  budget.mine = 0;
  budget.others = 40;
  const std::uint32_t own = commit(30);
  ledger.count_decommit(40, 0, before, reserved);
  CHECK_EQ(budget.mine, 30u);
  ledger.count_decommit(30, 0, own, reserved);
  CHECK_EQ(budget.mine, 0u);
  CHECK_EQ(ledger.held(), 0u);
}

TEST(the_narrower_of_limit_and_budget_holds) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  SmallBudget budget;
  CHECK(ledger.join(budget));
  CHECK_EQ(ledger.most_held(), 100u);
  CHECK(ledger.set_limit(30));
  CHECK_EQ(ledger.most_held(), 30u);
  CHECK(ledger.try_hold(31) == Ledger::Hold::over_limit);
  CHECK_EQ(budget.mine, 0u);
  budget.others = 90;
  CHECK_EQ(ledger.room(), 10u);
  CHECK(ledger.try_hold(11) == Ledger::Hold::over_budget);
}

TEST(what_is_held_outside_counts_in_limit_and_budget_and_in_no_figure) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  SmallBudget budget;
  CHECK(ledger.join(budget));
  CHECK(ledger.set_limit(80));
  ledger.set_outside(50);
  CHECK_EQ(ledger.held(), 0u);
  CHECK_EQ(ledger.room(), 30u);
  CHECK_EQ(budget.mine, 50u);
  CHECK(ledger.try_hold(31) == Ledger::Hold::over_limit);
  CHECK(ledger.try_hold(30) == Ledger::Hold::counted);
  CHECK(!ledger.set_limit(79));
  ledger.set_outside(90);  // more than the budget has room for: it counts the rest when it can
  CHECK_EQ(budget.mine, 80u);
  CHECK_EQ(ledger.room(), 0u);
  CHECK(ledger.try_hold(0) == Ledger::Hold::over_limit);
  ledger.set_outside(20);
  CHECK_EQ(budget.mine, 50u);
  CHECK(ledger.set_limit(50));
  ledger.after_fork_in_child();
  CHECK_EQ(ledger.outside(), 0u);
  ledger.set_outside(0);
  CHECK_EQ(budget.mine, 50u);
}
