#include "replay/turns.h"

#include <algorithm>
#include <condition_variable>
#include <ctime>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "common/expects.h"

namespace mempool {
namespace {

class Turns {
 public:
  Turns(std::size_t steps, std::size_t threads, const Run& run) : steps_(steps), threads_(threads), run_(run) {}

  // The part of the thread of that number; returns when all is done.
  void play(std::size_t number) {
    while (await_turn(number)) {
      const double start = thread_cpu_seconds();
      std::exception_ptr error;
      try {
        const std::size_t first = next_;
        next_ = std::min(steps_, first + kStepsInARow);
        run_(first, next_, number);
      } catch (...) {
        error = std::current_exception();
      }
      seconds_ += thread_cpu_seconds() - start;
      give_turn(error);
    }
  }
  // What is not done yet is not done any more.
  void stop() { give_turn(nullptr, true); }
  // Expects that no thread plays any more.
  double finish() const {
    if (error_ != nullptr) std::rethrow_exception(error_);
    return seconds_;
  }

 private:
  bool await_turn(std::size_t number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_over_ || turn_ == number; });
    return !is_over_;
  }
  void give_turn(const std::exception_ptr& error, bool stops = false) {
    {
      const std::lock_guard guard(mutex_);
      if (error != nullptr) error_ = error;
      turn_ = (turn_ + 1) % threads_;
      is_over_ = is_over_ || stops || error != nullptr || next_ == steps_;
      if (threads_ == 1) return;
    }
    changed_.notify_all();
  }

  const std::size_t steps_;
  const std::size_t threads_;
  const Run& run_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t turn_ = 0;  // whose it is
  std::size_t next_ = 0;  // step; like seconds_ written by the thread whose turn it is, alone
  bool is_over_ = false;
  std::exception_ptr error_;
  double seconds_ = 0;
};

}  // namespace

double thread_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double do_in_turns(std::size_t steps, std::size_t threads, const Run& run) {
  MEMPOOL_EXPECTS(threads > 0);
  if (steps == 0) return 0;
  Turns turns(steps, threads, run);
  std::vector<std::thread> others;
  try {
    for (std::size_t number = 1; number < threads; ++number) {
      others.emplace_back([&turns, number] { turns.play(number); });
    }
  } catch (...) {
    turns.stop();
    for (std::thread& other : others) other.join();
    throw;
  }
  turns.play(0);
  for (std::thread& other : others) other.join();
  return turns.finish();
}

}  // namespace mempool
