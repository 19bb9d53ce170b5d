// torch's threads are called through a function of its library, which releases have from 2.10 on. at::parallel_for is
// compiled here instead: it has to be compiled with OpenMP, or it would run on one thread, without a warning.
#include "torch/threads.h"

#include "torch/op_checks.h"

#if __has_include(<torch/csrc/stable/c/shim.h>)
#include <torch/csrc/stable/c/shim.h>
#else
#include <ATen/Parallel.h>
#ifndef _OPENMP
#error "torch below 2.10: its threads need -fopenmp here"
#endif
#endif

namespace mempool {

#if __has_include(<torch/csrc/stable/c/shim.h>)

namespace {
struct Work {
  kernels::Task task;
  const void* context;
};
}  // namespace

void parallel_for(std::int64_t count, std::int64_t grain, kernels::Task task, const void* context) {
  Work work = {task, context};
  const auto run = [](std::int64_t first, std::int64_t last, void* given) {
    const Work& to_do = *static_cast<const Work*>(given);
    to_do.task(to_do.context, first, last);
  };
  if (torch_parallel_for(0, count, grain, run, &work) != 0) refuse("torch's threads could not be started.");
}

#else

void parallel_for(std::int64_t count, std::int64_t grain, kernels::Task task, const void* context) {
  at::parallel_for(0, count, grain, [&](std::int64_t first, std::int64_t last) { task(context, first, last); });
}

#endif

}  // namespace mempool
