// One suite that every backend must pass: the contract of physical_memory.h, call by call.
#include <sys/resource.h>
#include <sys/sysinfo.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>

#include "backend/address_space.h"
#include "backend/cuda_memory.h"
#include "backend/cuda_registrar.h"
#include "backend/fake_memory.h"
#include "backend/host_info.h"
#include "backend/host_memory.h"
#include "backend/pinned_memory.h"
#include "check.h"
#include "common/align.h"

using namespace mempool;

namespace {

// Locks in its books alone, and refuses what a driver would: a range of which a part is locked, and any other's end.
class Books final : public HostRegistrar {
 public:
  int lock(void* address, std::size_t bytes) noexcept override {
    const auto start = reinterpret_cast<std::uintptr_t>(address);
    const auto next = locked_.lower_bound(start);
    if (next != locked_.end() && next->first < start + bytes) return 712;
    if (next != locked_.begin() && std::prev(next)->first + std::prev(next)->second > start) return 712;
    std::memset(address, 1, bytes);  // a driver touches all pages
    locked_[start] = bytes;
    return 0;
  }
  int unlock(void* address) noexcept override {
    return locked_.erase(reinterpret_cast<std::uintptr_t>(address)) == 1 ? 0 : 713;
  }

 private:
  std::map<std::uintptr_t, std::size_t> locked_;
};

using Backend = std::function<std::unique_ptr<PhysicalMemory>()>;

void for_each_backend(const std::function<void(PhysicalMemory&)>& body) {
  using Personality = FakeMemory::Personality;
  std::vector<Backend> backends{
      [] { return std::make_unique<FakeMemory>(FakeMemory::Settings{.personality = Personality::host}); },
      [] { return std::make_unique<FakeMemory>(FakeMemory::Settings{.personality = Personality::device}); },
      [] {
        return std::make_unique<FakeMemory>(
            FakeMemory::Settings{.personality = Personality::host, .granule_bytes = std::size_t{64} << 10});
      },
      [] { return std::make_unique<FakeMemory>(FakeMemory::Settings{.personality = Personality::plain}); },
      [] {
        return std::make_unique<FakeMemory>(
            FakeMemory::Settings{.personality = Personality::exact, .granule_bytes = page_bytes()});
      },
      [] { return std::make_unique<PinnedMemory>(std::make_unique<Books>(), nullptr, true); },
      [] { return std::make_unique<HostMemory>(true); },
      [] { return std::make_unique<HostMemory>(false); },
      [] { return std::make_unique<HostMemory>(true, MoveSupport{.moves = true, .across_mappings = false}); },
      [] { return std::make_unique<HostMemory>(true, MoveSupport{}); },
  };
  // Where the stand-in plays the driver: there the host can touch what a device has.
  if (std::getenv("CUDA_STANDIN_LIB") != nullptr) {
    CHECK_EQ(CudaDriver::why(), "");
    backends.push_back([] { return CudaMemory::make(*CudaDriver::instance(), 0); });
    backends.push_back([] { return std::make_unique<PinnedMemory>(std::make_unique<CudaRegistrar>(), nullptr, true); });
  }
  for (const Backend& make : backends) {
    const std::unique_ptr<PhysicalMemory> memory = make();
    body(*memory);
    if (const auto* fake = dynamic_cast<FakeMemory*>(memory.get())) CHECK_EQ(fake->violation(), "");
  }
}

char* at(void* address, std::size_t offset) { return static_cast<char*>(address) + offset; }

}  // namespace

TEST(reserved_space_is_aligned_and_commits_are_writable) {
  for_each_backend([](PhysicalMemory& memory) {
    const std::size_t granule = memory.granule_bytes();
    CHECK(granule % page_bytes() == 0 && (granule & (granule - 1)) == 0);
    if (memory.capabilities().backs_addresses) return;
    void* const space = memory.reserve_addresses(4 * granule);
    CHECK(space != nullptr);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(space) % granule, 0u);
    Handle handle;
    CHECK(memory.commit(at(space, granule), 2 * granule, handle));
    CHECK(handle.address == at(space, granule));
    CHECK_EQ(handle.bytes, 2 * granule);
    CHECK(memory.open(handle.address, handle.bytes));
    std::memset(handle.address, 7, handle.bytes);
    CHECK(memory.decommit(handle));
    memory.free_addresses(space, 4 * granule);
  });
}

