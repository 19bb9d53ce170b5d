// Private pools: where captured graphs and torch.cuda.MemPool keep their blocks, and states to come back to.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "torch/cuda_allocator.h"
#include "torch/cuda_source_calls.h"

namespace mempool::torch_cuda {
namespace {

// The live blocks of a pool at one moment.
struct PoolState final : cca::AllocatorState {
  c10::MempoolId_t pool;
  std::vector<CachingAllocator::PlacedBlock> blocks;
};

}  // namespace

void CudaAllocator::beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                                        std::function<bool(cudaStream_t)> filter) {
  device_at(device).pools.begin(pool, std::move(filter));
}

void CudaAllocator::endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) {
  device_at(device).pools.end(pool);
}

void CudaAllocator::releasePool(c10::DeviceIndex device, c10::MempoolId_t pool) {
  device_at(device).pools.release(pool);
}

int CudaAllocator::getPoolUseCount(c10::DeviceIndex device, c10::MempoolId_t pool) {
  return device_at(device).pools.uses(pool);
}

void CudaAllocator::createOrIncrefPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                                       std::shared_ptr<cca::CUDAAllocator> allocator) {
  device_at(device).pools.use(pool, std::move(allocator));
}

void CudaAllocator::setUseOnOOM(c10::DeviceIndex device, c10::MempoolId_t pool, bool use_on_oom) {
  device_at(device).pools.at(pool)->family->lends = use_on_oom;
}

void CudaAllocator::setNoSplit(c10::DeviceIndex device, c10::MempoolId_t pool) {
  device_at(device).pools.at(pool)->no_split = true;
}

void CudaAllocator::emptyCache(c10::MempoolId_t pool) {
  // The allocator of a MemPool that is short of memory: it is asked again once all caches are empty.
  if (source_calls::is_inside()) return;
  free_postponed();
  for_each_device([&](int, Device& device) {
    if (pool == c10::MempoolId_t{0, 0}) {
      device.core.trim(0);
    } else if (const PoolPointer found = device.pools.find(pool)) {
      device.core.trim_family(*found->family);
    } else {
      device.core.arenas().release_closed();  // torch asks when a MemPool is gone
    }
  });
}

bool CudaAllocator::knows(c10::DeviceIndex index, c10::MempoolId_t pool) {
  Device* const device = find_device(index);
  return device != nullptr && device->pools.find(pool) != nullptr;
}

bool CudaAllocator::is_state(const cca::AllocatorState* state) {
  return dynamic_cast<const PoolState*>(state) != nullptr;
}

bool CudaAllocator::checkPoolLiveAllocations(c10::DeviceIndex index, c10::MempoolId_t pool,
                                             const std::unordered_set<void*>& expected) {
  Device& device = device_at(index);
  const auto live = device.core.live_blocks(*device.pools.at(pool)->family);
  if (live.size() != expected.size()) return false;
  return std::all_of(live.begin(), live.end(), [&](const auto& block) { return expected.contains(block.address); });
}

std::shared_ptr<cca::AllocatorState> CudaAllocator::getCheckpointState(c10::DeviceIndex index, c10::MempoolId_t pool) {
  Device& device = device_at(index);
  auto state = std::make_shared<PoolState>();
  state->pool = pool;
  state->blocks = device.core.live_blocks(*device.pools.at(pool)->family);
  return state;
}

// Everything live is freed, then what was live then becomes so again, at its old addresses. Nothing in a private pool
// ever moves, so these are free or part of what is freed here.
cca::CheckpointDelta CudaAllocator::setCheckpointPoolState(c10::DeviceIndex index,
                                                           std::shared_ptr<cca::AllocatorState> given) {
  const auto* const state = dynamic_cast<const PoolState*>(given.get());
  TORCH_CHECK(state != nullptr, "mempool: this is not a state that getCheckpointState returned");
  Device& device = device_at(index);
  const PoolPointer pool = device.pools.at(state->pool);
  ArenaFamily& family = *pool->family;
  cca::CheckpointDelta delta;
  for (const CachingAllocator::PlacedBlock& block : device.core.live_blocks(family)) {
    raw_delete(block.address);
    delta.ptrs_freed.push_back(block.address);
  }
  device.core.settle();  // what other streams used comes back, too
  for (const CachingAllocator::PlacedBlock& block : state->blocks) {
    TORCH_CHECK(device.core.allocate_at(family, block),
                "mempool: the place of a checkpointed block is not free: its memory went back to the device meanwhile, "
                "or other streams still use it");
    delta.dataptrs_allocd.emplace_back(block.address, block.address, raw_deleter(),
                                       c10::Device(c10::DeviceType::CUDA, index));
  }
  return delta;
}

c10::DataPtr CudaAllocator::allocateWithAddress(std::size_t bytes, void* address) {
  c10::DeviceIndex index = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&index));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(index);
  TORCH_CHECK(device_at(index).core.allocate_exactly(bytes, address, reinterpret_cast<StreamId>(stream)),
              "mempool: ", bytes, " bytes at ", address, " are not free for the current stream of device ",
              static_cast<int>(index));
  return {address, address, raw_deleter(), c10::Device(c10::DeviceType::CUDA, index)};
}

void CudaAllocator::enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex to_access) {
  const c10::cuda::CUDAGuard guard(device);
  const cudaError_t error = cudaDeviceEnablePeerAccess(to_access, 0);
  if (error == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
  } else {
    C10_CUDA_CHECK(error);
  }
  TORCH_CHECK(cuda_let_in(to_access, device), "mempool: the driver does not let device ", static_cast<int>(device),
              " use the memory of device ", static_cast<int>(to_access));
}

}  // namespace mempool::torch_cuda
