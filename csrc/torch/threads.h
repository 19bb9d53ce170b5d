// torch's threads, for the kernels.
#pragma once

#include <cstdint>

#include "kernels/linear.h"

namespace mempool {

// Runs a task on torch's threads: kernels::linear takes this function. Throws c10::Error where they cannot be started.
void parallel_for(std::int64_t count, std::int64_t grain, kernels::Task task, const void* context);

}  // namespace mempool
