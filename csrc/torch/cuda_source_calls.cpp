#include "torch/cuda_source_calls.h"

#include <mutex>
#include <utility>

namespace mempool::torch_cuda {
namespace {

std::mutex g_mutex;
std::vector<void*>& postponed() {
  static auto* const frees = new std::vector<void*>;  // immortal
  return *frees;
}

int& depth() {
  static thread_local int calls = 0;
  return calls;
}

}  // namespace

SourceCall::SourceCall(int device) : guard_(static_cast<c10::DeviceIndex>(device)) {
  C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_));
  ++depth();
  source_calls::g_count.fetch_add(1);
}

SourceCall::~SourceCall() {
  source_calls::g_count.fetch_sub(1);
  --depth();
  (void)cudaThreadExchangeStreamCaptureMode(&mode_);
}

namespace source_calls {

bool is_inside() noexcept { return depth() > 0; }

void postpone_free(void* block) {
  const std::lock_guard guard(g_mutex);
  postponed().push_back(block);
  if (postponed().size() == 1) g_count.fetch_add(1);
}

std::vector<void*> take_postponed() {
  const std::lock_guard guard(g_mutex);
  if (!postponed().empty()) g_count.fetch_sub(1);
  return std::exchange(postponed(), {});
}

}  // namespace source_calls
}  // namespace mempool::torch_cuda
