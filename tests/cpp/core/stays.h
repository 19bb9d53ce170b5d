// Stays in pools on several threads, and a naive model of them: whom each thread's next block is charged to.
#pragma once

#include <array>
#include <exception>
#include <functional>
#include <memory>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/allocator/caching_allocator.h"

namespace fixtures {

// A thread that runs one function at a time for its caller, which waits meanwhile.
class Worker {
 public:
  Worker() : thread_([this] { work(); }) {}
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    action_ = nullptr;
    told_.release();
    thread_.join();
  }
  // Throws what `action` throws.
  void run(std::function<void()> action) {
    action_ = std::move(action);
    told_.release();
    done_.acquire();
    if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void work() {
    for (told_.acquire(); action_ != nullptr; told_.acquire()) {
      try {
        action_();
      } catch (...) {
        error_ = std::current_exception();
      }
      done_.release();
    }
  }

  std::binary_semaphore told_{0};
  std::binary_semaphore done_{0};
  std::function<void()> action_;
  std::exception_ptr error_;
  std::thread thread_;
};

// Pools go by the caller's numbers for them; 0 is the root. Throws std::logic_error when the allocator differs.
class Stays {
 public:
  static constexpr std::size_t kThreads = 3;  // the first is the caller's

  explicit Stays(mempool::CachingAllocator& allocator) : allocator_(allocator) {}
  Stays(const Stays&) = delete;
  Stays& operator=(const Stays&) = delete;
  ~Stays() {
    for (const std::vector<Stay>& stack : stacks_) {
      for (const Stay& stay : stack) allocator_.pools().leave(*stay.entry);
    }
  }

  template <typename Action>
  void on(std::size_t thread, Action action) {
    if (thread == 0) return action();
    if (workers_[thread] == nullptr) workers_[thread] = std::make_unique<Worker>();
    workers_[thread]->run(action);
  }

  // The number of the pool that the thread is in.
  std::size_t pool_of(std::size_t thread) const { return stacks_[thread].empty() ? 0 : stacks_[thread].back().pool; }
  std::size_t count() const { return stacks_[0].size() + stacks_[1].size() + stacks_[2].size(); }
  std::size_t count_in(std::size_t pool) const {
    std::size_t out = 0;
    for (const std::vector<Stay>& stack : stacks_) {
      for (const Stay& stay : stack) out += stay.pool == pool ? 1 : 0;
    }
    return out;
  }

  void enter(std::size_t thread, mempool::Account* account, std::size_t pool) {
    Stay stay{std::make_unique<mempool::PoolEntry>(), pool};
    on(thread, [&] { allocator_.pools().enter(*stay.entry, account); });
    require(stay.entry->home() != nullptr, "a pool that was entered was not");
    stacks_[thread].push_back(std::move(stay));
  }

  // Any stay, also from the middle of a stack, is left by any thread, and its entry ends. Precondition: there is one.
  void leave(std::size_t which, std::size_t thread) {
    which %= count();
    std::size_t home = 0;
    for (; which >= stacks_[home].size(); ++home) which -= stacks_[home].size();
    const Stay left = std::move(stacks_[home][which]);
    stacks_[home].erase(stacks_[home].begin() + static_cast<std::ptrdiff_t>(which));
    on(thread, [&] { require(allocator_.pools().leave(*left.entry), "a stay was over before it was left"); });
    require_over(left);
  }

  // The thread leaves the pool that it is in.
  void leave_top(std::size_t thread) {
    std::size_t which = stacks_[thread].size() - 1;
    for (std::size_t before = 0; before < thread; ++before) which += stacks_[before].size();
    leave(which, thread);
  }

  // What leave_pools does: the thread leaves the pools that it has entered above a depth.
  void leave_above(std::size_t thread, std::size_t depth) {
    std::vector<Stay>& stack = stacks_[thread];
    const std::uint64_t mark = depth == 0              ? 0
                               : depth <= stack.size() ? stack[depth - 1].entry->order()
                                                       : mempool::PoolStack::mark();
    on(thread, [&] {
      std::size_t expected = stack.size();
      allocator_.pools().for_each_entry([&](mempool::PoolEntry& entry) {
        require(expected > 0 && stack[--expected].entry.get() == &entry, "a thread's entries are not those it made");
        if (entry.order() > mark)
          require(allocator_.pools().leave(entry), "an entry of a thread's own could not be left");
      });
      require(expected == 0, "a thread has lost an entry");
    });
    while (stack.size() > depth) {
      require_over(stack.back());
      stack.pop_back();
    }
  }

  // The thread ends in its pools, and another one takes its place. Not for the caller's.
  void end_thread(std::size_t thread) {
    if (thread == 0) return;
    workers_[thread] = nullptr;
    for (const Stay& stay : stacks_[thread]) require_over(stay);
    stacks_[thread].clear();
  }

 private:
  struct Stay {
    std::unique_ptr<mempool::PoolEntry> entry;
    std::size_t pool;
  };
  static void require(bool holds, const char* what) {
    if (!holds) throw std::logic_error(what);
  }
  void require_over(const Stay& stay) const {
    require(stay.entry->home() == nullptr && !allocator_.pools().leave(*stay.entry), "a stay that is over can be left");
  }

  mempool::CachingAllocator& allocator_;
  std::array<std::vector<Stay>, kThreads> stacks_;
  std::array<std::unique_ptr<Worker>, kThreads> workers_;  // made when they are needed; none for the caller's thread
};

}  // namespace fixtures
