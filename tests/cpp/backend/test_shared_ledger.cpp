// One limit for many processes: exact under races, whole when one is killed, gone with the last.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "backend/shared_ledger.h"
#include "check.h"
#include "common/errors.h"
#include "temporary_folder.h"

namespace fs = std::filesystem;
using mempool::ConfigError;
using mempool::kNoLimit;
using mempool::SharedLedger;

namespace {

// Where ledgers of a test are.
class Folder : public TemporaryFolder {
 public:
  std::unique_ptr<SharedLedger> join(const std::string& process = "test") const {
    return SharedLedger::join(path, "one", process);
  }
  bool is_empty() const { return fs::is_empty(path); }
};

// Runs in a child; ends with 0 where it returns true.
pid_t in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child != 0) return child;
  bool passed = false;
  try {
    passed = body();
  } catch (...) {
  }
  _exit(passed ? 0 : 1);
}

bool ended_well(pid_t child) {
  int status = -1;
  return waitpid(child, &status, 0) == child && status == 0;
}

// Whether a mutex comes free when its owner is killed: the kernel has to know of robust mutexes, which qemu-user does
// not tell it of.
bool robust_mutexes_work() {
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  void* const shared = mmap(nullptr, sizeof(pthread_mutex_t), kAccess, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  auto* const mutex = static_cast<pthread_mutex_t*>(shared);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(mutex, &attributes);
  const bool locked = ended_well(in_child([&] { return pthread_mutex_lock(mutex) == 0; }));
  const bool came_free = pthread_mutex_trylock(mutex) == EOWNERDEAD;
  if (came_free) {  // it is ours, and in this thread's list of robust mutexes until it is unlocked
    pthread_mutex_consistent(mutex);
    pthread_mutex_unlock(mutex);
  }
  munmap(shared, sizeof(pthread_mutex_t));
  return locked && came_free;
}

}  // namespace

TEST(a_limit_holds_to_the_byte) {
  const Folder folder;
  const auto ledger = folder.join();
  const int cpu = ledger->device("cpu");
  const int gpu = ledger->device("GPU-4");
  CHECK(cpu >= 0 && gpu >= 0 && cpu != gpu);
  CHECK_EQ(ledger->device("cpu"), cpu);
  CHECK_EQ(ledger->limit(cpu), kNoLimit);
  CHECK(ledger->try_hold(cpu, std::size_t{1} << 40));
  CHECK(!ledger->set_limit(cpu, 1000));
  ledger->unhold(cpu, std::size_t{1} << 40);
  CHECK(ledger->set_limit(cpu, 1000));
  CHECK(ledger->try_hold(cpu, 600));
  CHECK(!ledger->try_hold(cpu, 401));
  CHECK(!ledger->try_hold(cpu, kNoLimit));
  CHECK(ledger->try_hold(cpu, 400));
  CHECK(ledger->try_hold(gpu, 5000));
  CHECK_EQ(ledger->held(cpu), 1000u);
  ledger->unhold(cpu, 1000);
  CHECK_EQ(ledger->held(cpu), 0u);
  CHECK_EQ(ledger->peak(cpu), std::size_t{1} << 40);
}

TEST(processes_share_it_and_are_told_apart) {
  const Folder folder;
  const auto first = folder.join("first");
  const auto second = folder.join("second");
  const int cpu = first->device("cpu");
  CHECK(first->set_limit(cpu, 100));
  CHECK_EQ(second->limit(second->device("cpu")), 100u);
  CHECK(first->try_hold(cpu, 30));
  CHECK(second->try_hold(cpu, 70));
  CHECK(!first->try_hold(cpu, 1));
  const auto all = second->processes(cpu);
  CHECK_EQ(all.size(), 2u);
  CHECK_EQ(all[0].name, "first");
  CHECK_EQ(all[0].held, 30u);
  CHECK_EQ(all[1].peak, 70u);
  CHECK(all[1].is_alive && all[1].pid == getpid() && all[1].start_time > 0);
  CHECK_EQ(all[0].start_time, all[1].start_time);
  second->unhold(cpu, 70);
}

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

