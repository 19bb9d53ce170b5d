// Who is in a shared ledger: by name, by fork and without descriptors; and when the name goes.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "backend/ledger_fixtures.h"
#include "backend/shared_ledger.h"
#include "check.h"
#include "common/errors.h"

namespace fs = std::filesystem;
using ledger_fixtures::ended_well;
using ledger_fixtures::Folder;
using ledger_fixtures::in_child;
using mempool::ConfigError;
using mempool::kNoLimit;
using mempool::SharedLedger;

TEST(the_last_one_takes_the_name_away) {
  const Folder folder;
  auto first = folder.join();
  auto second = folder.join();
  const int cpu = first->device("cpu");
  CHECK(first->set_limit(cpu, 100));
  CHECK(first->try_hold(cpu, 100));
  first.reset();
  CHECK(second->try_hold(cpu, 100));
  const auto all = second->processes(cpu);
  CHECK_EQ(all.size(), 2u);
  CHECK(!all[0].is_alive);
  CHECK_EQ(all[0].peak, 100u);
  second.reset();
  CHECK(folder.is_empty());
  const auto third = folder.join();
  CHECK_EQ(third->limit(third->device("cpu")), kNoLimit);
}

TEST(all_are_killed_and_the_next_one_begins_anew) {
  const Folder folder;
  const pid_t child = in_child([&] {
    auto own = folder.join("child");
    const int cpu = own->device("cpu");
    if (!own->set_limit(cpu, 5) || !own->try_hold(cpu, 5)) return false;
    kill(getpid(), SIGKILL);
    return false;
  });
  CHECK(!ended_well(child));
  CHECK(!folder.is_empty());
  const auto ledger = folder.join();
  const int cpu = ledger->device("cpu");
  CHECK_EQ(ledger->limit(cpu), kNoLimit);
  CHECK_EQ(ledger->processes(cpu).size(), 1u);
}

TEST(a_forked_child_begins_at_nothing) {
  const Folder folder;
  const auto ledger = folder.join("parent");
  const int cpu = ledger->device("cpu");
  CHECK(ledger->set_limit(cpu, 100));
  CHECK(ledger->try_hold(cpu, 60));
  CHECK(ended_well(in_child([&] {
    ledger->after_fork_in_child();
    CHECK_EQ(ledger->held(cpu), 60u);
    CHECK_EQ(ledger->processes(cpu).size(), 1u);  // no slot before it needs one
    CHECK(!ledger->try_hold(cpu, 41));
    CHECK(ledger->try_hold(cpu, 40));
    CHECK_EQ(ledger->processes(cpu).size(), 2u);
    ledger->unhold(cpu, 40);
    CHECK_EQ(ledger->held(cpu), 60u);
    return true;
  })));
  CHECK_EQ(ledger->held(cpu), 60u);
  // The child's child, and a parent that ends before it.
  CHECK(ended_well(in_child([&] {
    ledger->after_fork_in_child();
    CHECK(ledger->try_hold(cpu, 40));
    return ended_well(in_child([&] {
      ledger->after_fork_in_child();
      CHECK(!ledger->try_hold(cpu, 1));
      CHECK_EQ(ledger->held(cpu), 100u);
      return true;
    }));
  })));
  CHECK(ledger->try_hold(cpu, 40));
}

