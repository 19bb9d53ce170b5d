#include "torch/cuda_pools.h"

#include <c10/cuda/CUDAStream.h>

#include <algorithm>

namespace mempool::torch_cuda {
namespace {

using Guard = std::lock_guard<std::recursive_mutex>;

std::string text_of(c10::MempoolId_t id) {
  return "(" + std::to_string(id.first) + ", " + std::to_string(id.second) + ")";
}

}  // namespace

void PrivatePools::use(c10::MempoolId_t id, std::shared_ptr<TorchAllocator> source) {
  const Guard guard(mutex_);
  if (const auto found = pools_.find(id); found != pools_.end()) {
    ++found->second->uses;
    return;
  }
  auto pool = std::make_shared<PrivatePool>(*this, id);
  ArenaFamily::MemoryFactory make_memory;
  if (source != nullptr) {
    make_memory = [this, id, source = std::move(source), device = index_](StreamId of) {
      const auto observe = [this, id](bool begins, void* address, std::size_t bytes, cudaStream_t stream) {
        observer_(begins, address, bytes, stream, id);
      };
      return std::make_unique<ForeignMemory>(source, device, reinterpret_cast<cudaStream_t>(of), observe);  // NOLINT
    };
  }
  pool->family = &device_.arenas().open("torch pool " + text_of(id), ArenaFamily::Kind::fixed, std::move(make_memory));
  pool->family->framework_id = id;
  if (const auto [known, is_new] = reserved_.try_emplace(id, pool->family->reserved); !is_new) {
    pool->family->reserved = known->second;
  }
  pools_.emplace(id, std::move(pool));
}

PrivatePool::~PrivatePool() {
  if (family != nullptr) owner.device().arenas().close(*family);
}

void PrivatePools::release(c10::MempoolId_t id) {
  PoolPointer last;  // goes without the lock
  const Guard guard(mutex_);
  const auto found = pools_.find(id);
  if (found == pools_.end() || --found->second->uses > 0) return;
  last = std::move(found->second);
  pools_.erase(found);
}

int PrivatePools::uses(c10::MempoolId_t id) {
  const Guard guard(mutex_);
  const PoolPointer pool = find(id);
  return pool != nullptr ? pool->uses : 0;
}

PoolPointer PrivatePools::find(c10::MempoolId_t id) {
  const Guard guard(mutex_);
  const auto found = pools_.find(id);
  return found != pools_.end() ? found->second : nullptr;
}

PoolPointer PrivatePools::at(c10::MempoolId_t id) {
  PoolPointer pool = find(id);
  TORCH_CHECK(pool != nullptr, "mempool: device ", device_.device(), " has no memory pool ", text_of(id));
  return pool;
}

std::map<c10::MempoolId_t, std::shared_ptr<Ledger::Reserved>> PrivatePools::reserved() {
  const Guard guard(mutex_);
  return reserved_;
}

void PrivatePools::reset(void (*action)(Stat&)) {
  for (const auto& [id, each] : reserved()) device_.ledger().reset(*each, action);
}

void PrivatePools::begin(c10::MempoolId_t id, std::function<bool(cudaStream_t)> filter) {
  const Guard guard(mutex_);
  const bool is_routed =
      std::any_of(routing_.begin(), routing_.end(), [&](const Route& route) { return route.id == id; });
  TORCH_CHECK(!is_routed, "mempool: blocks go to the memory pool ", text_of(id), " already");
  use(id, nullptr);  // torch calls releasePool for it
  add_route(id, std::move(filter), false);
}

void PrivatePools::end(c10::MempoolId_t id) {
  TORCH_CHECK(end_route(id, false), "mempool: no blocks go to the memory pool ", text_of(id));
}

void PrivatePools::begin_elsewhere(c10::MempoolId_t id, std::function<bool(cudaStream_t)> filter) {
  add_route(id, std::move(filter), true);
}

void PrivatePools::end_elsewhere(c10::MempoolId_t id) { end_route(id, true); }

void PrivatePools::add_route(c10::MempoolId_t id, std::function<bool(cudaStream_t)> filter, bool is_elsewhere) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(index_));
  const Guard guard(mutex_);
  routing_.insert(routing_.begin(), {id, std::move(filter), is_elsewhere, stream});
  routes_.fetch_add(1);
}

// False: there is none.
bool PrivatePools::end_route(c10::MempoolId_t id, bool is_elsewhere) {
  const Guard guard(mutex_);
  const auto found = std::find_if(routing_.begin(), routing_.end(), [&](const Route& route) {
    return route.id == id && route.is_elsewhere == is_elsewhere;
  });
  if (found == routing_.end()) return false;
  routing_.erase(found);
  routes_.fetch_sub(1);
  return true;
}

PrivatePools::Destination PrivatePools::route(cudaStream_t stream) {
  const Guard guard(mutex_);
  for (const Route& route : routing_) {
    if (!route.filter(stream)) continue;
    return {route.is_elsewhere ? nullptr : at(route.id), route.is_elsewhere, route.id};
  }
  return {};
}

std::vector<cudaStream_t> PrivatePools::routed_streams() {
  std::vector<cudaStream_t> out;
  const Guard guard(mutex_);
  for (const Route& route : routing_) out.push_back(route.begun_on);
  return out;
}

}  // namespace mempool::torch_cuda