TEST(what_a_killed_process_held_comes_back) {
  const Folder folder;
  const auto ledger = folder.join();
  const int cpu = ledger->device("cpu");
  CHECK(ledger->set_limit(cpu, 100));
  int ready[2];
  CHECK_EQ(pipe(ready), 0);
  const pid_t child = in_child([&] {
    const auto own = folder.join("child");
    if (!own->try_hold(own->device("cpu"), 100)) return false;
    CHECK_EQ(write(ready[1], "x", 1), 1);
    pause();
    return false;
  });
  char byte = 0;
  CHECK_EQ(read(ready[0], &byte, 1), 1);
  CHECK(!ledger->try_hold(cpu, 1));
  kill(child, SIGKILL);
  CHECK(!ended_well(child));
  CHECK(ledger->try_hold(cpu, 100));
  const auto all = ledger->processes(cpu);
  CHECK_EQ(all.size(), 2u);
  CHECK(all[1].name == "child" && !all[1].is_alive && all[1].peak == 100 && all[1].held == 0);
  close(ready[0]);
  close(ready[1]);
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

TEST(processes_that_race_and_are_killed_never_pass_it) {
  if (!robust_mutexes_work()) SKIP("a mutex of a process that was killed stays locked here");
  const Folder folder;
  const auto ledger = folder.join("parent");
  const int cpu = ledger->device("cpu");
  constexpr std::size_t kLimit = 1000;
  CHECK(ledger->set_limit(cpu, kLimit));
  const char* const given = std::getenv("MEMPOOL_TEST_ROUNDS");
  const int rounds = given != nullptr ? std::atoi(given) : 60;
  std::mt19937 choose(7);
  for (int round = 0; round < rounds; ++round) {
    std::vector<pid_t> children;
    for (unsigned i = 0; i < 4; ++i) {
      children.push_back(in_child([&, i] {
        std::mt19937 random(static_cast<unsigned>(round) * 4 + i);
        std::unique_ptr<SharedLedger> joined;
        SharedLedger* own = ledger.get();
        if (i % 2 == 0) {
          own->after_fork_in_child();
        } else {
          joined = folder.join("joined");
          own = joined.get();
        }
        std::vector<std::size_t> kept;
        for (;;) {
          const std::size_t bytes = random() % 400 + 1;
          if (own->try_hold(cpu, bytes)) kept.push_back(bytes);
          if (own->held(cpu) > kLimit) return false;
          if (kept.size() > random() % 6) {
            own->unhold(cpu, kept.back());
            kept.pop_back();
          }
        }
      }));
    }
    for (int i = 0; i < 5; ++i) {
      usleep(choose() % 1000);
      CHECK(ledger->held(cpu) <= kLimit);
    }
    for (const pid_t child : children) kill(child, SIGKILL);
    for (const pid_t child : children) {
      int status = 0;
      CHECK_EQ(waitpid(child, &status, 0), child);
      CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    CHECK(ledger->try_hold(cpu, kLimit));  // nothing of theirs is left, no lock either
    ledger->unhold(cpu, kLimit);
  }
  CHECK(ledger->peak(cpu) <= kLimit);
}

TEST(there_is_room_for_so_many) {
  const Folder folder;
  std::vector<std::unique_ptr<SharedLedger>> all;
  for (int i = 0; i < SharedLedger::kMostProcesses; ++i) all.push_back(folder.join());
  CHECK_THROWS(ConfigError, folder.join());
  all.pop_back();
  CHECK(folder.join() != nullptr);
  for (int i = 0; i < SharedLedger::kMostDevices; ++i) CHECK_EQ(all[0]->device("GPU-" + std::to_string(i)), i);
  CHECK_EQ(all[0]->device("GPU-99"), -1);
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

TEST(the_first_limit_stays_until_somebody_sets_another) {
  const Folder folder;
  const auto ledger = folder.join();
  const int cpu = ledger->device("cpu");
  CHECK(ledger->try_hold(cpu, 50));
  CHECK(!ledger->set_first_limit(cpu, 49));
  CHECK(ledger->set_first_limit(cpu, 50));
  CHECK(ledger->set_first_limit(cpu, 10));
  CHECK_EQ(ledger->limit(cpu), 50u);
  CHECK(ledger->set_limit(cpu, kNoLimit));
  CHECK(ledger->set_first_limit(cpu, 50));  // as the processes that start later ask
  CHECK_EQ(ledger->limit(cpu), kNoLimit);
  CHECK_EQ(ledger->first_limit(cpu), 50u);
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