TEST(memory_that_comes_with_its_address_goes_with_it) {
  for_each_backend([](PhysicalMemory& memory) {
    const PhysicalMemory::Capabilities can = memory.capabilities();
    if (!can.backs_addresses) return;
    CHECK(!can.can_cut && !can.can_move && !can.can_alias);
    const std::size_t granule = memory.granule_bytes();
    for (const std::size_t granules : {1, 3, 700}) {
      void* const space = memory.reserve_addresses(granules * granule);
      CHECK(space != nullptr);
      CHECK_EQ(reinterpret_cast<std::uintptr_t>(space) % granule, 0u);
      Handle handle;
      CHECK(memory.commit(space, granules * granule, handle));
      CHECK(handle.address == space);
      CHECK_EQ(handle.bytes, granules * granule);
      CHECK(memory.open(handle.address, handle.bytes));
      std::memset(handle.address, 7, handle.bytes);
      CHECK(memory.decommit(handle));
    }
    void* const unused = memory.reserve_addresses(granule);
    CHECK(unused != nullptr);
    memory.free_addresses(unused, granule);
    CHECK(memory.make_backup() == nullptr || dynamic_cast<FakeMemory*>(&memory) != nullptr);
  });
}

TEST(handles_are_cut_and_joined_where_that_is_possible) {
  for_each_backend([](PhysicalMemory& memory) {
    if (!memory.capabilities().can_cut) return;
    const std::size_t granule = memory.granule_bytes();
    void* const space = memory.reserve_addresses(4 * granule);
    Handle whole;
    CHECK(memory.commit(space, 4 * granule, whole));
    CHECK(memory.open(space, 4 * granule));
    *at(space, 3 * granule) = 42;
    Handle rest;
    CHECK(memory.cut(whole, granule, rest));
    CHECK_EQ(whole.bytes, granule);
    CHECK(rest.address == at(space, granule));
    Handle tail;
    CHECK(memory.cut(rest, 2 * granule, tail));
    CHECK(memory.decommit(rest));
    CHECK_EQ(*at(space, 3 * granule), 42);
    Handle again;
    CHECK(memory.commit(at(space, granule), 2 * granule, again));
    CHECK(memory.open(at(space, granule), 2 * granule));
    CHECK(memory.join(whole, again));
    CHECK(memory.join(whole, tail));
    CHECK_EQ(whole.bytes, 4 * granule);
    CHECK_EQ(*at(space, 3 * granule), 42);
    CHECK(memory.decommit(whole));
    memory.free_addresses(space, 4 * granule);
  });
}

TEST(moving_a_handle_carries_its_contents) {
  for_each_backend([](PhysicalMemory& memory) {
    if (!memory.capabilities().can_move) return;
    const std::size_t granule = memory.granule_bytes();
    void* const space = memory.reserve_addresses(4 * granule);
    Handle handle;
    CHECK(memory.commit(space, granule, handle));
    CHECK(memory.open(space, granule));
    std::memset(handle.address, 9, granule);
    CHECK(memory.move(handle, at(space, 2 * granule)));
    CHECK(memory.open(at(space, 2 * granule), granule));
    CHECK(handle.address == at(space, 2 * granule));
    if (memory.capabilities().can_alias) {
      CHECK_EQ(*at(space, 5), 9);  // for work that uses it still
      CHECK(memory.unmap(space, granule));
    }
    for (std::size_t i = 0; i < granule; i += page_bytes()) CHECK_EQ(*at(handle.address, i), 9);
    Handle other;
    CHECK(memory.commit(space, granule, other));  // the old place is free again
    CHECK(memory.open(space, granule));
    *at(space, 0) = 1;
    CHECK(memory.decommit(other));
    CHECK(memory.decommit(handle));
    memory.free_addresses(space, 4 * granule);
  });
}

