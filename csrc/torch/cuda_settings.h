// torch's settings of its CUDA allocator, in the environment (PYTORCH_ALLOC_CONF) and at run time
// (torch.cuda.memory._set_allocator_settings): what limits memory holds with mempool in its place, too.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <functional>
#include <string>

namespace mempool::torch_cuda {

// Has torch read the environment, which may name the allocator that is in place at the time: `torchs`. Returns the
// settings that it was given at run time so far; empty: none. Throws ConfigError for an environment that torch does not
// accept.
std::string read_settings(c10::cuda::CUDACachingAllocator::CUDAAllocator& torchs);
struct MemoryFraction {
  double share = 1.0;     // of a device's memory that the process may hold
  bool replaces = false;  // given since mempool is in place: it takes the place of any limit; else the lower one holds
};
MemoryFraction memory_fraction();

using SettingsListener = std::function<void(const std::string& text)>;
// From now on settings at run time are known as soon as torch has taken them: a memory fraction becomes the limit of
// every device, and the listener gets the whole text. Called once.
void follow_settings(SettingsListener listener);

}  // namespace mempool::torch_cuda
