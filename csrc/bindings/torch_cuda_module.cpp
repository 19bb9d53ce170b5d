// mempool._torch_cuda: the module that installs mempool as torch's CUDA allocator.
#include <pybind11/pybind11.h>

#include <mutex>
#include <string>
#include <utility>

#include "backend/cuda_device.h"
#include "backend/pinned_device.h"
#include "torch/cuda_switch.h"
#include "torch/pinned_allocator.h"

namespace py = pybind11;

namespace {

// The lock of a switch, which Python's lock is held in all along; whoever waits for it lets others have that one.
std::unique_lock<std::mutex> take_turn() {
  static std::mutex switching;
  std::unique_lock turn(switching, std::try_to_lock);
  if (!turn.owns_lock()) {
    const py::gil_scoped_release release;
    turn.lock();
  }
  return turn;
}

std::string enable(const std::string& conf, py::function on_settings) {
  const auto turn = take_turn();
  static const auto* const handler = new py::function(std::move(on_settings));  // as immortal as the allocator
  return mempool::torch_cuda::serve_from_mempool(conf, [](const std::string& text) {
    const py::gil_scoped_acquire gil;
    (*handler)(text);
  });
}

void disable() {
  const auto turn = take_turn();
  mempool::torch_cuda::serve_from_earlier();
}

void enable_pinned() {
  mempool::CachingAllocator* const device = mempool::pinned_device_if_made();
  if (device == nullptr) throw std::runtime_error("the device of pinned memory was not made: use mempool.enable()");
  mempool::torch_pinned::enable(*device);
}

}  // namespace

PYBIND11_MODULE(_torch_cuda, m) {
  using namespace pybind11::literals;
  m.doc() = "Puts mempool under torch's CUDA tensors. Import torch first.";
  m.def("enable", &enable, "conf"_a, "on_settings"_a,
        "New CUDA tensors come from mempool, with the options in the first `conf` for each device. on_settings(text) "
        "is called with torch's allocator settings whenever they change. Returns a note on what could not be taken "
        "over. Idempotent. PoolStateError while a graph is being captured, or in use_mem_pool of torch's own.");
  m.def("disable", &disable,
        "New CUDA tensors come from torch's earlier allocator again. PoolStateError while a graph is being captured.");
  m.def("earlier_bytes", &mempool::torch_cuda::earlier_bytes, "ordinal"_a,
        "What torch's earlier allocator holds of the device, after its cache was emptied.");
  m.def("manages_virtual_memory", &mempool::cuda_manages_virtual_memory, "ordinal"_a,
        "Whether the device, which has an allocator, has memory that moves and sleeps; else plain allocations.");
  m.def("is_enabled", &mempool::torch_cuda::is_mempool_serving);
  m.def("enable_pinned", &enable_pinned, "New pinned host memory comes from mempool. Idempotent.");
  m.def("disable_pinned", &mempool::torch_pinned::disable, "It comes from the allocator before mempool.");
  m.def("is_pinned_enabled", &mempool::torch_pinned::is_enabled);
}
