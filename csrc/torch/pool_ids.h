// torch's ids of private pools, which it counts up: those of captures, and those that users make.
#pragma once

#include <ATen/cuda/MemPool.h>
#include <c10/core/Allocator.h>

namespace mempool::torch_cuda {

// The ids that were there when this was made: pools of theirs may be in use with nobody here having seen it begin.
class EarlierPoolIds {
 public:
  bool contains(c10::MempoolId_t id) const noexcept {
    return id.second == 0 ? id.first < next_captured_.first : id.second < next_users_.second;
  }

 private:
  c10::MempoolId_t next_captured_ = at::cuda::MemPool::graph_pool_handle(/*is_user_created=*/false);
  c10::MempoolId_t next_users_ = at::cuda::MemPool::graph_pool_handle(/*is_user_created=*/true);
};

}  // namespace mempool::torch_cuda
