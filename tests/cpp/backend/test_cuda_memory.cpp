// The CUDA backend on the stand-in driver: what each failing call leaves behind, and the allocator on top of it.
// Without the stand-in there is nothing to test: the host cannot touch what a device has.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda_memory.h"
#include "backend/cuda_plain_memory.h"
#include "check.h"
#include "core/allocator/caching_allocator.h"
#include "core/current_pool.h"

using namespace mempool;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

bool has_standin() { return std::getenv("CUDA_STANDIN_LIB") != nullptr; }

// The stand-in's controls, as tests/cuda_standin/control.py has them.
template <typename Function>
Function* control(const char* name) {
  static void* const library = dlopen("libcudart.so.13", RTLD_NOW | RTLD_NOLOAD);
  return reinterpret_cast<Function*>(dlsym(library, name));
}

void fail(const char* call, std::uint64_t nth) {
  control<void(const char*, std::uint64_t, int)>("standin_fail")(call, nth, 2);
}
std::uint64_t calls_of(const char* call) { return control<std::uint64_t(const char*)>("standin_count")(call); }
void set_capacity(std::size_t bytes) { control<void(int, std::size_t)>("standin_set_capacity")(0, bytes); }

void check_nothing_is_left() {
  std::size_t live[4] = {};
  control<void(std::size_t*)>("standin_live")(live);
  for (int i = 0; i < 3; ++i) CHECK_EQ(live[i], 0u);
  CHECK_EQ(control<std::size_t(int)>("standin_used")(0), 0u);
}

std::unique_ptr<CudaMemory> make() { return CudaMemory::make(*CudaDriver::instance(), 0); }

// One of everything. False as soon as something is refused; whatever was had goes back either way.
bool use_all(PhysicalMemory& memory) {
  const std::size_t granule = memory.granule_bytes();
  char* const space = static_cast<char*>(memory.reserve_addresses(4 * granule));
  if (space == nullptr) return false;
  Handle handle;
  bool done = memory.commit(space, granule, handle);
  const bool is_open = done && memory.open(space, granule);
  if (is_open) {
    std::memset(handle.address, 5, granule);
    const std::unique_ptr<Backup> backup = memory.make_backup();
    done = backup->save(handle.address, granule);
    if (memory.move(handle, space + 2 * granule)) {
      if (memory.open(space + 2 * granule, granule)) {
        CHECK_EQ(static_cast<char*>(handle.address)[granule - 1], 5);
        for (int tries = 0; !memory.unmap(space, granule); ++tries) {
          CHECK(tries < 2);
          done = false;
        }
      } else {
        done = false;
        CHECK(memory.move_back(handle, space));
        CHECK_EQ(static_cast<char*>(handle.address)[granule - 1], 5);
      }
    } else {
      done = false;
    }
    StreamEvents::Event event = 0;
    if (memory.stream_events()->record(0, event) == StreamEvents::Recorded::yes) {
      done = memory.stream_events()->query(event) == StreamEvents::Progress::done && done;
      done = memory.stream_events()->wait(event) == StreamEvents::Progress::done && done;
      memory.stream_events()->discard(event);
    } else {
      done = false;
    }
  }
  if (done || handle.bytes > 0) {
    done = done && is_open;
    for (int tries = 0; !memory.decommit(handle); ++tries) {
      CHECK(tries < 2);
      done = false;
    }
  }
  memory.free_addresses(space, 4 * granule);
  return done;
}

}  // namespace

TEST(a_device_that_does_not_exist_is_refused) {
  if (!has_standin()) return;
  CHECK(CudaMemory::make(*CudaDriver::instance(), 99) == nullptr);
}

