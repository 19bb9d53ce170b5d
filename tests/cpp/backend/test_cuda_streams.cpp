// Work that is put off: "kernels" on the stand-in's streams write and later check the blocks that they were given,
// while blocks are freed, change hands between streams and move. Memory that is used again too early is a violation.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda_memory.h"
#include "check.h"
#include "core/allocator/caching_allocator.h"

using namespace mempool;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// Loads it, too.
bool has_standin() { return std::getenv("CUDA_STANDIN_LIB") != nullptr && CudaDriver::instance() != nullptr; }

template <typename Function>
Function* control(const char* name) {
  static void* const library = dlopen("libcudart.so.13", RTLD_NOW | RTLD_NOLOAD);
  return reinterpret_cast<Function*>(dlsym(library, name));
}

// A stream of the stand-in whose work waits until it is let go on.
class HeldStream {
 public:
  HeldStream() {
    control<int(void**)>("cudaStreamCreate")(&stream_);
    control<int(void*, int)>("standin_hold")(stream_, 1);
  }
  HeldStream(const HeldStream&) = delete;
  HeldStream& operator=(const HeldStream&) = delete;
  ~HeldStream() { control<int(void*)>("cudaStreamDestroy")(stream_); }

  StreamId id() const { return reinterpret_cast<StreamId>(stream_); }
  // Later work here comes after what is in the other stream now.
  void wait_for(const HeldStream& other) const {
    void* event = nullptr;
    control<int(void**)>("cudaEventCreate")(&event);
    control<int(void*, void*)>("cudaEventRecord")(event, other.stream_);
    control<int(void*, void*, unsigned)>("cudaStreamWaitEvent")(stream_, event, 0);
    control<int(void*)>("cudaEventDestroy")(event);
  }
  // At both ends of a block: a kernel for each.
  void write_later(const void* address, std::size_t bytes, std::uint64_t seed) const {
    at_ends("standin_write_later", address, bytes, seed);
  }
  void check_later(const void* address, std::size_t bytes, std::uint64_t seed) const {
    at_ends("standin_check_later", address, bytes, seed);
  }
  void step(std::size_t operations) const {
    control<std::size_t(void*, std::size_t)>("standin_step")(stream_, operations);
  }

 private:
  void at_ends(const char* kernel, const void* address, std::size_t bytes, std::uint64_t seed) const {
    constexpr std::size_t kEnd = 256;
    auto* const run = control<int(void*, const void*, std::size_t, std::uint64_t)>(kernel);
    run(stream_, address, std::min(bytes, kEnd), seed);
    if (bytes > 2 * kEnd) run(stream_, static_cast<const char*>(address) + bytes - kEnd, kEnd, seed);
  }

  void* stream_ = nullptr;
};

std::uint64_t violations() { return control<std::uint64_t()>("standin_violations")(); }
void set_capacity(std::size_t bytes) { control<void(int, std::size_t)>("standin_set_capacity")(0, bytes); }

struct Block {
  void* address;
  std::size_t bytes;
  std::uint64_t seed;
  const HeldStream* stream;
};

std::size_t pick_bytes(std::mt19937& random) {
  switch (random() % 8) {
    case 0:
      return 1 + random() % (6 * kMiB);
    case 1:
      return 1 + random() % kMiB;
    default:
      return 1 + random() % 8192;
  }
}

// A random walk of `operations`. `names_uses`: other streams that use a block are recorded, as they have to be.
void walk(int operations, bool names_uses, std::size_t capacity, const Options& options = {}) {
  set_capacity(capacity);
  {
    CachingAllocator device("cuda:0", CudaMemory::make(*CudaDriver::instance(), 0), options);
    const std::vector<HeldStream> streams(3);
    std::mt19937 random(11);
    std::vector<Block> live;
    for (int i = 1; i <= operations; ++i) {
      const HeldStream& stream = streams[random() % streams.size()];
      const auto seed = static_cast<std::uint64_t>(i);
      if (live.size() < 20 || random() % 2 == 0) {
        const std::size_t bytes = pick_bytes(random);
        try {
          live.push_back({device.allocate(bytes, stream.id()), bytes, seed, &stream});
          stream.write_later(live.back().address, bytes, seed);
          stream.check_later(live.back().address, bytes, seed);
        } catch (const OutOfMemory&) {
          if (live.empty()) continue;
          device.deallocate(live.back().address);
          live.pop_back();
        }
      } else {
        std::swap(live[random() % live.size()], live.back());
        const Block gone = live.back();
        live.pop_back();
        if (random() % 2 == 0) {
          const HeldStream& other = streams[random() % streams.size()];
          other.wait_for(*gone.stream);  // as every program must, before it uses what was made on another stream
          other.write_later(gone.address, gone.bytes, gone.seed);
          other.check_later(gone.address, gone.bytes, gone.seed);
          if (names_uses) CHECK(device.add_use(gone.address, other.id()));
        }
        CHECK(device.deallocate(gone.address));
      }
      if (random() % 4 == 0) streams[random() % streams.size()].step(1 + random() % 8);
      if (i % 5000 == 0) CHECK_EQ(device.arenas().check_invariants(), "");
    }
    control<int()>("cudaDeviceSynchronize")();
    for (const Block& block : live) device.deallocate(block.address);
    device.trim(0);
    CHECK_EQ(device.check_invariants(), "");
    CHECK_EQ(device.ledger().held(), 0u);
  }
}

}  // namespace

