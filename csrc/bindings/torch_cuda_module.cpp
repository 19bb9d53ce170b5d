// mempool._torch_cuda: the module that installs mempool as torch's CUDA allocator.
#include <pybind11/pybind11.h>

#include <string>

#include "backend/cuda_device.h"
#include "common/errors.h"
#include "torch/cuda_allocator.h"

namespace py = pybind11;

PYBIND11_MODULE(_torch_cuda, m) {
  using namespace pybind11::literals;
  m.doc() = "Installs mempool under torch's CUDA tensors. Import torch first.";
  py::register_local_exception<mempool::PoolStateError>(m, "PoolStateError", PyExc_RuntimeError);
  m.def("install", &mempool::torch_cuda::install, "conf"_a,
        "CUDA tensors come from mempool, with the options in `conf` for each device. Idempotent. PoolStateError once "
        "torch has initialized CUDA.");
  m.def("manages_virtual_memory", &mempool::cuda_manages_virtual_memory, "ordinal"_a,
        "Whether the device, which has an allocator, has memory that moves and sleeps; else plain allocations.");
  m.def("is_installed", [] { return mempool::torch_cuda::installed() != nullptr; });
}