TEST(every_driver_call_fails_once_and_nothing_is_lost) {
  if (!has_standin()) return;
  const std::unique_ptr<CudaMemory> memory = make();
  for (const char* const call : {"cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap",
                                 "cuMemRelease", "cuMemAllocHost", "cuMemcpyDtoH", "cuCtxGetCurrent",
                                 "cuThreadExchangeStreamCaptureMode", "cuStreamIsCapturing", "cuEventRecord"}) {
    const std::uint64_t before = calls_of(call);
    CHECK(use_all(*memory));
    const std::uint64_t calls = calls_of(call) - before;
    CHECK(calls > 0);
    for (std::uint64_t nth = 1; nth <= calls; ++nth) {
      fail(call, nth);
      use_all(*memory);
      fail(call, 0);
      CHECK(use_all(*memory));  // also takes back what could not be released
      check_nothing_is_left();
    }
  }
}

TEST(plain_memory_is_whole_after_a_refusal) {
  if (!has_standin()) return;
  const auto memory = CudaPlainMemory::make(*CudaDriver::instance(), 0);
  const std::size_t bytes = 5 * memory->granule_bytes();
  fail("cuMemAlloc", 1);
  CHECK(memory->reserve_addresses(bytes) == nullptr);
  void* const given_up = memory->reserve_addresses(bytes);  // the limit refuses it: it is never committed
  memory->free_addresses(given_up, bytes);
  void* const space = memory->reserve_addresses(bytes);
  Handle handle;
  CHECK(memory->commit(space, bytes, handle));
  std::memset(space, 1, bytes);
  fail("cuMemFree", 1);
  CHECK(!memory->decommit(handle));
  std::memset(space, 2, bytes);
  CHECK(memory->decommit(handle));
  memory->free_addresses(space, bytes);
  check_nothing_is_left();
}

TEST(the_allocator_works_on_a_device_and_leaves_nothing_there) {
  if (!has_standin()) return;
  set_capacity(600 * kMiB);
  CachingAllocator device("cuda:0", make(), {.thread_cache_bytes = 1 << 20});
  struct Block {
    unsigned char* address;
    std::size_t bytes;
    unsigned char value;
  };
  std::vector<Block> live;
  std::mt19937 random(7);
  for (int step = 0; step < 6000; ++step) {
    if (live.empty() || random() % 2 == 0) {
      const std::size_t bytes = 1 + random() % (random() % 4 == 0 ? 24 * kMiB : 64 << 10);
      try {
        auto* const address = static_cast<unsigned char*>(device.allocate(bytes));
        const auto value = static_cast<unsigned char>(step);
        address[0] = address[bytes / 2] = address[bytes - 1] = value;
        live.push_back({address, bytes, value});
      } catch (const OutOfMemory&) {
        CHECK(device.ledger().held() > 400 * kMiB);
      }
    } else {
      std::swap(live[random() % live.size()], live.back());
      const Block& block = live.back();
      CHECK_EQ(block.address[0], block.value);
      CHECK_EQ(block.address[block.bytes / 2], block.value);
      CHECK_EQ(block.address[block.bytes - 1], block.value);
      CHECK(device.deallocate(block.address));
      live.pop_back();
    }
    if (step % 1000 == 999) {
      device.defragment();
      CHECK_EQ(device.check_invariants(), "");
    }
  }
  CHECK(device.stats().moves > 0);
  for (const Block& block : live) device.deallocate(block.address);
  CHECK_EQ(device.check_invariants(), "");
  device.trim(0);
  CHECK_EQ(device.ledger().held(), 0u);
  check_nothing_is_left();
}

TEST(contents_survive_sleep_on_a_device) {
  if (!has_standin()) return;
  CachingAllocator device("cuda:0", make(), {});
  Account* const pool = device.pools().open("weights", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(device, pool);
  auto* const block = static_cast<char*>(device.allocate(50 * kMiB));
  fixtures::set_current_pool(device, nullptr);
  std::memset(block, 9, 50 * kMiB);
  for (int cycle = 0; cycle < 20; ++cycle) {
    device.sleep_pool(*pool, true);
    CHECK_EQ(device.ledger().held(), 0u);
    device.wake_pool(*pool);
    CHECK_EQ(block[0], 9);
    CHECK_EQ(block[50 * kMiB - 1], 9);
  }
  device.deallocate(block);
  device.pools().drop(*pool);
  device.trim(0);
  check_nothing_is_left();
}