TEST(handles_in_a_row_are_opened_and_left_in_one_call) {
  for_each_backend([](PhysicalMemory& memory) {
    if (!memory.capabilities().can_alias) return;
    const std::size_t granule = memory.granule_bytes();
    void* const space = memory.reserve_addresses(8 * granule);
    Handle first;
    Handle second;
    CHECK(memory.commit(space, granule, first));
    CHECK(memory.commit(at(space, granule), 2 * granule, second));
    CHECK(memory.open(space, 3 * granule));
    std::memset(space, 3, 3 * granule);
    CHECK(memory.move(second, at(space, 4 * granule)));
    CHECK(memory.move_back(second, at(space, granule)));
    CHECK_EQ(*at(space, granule), 3);
    CHECK(memory.move(second, at(space, 4 * granule)));
    CHECK(memory.move(first, at(space, 6 * granule)));
    CHECK(memory.open(at(space, 4 * granule), 3 * granule));
    CHECK(memory.unmap(space, 3 * granule));
    CHECK_EQ(*at(space, 4 * granule), 3);
    CHECK_EQ(*at(space, 7 * granule - 1), 3);
    CHECK(memory.decommit(first));
    CHECK(memory.decommit(second));
    memory.free_addresses(space, 8 * granule);
  });
}

TEST(an_impossible_reservation_is_refused) {
  for_each_backend([](PhysicalMemory& memory) { CHECK(memory.reserve_addresses(std::size_t{1} << 60) == nullptr); });
}

TEST(the_host_refuses_what_the_machine_can_never_back) {
  HostMemory memory(true);
  struct sysinfo machine {};
  CHECK_EQ(sysinfo(&machine), 0);
  const std::size_t backed = (machine.totalram + machine.totalswap) * machine.mem_unit;
  const std::size_t bytes = align_up(2 * backed, memory.granule_bytes());
  void* const space = memory.reserve_addresses(bytes);
  if (space == nullptr) return;  // even the address space is refused: all the better
  Handle handle;
  CHECK(!memory.commit(space, bytes, handle));
  CHECK(memory.commit(space, memory.granule_bytes(), handle));
  CHECK(memory.decommit(handle));
  memory.free_addresses(space, bytes);
}

TEST(the_fake_counts_fails_and_checks) {
  FakeMemory memory({.capacity_bytes = std::size_t{4} << 20});
  const std::size_t granule = memory.granule_bytes();
  void* const space = memory.reserve_addresses(8 * granule);
  Handle handle;
  memory.fail_call(2);
  CHECK(memory.commit(space, granule, handle));
  CHECK(!memory.commit(at(space, granule), granule, handle));      // the second call
  CHECK(!memory.commit(at(space, granule), 3 * granule, handle));  // over the capacity
  CHECK_EQ(memory.calls(FakeMemory::Call::commit), 3u);
  CHECK_EQ(memory.fallible_calls(), 4u);
  CHECK_EQ(memory.committed_bytes(), granule);
  CHECK_EQ(memory.violation(), "");
  CHECK(!memory.commit(space, granule, handle));
  CHECK_EQ(memory.violation(), "commit: not free reserved space on granules");
}

// A kernel that refuses a move may have unmapped its target before it found out.
TEST(a_refused_move_leaves_source_and_target_reserved) {
  using mempool::Move;
  const std::size_t page = page_bytes();
  auto* const space = static_cast<char*>(mempool::map_space(64 * page, page));
  CHECK(mempool::open_space(space, 4 * page));
  std::memset(space, 5, 4 * page);
  rlimit before{};
  getrlimit(RLIMIT_DATA, &before);
  rlimit tight = before;
  tight.rlim_cur = 1;  // a move counts its bytes twice for a moment
  CHECK_EQ(setrlimit(RLIMIT_DATA, &tight), 0);
  const Move result = mempool::move_pages(space, space + 32 * page, 4 * page);
  setrlimit(RLIMIT_DATA, &before);
  if (result == Move::done) return;  // this kernel does not mind
  CHECK(result == Move::refused);
  CHECK_EQ(space[3 * page], 5);
  // The target is ours still: nothing else was mapped there, and it opens.
  CHECK(mempool::open_space(space + 32 * page, 4 * page));
  CHECK_EQ(space[32 * page], 0);
  mempool::unmap_space(space, 64 * page);
}
