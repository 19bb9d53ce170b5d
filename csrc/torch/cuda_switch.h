// Which allocator serves torch's CUDA tensors: mempool's, or the one before it.
#pragma once

#include <cstddef>
#include <string>

#include "torch/cuda_settings.h"

namespace mempool::torch_cuda {

// ---- one thread at a time switches; others may use CUDA meanwhile

// New CUDA tensors come from mempool, with the options in `conf` for each device that is made from now on; torch may
// have used CUDA already. `on_settings` hears of torch's settings at run time while mempool serves: that of the first
// call. Returns a note on what mempool could not take over; empty: none. Throws PoolStateError, with nothing changed,
// while a graph is being captured, the thread's blocks go to a private pool of the allocator before mempool's, or
// another allocator has taken mempool's place; ConfigError for options or settings that do not parse; OutOfMemory where
// the options reserve more than there is.
std::string serve_from_mempool(const std::string& conf, const SettingsListener& on_settings);
// New CUDA tensors come from the earlier allocator again, and what mempool has cached goes back to the device. Throws
// PoolStateError, with nothing changed, while a graph is being captured.
void serve_from_earlier();

// ---- from any thread
bool is_mempool_serving() noexcept;
// What torch's allocator before mempool's holds of a device once its cache is empty, in bytes.
std::size_t earlier_bytes(int device);

}  // namespace mempool::torch_cuda
