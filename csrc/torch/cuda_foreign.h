// Memory that comes from an allocator which the user gave a torch.cuda.MemPool (NCCL's, say): kept block by block,
// since nothing is known of it but that it can be had and given back. It never moves.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mempool::torch_cuda {

class ForeignPool {
 public:
  using TorchAllocator = c10::cuda::CUDACachingAllocator::CUDAAllocator;
  ForeignPool(std::shared_ptr<TorchAllocator> source, int device) : source_(std::move(source)), device_(device) {}
  ForeignPool(const ForeignPool&) = delete;
  ForeignPool& operator=(const ForeignPool&) = delete;
  // Gives back what is free. Precondition: nothing is live.
  ~ForeignPool();

  void* allocate(std::size_t bytes, cudaStream_t stream);
  // False: it is not a live block of this pool.
  bool free(void* address);
  // On another stream too: the block is then given back only when all work of the device is done.
  bool add_use(const void* address);
  std::size_t bytes_of(const void* address);  // 0: not a live block
  bool is_empty();                            // nothing is live
  std::size_t held();
  void trim();

 private:
  struct Block {
    std::size_t bytes;
    cudaStream_t stream;
    bool is_used_elsewhere;
  };
  bool rest() const noexcept;  // all work of the device is done; false: that cannot be had now

  const std::shared_ptr<TorchAllocator> source_;
  const int device_;
  std::mutex mutex_;
  std::unordered_map<const void*, Block> live_;
  std::multimap<std::pair<cudaStream_t, std::size_t>, void*> free_;  // by stream and exact size
  std::vector<std::pair<void*, Block>> waiting_;  // freed while other streams used them, which could not be waited for
  std::size_t held_ = 0;
};

}  // namespace mempool::torch_cuda
