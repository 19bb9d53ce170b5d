// The loops of the CUDA benchmark: torch's CUDA allocator, called as torch calls it.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <utility>
#include <vector>

namespace {

namespace cca = c10::cuda::CUDACachingAllocator;

double thread_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

std::vector<void*>& blocks() {
  static auto* const all = new std::vector<void*>;
  return *all;
}

void record_stream(void* address, void* stream) {
  const c10::Device device(c10::DeviceType::CUDA, 0);
  c10::DataPtr block(address, address, cca::get()->raw_deleter(), device);
  cca::get()->recordStream(block, c10::cuda::getStreamFromExternal(static_cast<cudaStream_t>(stream), 0));
  block.release_context();  // it is live still
}

}  // namespace

extern "C" {

// Frees what a replay has left.
void free_blocks() {
  for (void*& block : blocks()) {
    if (block != nullptr) cca::raw_delete(std::exchange(block, nullptr));
  }
}

// Events [first, last): op 0 frees, 1 allocates, 2 records a stream. Seconds of this thread's CPU; -1 when memory ran
// out.
double replay(const std::int64_t* ops, const std::int64_t* ids, const std::int64_t* bytes, const std::int64_t* streams,
              std::int64_t first, std::int64_t last, void** stream_of) {
  const double start = thread_cpu_seconds();
  try {
    for (std::int64_t i = first; i < last; ++i) {
      const auto id = static_cast<std::size_t>(ids[i]);
      if (ops[i] == 1) {
        if (blocks().size() <= id) blocks().resize(2 * id + 1024);
        blocks()[id] = cca::raw_alloc_with_stream(static_cast<std::size_t>(bytes[i]),
                                                  static_cast<cudaStream_t>(stream_of[streams[i]]));
      } else if (ops[i] == 0) {
        if (blocks()[id] != nullptr) cca::raw_delete(std::exchange(blocks()[id], nullptr));
      } else if (blocks()[id] != nullptr) {
        record_stream(blocks()[id], stream_of[streams[i]]);
      }
    }
  } catch (const c10::Error&) {
    return -1;
  }
  return thread_cpu_seconds() - start;
}

// One block at a time: allocated, freed. Seconds of the wall clock.
double pairs(std::size_t bytes, std::int64_t count) {
  timespec start{};
  timespec end{};
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (std::int64_t i = 0; i < count; ++i) cca::raw_delete(cca::raw_alloc(bytes));
  clock_gettime(CLOCK_MONOTONIC, &end);
  return static_cast<double>(end.tv_sec - start.tv_sec) + static_cast<double>(end.tv_nsec - start.tv_nsec) * 1e-9;
}
}
