// One limit for many processes: exact under races, and whole when one is killed.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/ledger_fixtures.h"
#include "backend/shared_ledger.h"
#include "check.h"
#include "common/errors.h"

using ledger_fixtures::ended_well;
using ledger_fixtures::Folder;
using ledger_fixtures::in_child;
using mempool::ConfigError;
using mempool::kNoLimit;
using mempool::SharedLedger;

namespace {

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
