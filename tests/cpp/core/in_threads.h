// Runs a function on several threads at the same time.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

namespace fixtures {

// Calls body(i) in `count` threads, which begin together.
template <typename Body>
void in_threads(int count, Body body) {
  std::vector<std::thread> threads;
  std::atomic<int> ready{0};
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      for (++ready; ready.load() < count;) std::this_thread::yield();
      body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace fixtures
