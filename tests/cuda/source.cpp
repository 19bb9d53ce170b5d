// An allocator that a torch.cuda.MemPool is given: over cudaMalloc, counted, and made to fail on demand.
#include <cuda_runtime_api.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <stdexcept>

namespace {

std::mutex g_mutex;
std::map<void*, std::size_t> g_live;
std::size_t g_held = 0;
int g_calls = 0;
int g_device = -1;
cudaStream_t g_stream = nullptr;
std::atomic<int> g_mode{0};
std::atomic<std::size_t> g_offset{0};
std::atomic<void (*)()> g_hook{nullptr};
void* g_last = nullptr;

void call_hook() {
  if (void (*const hook)() = g_hook) hook();
}

}  // namespace

extern "C" {

// 0: gives memory; 1: returns nullptr; 2: throws an error of the standard library; 3: throws a number; 4: gives what it
// gave last.
void set_mode(int mode) { g_mode = mode; }
void set_offset(std::size_t bytes) { g_offset = bytes; }  // of what it gives, from what cudaMalloc gave
void set_hook(void (*hook)()) { g_hook = hook; }          // called before each allocation and free
int calls() { return g_calls; }
std::size_t held() { return g_held; }
int last_device() { return g_device; }
void* last_stream() { return g_stream; }

void* source_malloc(ssize_t bytes, int device, cudaStream_t stream) {
  call_hook();
  const std::lock_guard guard(g_mutex);
  ++g_calls;
  g_device = device;
  g_stream = stream;
  if (g_mode == 1) return nullptr;
  if (g_mode == 2) throw std::runtime_error("the network's window is full");
  if (g_mode == 3) throw 3;
  if (g_mode == 4) return g_last;
  void* given = nullptr;
  if (cudaMalloc(&given, static_cast<std::size_t>(bytes) + g_offset) != cudaSuccess) return nullptr;
  given = static_cast<char*>(given) + g_offset;
  g_live[given] = static_cast<std::size_t>(bytes);
  g_held += static_cast<std::size_t>(bytes);
  g_last = given;
  return given;
}

void source_free(void* given, ssize_t, int, cudaStream_t) {
  call_hook();
  const std::lock_guard guard(g_mutex);
  g_held -= g_live.at(given);
  g_live.erase(given);
  cudaFree(static_cast<char*>(given) - g_offset);
}
}