TEST(a_child_that_has_not_joined_keeps_no_parent_alive) {
  const Folder folder;
  const auto ledger = folder.join("test");
  const int cpu = ledger->device("cpu");
  CHECK(ledger->set_limit(cpu, 10));
  int ready[2];
  CHECK_EQ(pipe(ready), 0);
  pid_t grandchild = 0;
  const pid_t child = in_child([&] {
    ledger->after_fork_in_child();
    CHECK(ledger->try_hold(cpu, 10));
    grandchild = in_child([&] {
      ledger->after_fork_in_child();
      pause();
      return true;
    });
    CHECK_EQ(write(ready[1], &grandchild, sizeof grandchild), static_cast<ssize_t>(sizeof grandchild));
    usleep(50'000);  // the grandchild is on its way
    kill(getpid(), SIGKILL);
    return false;
  });
  CHECK_EQ(read(ready[0], &grandchild, sizeof grandchild), static_cast<ssize_t>(sizeof grandchild));
  CHECK(!ended_well(child));
  CHECK(ledger->try_hold(cpu, 10));
  kill(grandchild, SIGKILL);
  close(ready[0]);
  close(ready[1]);
}

TEST(a_forked_child_without_a_slot_keeps_name_and_limit) {
  const Folder folder;
  auto ledger = folder.join();
  CHECK(ledger->set_limit(ledger->device("cpu"), 50));
  int go[2];
  CHECK(pipe(go) == 0);
  ledger->before_fork();
  const pid_t child = fork();
  if (child == 0) {
    ledger->after_fork_in_child();
    close(go[1]);
    char byte = 0;
    _exit(read(go[0], &byte, 1) == 0 && ledger->try_hold(0, 50) ? 0 : 1);
  }
  ledger->after_fork_in_parent();
  ledger->prepare_exit();
  CHECK(!folder.is_empty());
  ledger.reset();
  CHECK(!folder.is_empty());
  CHECK_EQ(folder.join()->limit(0), 50u);
  close(go[1]);
  CHECK(ended_well(child));
  close(go[0]);
}

// As a daemon does. It takes its slot only after that.
TEST(a_process_that_has_closed_every_descriptor_is_counted) {
  const Folder folder;
  const auto ledger = folder.join();
  const int cpu = ledger->device("cpu");
  CHECK(ledger->set_limit(cpu, 100));
  CHECK(ledger->try_hold(cpu, 10));
  int ready[2];
  int go[2];
  CHECK(pipe(ready) == 0 && pipe(go) == 0);
  const pid_t child = fork();
  if (child == 0) {
    ledger->after_fork_in_child();
    for (int file = 3; file < 64; ++file) {
      if (file != ready[1] && file != go[0]) close(file);
    }
    const int other = open("/dev/null", O_RDONLY);  // has the number of one that was closed
    bool passed = other >= 0 && ledger->try_hold(cpu, 60);
    for (int file = 3; file < 64; ++file) {
      if (file != ready[1] && file != go[0]) close(file);  // and once more, now with a slot
    }
    char byte = 1;
    passed = passed && write(ready[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1;
    passed = passed && ledger->try_hold(cpu, 20) && !ledger->try_hold(cpu, 20);
    _exit(passed ? 0 : 1);
  }
  char byte = 0;
  CHECK(read(ready[0], &byte, 1) == 1);
  CHECK(!ledger->try_hold(cpu, 31));  // its share is not swept: it lives
  CHECK_EQ(ledger->held(cpu), 70u);
  CHECK(write(go[1], &byte, 1) == 1);
  CHECK(ended_well(child));
  CHECK(ledger->try_hold(cpu, 90));
  for (const int file : {ready[0], ready[1], go[0], go[1]}) close(file);
}

TEST(the_name_goes_with_a_process_that_is_about_to_end_unless_another_is_there) {
  const Folder folder;
  const auto one = folder.join();
  {
    const auto two = folder.join();
    two->prepare_exit();
    CHECK(!folder.is_empty());
  }
  one->prepare_exit();
  CHECK(folder.is_empty());
}

TEST(ledgers_of_processes_that_were_killed_are_removed_and_those_in_use_stay) {
  const Folder folder;
  const auto age = [](const std::string& path) {
    const timespec then[2] = {{std::time(nullptr) - 100, 0}, {std::time(nullptr) - 100, 0}};
    CHECK(utimensat(AT_FDCWD, path.c_str(), then, 0) == 0);
  };
  const auto used = folder.join();
  const std::string dead = folder.path + "/dead";
  const pid_t child = in_child([&] {
    SharedLedger::join(folder.path, "dead", "test").release();
    return true;
  });
  CHECK(ended_well(child));
  SharedLedger::remove_ended(folder.path);
  CHECK(fs::exists(dead));  // it is too young
  age(dead);
  age(used->path());
  std::ofstream(folder.path + "/other") << "no ledger";
  age(folder.path + "/other");
  SharedLedger::remove_ended(folder.path);
  CHECK(!fs::exists(dead));
  CHECK(fs::exists(used->path()));
  CHECK(fs::exists(folder.path + "/other"));
  fs::remove(folder.path + "/other");
}

TEST(names_and_files_that_are_no_ledger) {
  const Folder folder;
  for (const char* const name : {"", ".", "..", "a/b", ".hidden", "a b"}) {
    CHECK_THROWS(ConfigError, SharedLedger::join(folder.path, name, ""));
  }
  CHECK_THROWS(std::system_error, SharedLedger::join(folder.path + "/none", "one", ""));
  const std::string path = folder.path + "/one";
  std::ofstream(path) << "no ledger";
  CHECK_THROWS(std::runtime_error, folder.join());  // others may read it
  CHECK_EQ(chmod(path.c_str(), 0600), 0);
  CHECK_THROWS(std::runtime_error, folder.join());  // and it is something else
  fs::remove(path);
  fs::create_symlink("/dev/null", path);
  CHECK_THROWS(std::system_error, folder.join());
}
