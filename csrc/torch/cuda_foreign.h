// The memory of a torch.cuda.MemPool that has an allocator of its own (NCCL's, say): segments which that allocator
// gives, so that blocks are split, coalesced, counted and limited there as everywhere.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "backend/allocated_memory.h"

namespace mempool::torch_cuda {

class ForeignMemory final : public AllocatedMemory {
 public:
  using Source = c10::cuda::CUDACachingAllocator::CUDAAllocator;
  // A segment begins or ends. Called with the arena's lock held.
  using Observer = std::function<void(bool begins, void* address, std::size_t bytes, cudaStream_t stream)>;

  // `source` returns nullptr or throws when it has no memory. `stream`: whose memory it is asked for. Events of streams
  // come from the device's own memory.
  ForeignMemory(std::shared_ptr<Source> source, int device, cudaStream_t stream, Observer observer);

  std::string last_refusal() const override { return last_refusal_; }

 private:
  void* ask(std::size_t bytes) noexcept override;
  bool give_back(void* given, std::size_t bytes) noexcept override;
  void observe(bool begins, void* address, std::size_t bytes) noexcept override;
  void refuse(const std::string& why) noexcept;

  const std::shared_ptr<Source> source_;
  const int device_;
  const cudaStream_t stream_;
  const Observer observer_;
  std::string last_refusal_;  // guarded by the arena's lock
};

}  // namespace mempool::torch_cuda
