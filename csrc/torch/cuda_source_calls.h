// Calls of the allocator that a torch.cuda.MemPool was given, which run with locks of mempool's held. What it asks of
// torch's allocator in return must not wait for these locks: see CudaAllocator.
#pragma once

#include <c10/cuda/CUDAGuard.h>

#include <atomic>
#include <vector>

namespace mempool::torch_cuda {

// Around such a call: the device is current, and a stream that is being captured does not forbid what the allocator
// calls. Throws c10::Error.
class SourceCall {
 public:
  explicit SourceCall(int device);
  SourceCall(const SourceCall&) = delete;
  SourceCall& operator=(const SourceCall&) = delete;
  ~SourceCall();

 private:
  const c10::cuda::CUDAGuard guard_;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

namespace source_calls {

// Threads in such a call, and one more while frees are postponed.
inline std::atomic<int> g_count{0};
inline bool any() noexcept { return g_count.load(std::memory_order_relaxed) != 0; }
// Whether the calling thread is in one.
bool is_inside() noexcept;
// Keeps the free of a block for later. Throws std::bad_alloc.
void postpone_free(void* block);
std::vector<void*> take_postponed();

}  // namespace source_calls
}  // namespace mempool::torch_cuda
