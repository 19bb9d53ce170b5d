// The registry of accounts: which pools exist, and what keeps each alive.
#include <string>
#include <vector>

#include "check.h"
#include "core/accounts/account_registry.h"
#include "core/accounts/ledger.h"

using mempool::Account;
using mempool::AccountRegistry;
using mempool::kNoLimit;
using mempool::Ledger;

namespace {

Account* open(AccountRegistry& accounts, const char* name, Account* parent = nullptr, bool isolated = false) {
  return accounts.open(name, parent, nullptr, isolated, kNoLimit, kNoLimit);
}

}  // namespace

TEST(a_pool_in_use_by_a_thread_outlives_its_handle) {
  AccountRegistry accounts;
  Account* const pool = open(accounts, "pool");
  accounts.keep(pool);
  CHECK(accounts.drop(*pool) == nullptr);
  CHECK(accounts.release(pool) == pool);
}

TEST(the_root_pool_needs_nothing_to_keep_it) {
  AccountRegistry accounts;
  accounts.keep(nullptr);
  CHECK(accounts.release(nullptr) == nullptr);
  accounts.keep_for_block(0);
  const AccountRegistry::Ended ended = accounts.release_block(0);
  CHECK(ended.done == nullptr && ended.idle == nullptr);
  CHECK_EQ(accounts.name_of(0), "default");
}

TEST(accounts_are_listed_by_id_with_the_ids_of_their_parents) {
  AccountRegistry accounts;
  Account* const model = open(accounts, "model");
  Account* const gone = open(accounts, "gone");
  Account* const request = open(accounts, std::string(100, 'r').c_str(), model);
  CHECK(accounts.drop(*gone) == gone);
  CHECK(accounts.erase(gone) == nullptr);
  const std::vector<AccountRegistry::Listed> listed = accounts.list();
  CHECK_EQ(listed.size(), 2u);
  CHECK_EQ(listed[0].account.name, "model");
  CHECK_EQ(listed[0].parent_id, 0u);
  CHECK_EQ(listed[1].account.id, request->id);
  CHECK_EQ(listed[1].account.name, std::string(100, 'r'));
  CHECK_EQ(listed[1].parent_id, model->id);
  CHECK_EQ(accounts.name_of(request->id), request->name);
  CHECK_EQ(accounts.name_of(2), "default");  // an id that is free
}

TEST(a_pool_that_a_block_waits_for_is_kept_until_the_block_is_over) {
  AccountRegistry accounts;
  Account* const pool = open(accounts, "pool");
  accounts.keep_for_block(pool->id);
  CHECK(accounts.drop(*pool) == nullptr);
  CHECK(accounts.release_block(pool->id).done == pool);
  CHECK(accounts.erase(pool) == nullptr);
  CHECK(accounts.list().empty());
}

TEST(the_last_block_of_a_closed_isolated_pool_says_that_it_is_idle) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const pool = open(accounts, "pool", nullptr, true);
  Account* const inside = open(accounts, "inside", pool);
  for (int i = 0; i < 2; ++i) {
    CHECK(ledger.reserve(inside, 64).outcome == Ledger::Charge::Outcome::charged);
    ledger.confirm(inside, {64, 60}, nullptr, true);
  }
  CHECK(ledger.uncharge(inside->id, {64, 60}, nullptr).idle == nullptr);  // another is left
  accounts.close(*pool);
  const AccountRegistry::Ended ended = ledger.uncharge(inside->id, {64, 60}, nullptr);
  CHECK(ended.idle == pool);
  CHECK(ended.done == nullptr);
  CHECK(accounts.drop(*inside) == inside);
  CHECK(accounts.erase(inside) == nullptr);
  CHECK(accounts.drop(*pool) == nullptr);  // kept by the thread that clears it out
  CHECK(accounts.release(pool) == pool);
}

TEST(idle_pools_below_a_closed_one_are_found_one_by_one) {
  AccountRegistry accounts;
  Account* const top = open(accounts, "top");
  Account* const below = open(accounts, "below", top, true);
  open(accounts, "beside", nullptr, true);
  Account* const deep = open(accounts, "deep", open(accounts, "shared", below), true);
  std::vector<Account*> found;
  for (std::uint32_t next_id = 0; Account* const idle = accounts.next_idle(*top, next_id);) {
    found.push_back(idle);
    CHECK_EQ(accounts.read(*idle).users, 1u);
    CHECK(accounts.release(idle) == nullptr);
  }
  CHECK(found == (std::vector<Account*>{below, deep}));
}

TEST(a_soft_limit_that_is_passed_already_does_not_fire) {
  AccountRegistry accounts;
  Ledger ledger{accounts};
  Account* const pool = open(accounts, "pool");
  CHECK(ledger.reserve(pool, 128).outcome == Ledger::Charge::Outcome::charged);
  ledger.confirm(pool, {128, 128}, nullptr, true);
  accounts.set_soft_limit(*pool, 100);
  CHECK(ledger.reserve(pool, 64).outcome == Ledger::Charge::Outcome::charged);
  CHECK_EQ(ledger.confirm(pool, {64, 64}, nullptr, true).soft_over, 0u);
  CHECK(!accounts.set_limit(*pool, 191));
  CHECK(accounts.set_limit(*pool, 192));
  accounts.reset_peaks(*pool);
  CHECK_EQ(accounts.read(*pool).blocks.bytes.peak, 192);
}
