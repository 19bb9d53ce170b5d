// mempool._torch_cpu: the module that enables and disables mempool as torch's CPU allocator, and knows what was built.
#include <pybind11/pybind11.h>

#include "backend/cpu_device.h"
#include "build_facts.h"
#include "torch/cpu_allocator.h"

namespace py = pybind11;

PYBIND11_MODULE(_torch_cpu, m) {
  m.doc() = "Installs mempool under torch's CPU tensors. Import torch first.";
  m.def(
      "enable",
      [] {
        mempool::CachingAllocator* const device = mempool::cpu_device_if_made();
        if (device == nullptr) throw std::runtime_error("the CPU device was not made: use mempool.enable()");
        mempool::torch_cpu::enable(*device);
      },
      "New CPU tensors come from mempool. Idempotent.");
  m.def("disable", &mempool::torch_cpu::disable, "New CPU tensors come from the allocator before mempool.");
  m.def("is_enabled", &mempool::torch_cpu::is_enabled);
  m.attr("newest_tested_torch") = MEMPOOL_NEWEST_TESTED_TORCH;
  m.attr("without_cuda") = MEMPOOL_WITHOUT_CUDA;
  m.attr("without_cuda_kernels") = MEMPOOL_WITHOUT_CUDA_KERNELS;
}
