// The memory of a torch.cuda.MemPool that has an allocator of its own (NCCL's, say): segments which that allocator
// gives, so that blocks are split, coalesced, counted and limited there as everywhere.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/physical_memory.h"

namespace mempool::torch_cuda {

class ForeignMemory final : public PhysicalMemory {
 public:
  using Source = c10::cuda::CUDACachingAllocator::CUDAAllocator;
  // A segment begins or ends. Called with the arena's lock held.
  using Observer = std::function<void(bool begins, void* address, std::size_t bytes, cudaStream_t stream)>;

  // `source` may return nullptr or throw: then it has no memory. `stream`: which it is asked for. What work is done,
  // the memory of the device itself knows.
  ForeignMemory(std::shared_ptr<Source> source, int device, cudaStream_t stream, Observer observer);

  std::size_t granule_bytes() const noexcept override { return kGranule; }
  Capabilities capabilities() const noexcept override { return {.reserves_memory = true}; }
  void* reserve(std::size_t bytes) noexcept override;
  void unreserve(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  bool cut(Handle&, std::size_t, Handle&) noexcept override { return false; }
  bool join(Handle&, const Handle&) noexcept override { return false; }
  bool move(Handle&, void*) noexcept override { return false; }
  std::unique_ptr<Backup> make_backup() noexcept override { return nullptr; }
  std::string last_refusal() const override;

 private:
  // Segments are of this size or multiples of it, as torch's native allocator asks for them.
  static constexpr std::size_t kGranule = std::size_t{2} << 20;

  void* ask(std::size_t bytes) noexcept;
  bool give_back(void* given) noexcept;
  void refuse(const std::string& why) noexcept;

  const std::shared_ptr<Source> source_;
  const int device_;
  const cudaStream_t stream_;
  const Observer observer_;

  mutable std::mutex mutex_;
  std::map<const void*, void*> given_;  // what the source gave, by where a granule begins in it
  std::size_t slack_ = 0;               // bytes more than a segment, counted nowhere: the source does not align to it
  std::string last_refusal_;
};

}  // namespace mempool::torch_cuda
