// Does one list of steps in its order, by several threads in turn: so that what happens is the same each time, while
// each thread has its own cache.
#pragma once

#include <cstddef>
#include <functional>

namespace mempool {

// Steps that one thread does in a row. Not measured: as many as a layer's worth of allocations and frees.
inline constexpr std::size_t kStepsInARow = 64;

// CPU time of the calling thread in seconds.
double thread_cpu_seconds();

// Calls `run(first, last, thread)` for all steps from 0 to `steps`, kStepsInARow at a time, each on the thread of that
// number: 0 is the calling thread, which `threads` - 1 others join. The first exception ends all of it and is thrown
// here, once no other thread runs any more. Returns the CPU time that `run` took in all of them, in seconds. Throws
// std::system_error, with nothing done, where a thread cannot be started.
using Run = std::function<void(std::size_t first, std::size_t last, std::size_t thread)>;
double do_in_turns(std::size_t steps, std::size_t threads, const Run& run);

}  // namespace mempool