TEST(no_memory_is_used_again_too_early) {
  if (!has_standin()) return;
  const std::uint64_t before = violations();
  walk(60'000, true, 512 * kMiB);
  walk(40'000, true, 48 * kMiB);  // short of memory: it moves, waits and is given back
  CHECK_EQ(violations(), before);
}

TEST(a_use_that_is_not_named_is_seen) {
  if (!has_standin()) return;
  const std::uint64_t before = violations();
  walk(5'000, false, 512 * kMiB, {.stitch = false});  // nothing is unmapped, or the kernels would fault
  CHECK(violations() > before);
}

namespace {

std::unique_ptr<CachingAllocator> make_device(std::size_t capacity) {
  set_capacity(capacity);
  return std::make_unique<CachingAllocator>("cuda:0", CudaMemory::make(*CudaDriver::instance(), 0), Options{});
}
std::int64_t waiting(CachingAllocator& device) { return device.stats().waiting.all.count.current; }
void fail(const char* call, int error) {
  control<void(const char*, std::uint64_t, int)>("standin_fail")(call, 1, error);
}

}  // namespace

TEST(work_of_a_destroyed_stream_goes_on_and_its_memory_waits_for_it) {
  if (!has_standin()) return;
  const std::uint64_t before = violations();
  const auto device = make_device(64 * kMiB);
  void* block = nullptr;
  {
    const HeldStream stream;
    block = device->allocate(40 * kMiB);
    CHECK(device->add_use(block, stream.id()));
    stream.write_later(block, 40 * kMiB, 1);
    stream.check_later(block, 40 * kMiB, 1);
  }
  device->deallocate(block);
  device->trim(0, false);
  CHECK_EQ(waiting(*device), 1);
  void* const next = device->allocate(40 * kMiB);  // waits for the device, for there is no other way
  CHECK_EQ(waiting(*device), 0);
  device->deallocate(next);
  device->trim(0);
  CHECK_EQ(device->ledger().held(), 0u);
  CHECK_EQ(violations(), before);
}

TEST(memory_that_a_destroyed_stream_was_made_for_goes_back) {
  if (!has_standin()) return;
  const auto device = make_device(64 * kMiB);
  void* block = nullptr;
  {
    const HeldStream stream;
    block = device->allocate(40 * kMiB, stream.id());
    stream.write_later(block, 40 * kMiB, 1);
  }
  device->deallocate(block);
  device->trim(0);
  CHECK_EQ(device->ledger().held(), 0u);
}

// Each thread has another stream under that handle: an event of one says nothing about the others.
TEST(work_on_a_per_thread_stream_is_waited_for_with_the_device) {
  if (!has_standin()) return;
  const auto device = make_device(64 * kMiB);
  void* const block = device->allocate(4 * kMiB);
  CHECK(device->add_use(block, 2));
  device->deallocate(block);
  device->trim(0, false);
  CHECK_EQ(waiting(*device), 1);
  device->trim(0);
  CHECK_EQ(waiting(*device), 0);
  CHECK_EQ(device->ledger().held(), 0u);
}

TEST(no_error_of_the_driver_says_that_work_is_done) {
  if (!has_standin()) return;
  constexpr int kLaunchFailed = 719;
  constexpr int kCapturedEvent = 907;
  for (const int error : {kLaunchFailed, kCapturedEvent, 1, 400, 700}) {
    const std::uint64_t before = violations();
    const auto device = make_device(64 * kMiB);
    const HeldStream stream;
    void* const block = device->allocate(40 * kMiB);
    device->add_use(block, stream.id());
    stream.write_later(block, 40 * kMiB, 1);
    stream.check_later(block, 40 * kMiB, 1);
    device->deallocate(block);
    fail("cuEventQuery", error);
    device->trim(0, false);
    CHECK_EQ(waiting(*device), 1);
    fail("cuEventSynchronize", error);
    void* next = nullptr;
    try {
      next = device->allocate(40 * kMiB);  // a captured event is followed by another one
      CHECK_EQ(error, kCapturedEvent);
    } catch (const OutOfMemory& refusal) {
      CHECK(refusal.info().device_failure.find(std::to_string(error)) != std::string::npos);
      CHECK_EQ(waiting(*device), 1);
    }
    device->deallocate(next);
    device->trim(0);  // the driver answers again
    CHECK_EQ(waiting(*device), 0);
    CHECK_EQ(device->ledger().held(), 0u);
    CHECK_EQ(violations(), before);
  }
}
