// mempool._torch_cuda: the module that installs mempool as torch's CUDA allocator.
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "backend/cuda_device.h"
#include "backend/pinned_device.h"
#include "common/errors.h"
#include "torch/cuda_allocator.h"
#include "torch/pinned_allocator.h"

namespace py = pybind11;

namespace {

void install(const std::string& conf, py::function on_settings) {
  if (mempool::torch_cuda::installed() != nullptr) return;
  const auto* const handler = new py::function(std::move(on_settings));  // as immortal as the allocator
  mempool::torch_cuda::install(conf, [handler](const std::string& text) {
    const py::gil_scoped_acquire gil;
    (*handler)(text);
  });
}

void enable_pinned() {
  mempool::CachingAllocator* const device = mempool::pinned_device_if_made();
  if (device == nullptr) throw std::runtime_error("the device of pinned memory was not made: use mempool.enable()");
  mempool::torch_pinned::enable(*device);
}

}  // namespace

PYBIND11_MODULE(_torch_cuda, m) {
  using namespace pybind11::literals;
  m.doc() = "Installs mempool under torch's CUDA tensors. Import torch first.";
  py::register_local_exception<mempool::PoolStateError>(m, "PoolStateError", PyExc_RuntimeError);
  m.def("install", &install, "conf"_a, "on_settings"_a,
        "CUDA tensors come from mempool, with the options in `conf` for each device. on_settings(text) is called with "
        "torch's allocator settings whenever they change. Idempotent. PoolStateError once torch has initialized CUDA.");
  m.def("manages_virtual_memory", &mempool::cuda_manages_virtual_memory, "ordinal"_a,
        "Whether the device, which has an allocator, has memory that moves and sleeps; else plain allocations.");
  m.def("enable_pinned", &enable_pinned, "New pinned host memory comes from mempool. Idempotent.");
  m.def("disable_pinned", &mempool::torch_pinned::disable, "It comes from the allocator before mempool.");
  m.def("is_pinned_enabled", &mempool::torch_pinned::is_enabled);
  m.def("is_installed", [] { return mempool::torch_cuda::installed() != nullptr; });
}
