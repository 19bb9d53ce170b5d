// What others use of a machine, read from the files of fake machines, and a limit that moves with it.
#include <sys/mman.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "backend/host_memory.h"
#include "backend/memory_room.h"
#include "backend/outside_watch.h"
#include "check.h"
#include "core/allocator/caching_allocator.h"
#include "temporary_folder.h"

namespace fs = std::filesystem;
using mempool::auto_limit;
using mempool::CachingAllocator;
using mempool::memory_room;
using mempool::memory_stall_us;
using mempool::OutsideLevel;
using mempool::OutsideWatch;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// A machine of 1,000 MiB, and a group of 400 in it.
class Machine : public TemporaryFolder {
 public:
  Machine() {
    write("proc/meminfo", "MemTotal: 1024000 kB\nMemAvailable: 921600 kB\n");
    write("proc/self/cgroup", "0::/service\n");
    write(group + "memory.max", std::to_string(400 * kMiB) + "\n");
    use(100 * kMiB, 0);
  }
  void write(const std::string& file, const std::string& text) const {
    fs::create_directories(fs::path(path + "/" + file).parent_path());
    std::ofstream(path + "/" + file) << text;
  }
  void use(std::size_t bytes, std::size_t inactive_file) const {
    write(group + "memory.current", std::to_string(bytes) + "\n");
    write(group + "memory.stat", "anon 5\ninactive_file_x 7\ninactive_file " + std::to_string(inactive_file) + "\n");
  }
  void stall(std::uint64_t us) const {
    write(group + "memory.pressure", "some avg10=0.00 avg60=0.00 total=" + std::to_string(us) + "\nfull total=1\n");
  }
  const std::string group = "sys/fs/cgroup/service/";
};

// An allocator of real memory.
struct Cpu {
  CachingAllocator device{"cpu", std::make_unique<mempool::HostMemory>(true), {}};
};

}  // namespace

TEST(room_is_what_the_tightest_group_has_left) {
  const Machine machine;
  CHECK_EQ(memory_room(machine.path).capacity, 400 * kMiB);
  CHECK_EQ(memory_room(machine.path).left, 300 * kMiB);
  machine.use(390 * kMiB, 200 * kMiB);  // the page cache of files that were read once
  CHECK_EQ(memory_room(machine.path).left, 210 * kMiB);
  machine.write(machine.group + "memory.high", std::to_string(350 * kMiB));
  CHECK_EQ(memory_room(machine.path).capacity, 350 * kMiB);
  CHECK_EQ(memory_room(machine.path).left, 160 * kMiB);
  machine.use(900 * kMiB, 0);
  CHECK_EQ(memory_room(machine.path).left, 0u);
  machine.use(0, 0);
  machine.write("proc/meminfo", "MemTotal: 1024000 kB\nMemAvailable: 51200 kB\n");
  CHECK_EQ(memory_room(machine.path).left, 50 * kMiB);
}

TEST(room_of_a_group_of_version_1) {
  const Machine machine;
  const std::string group = "sys/fs/cgroup/memory/outer/";
  machine.write("proc/self/cgroup", "4:memory:/outer/inner\n0::/\n");
  machine.write(group + "memory.limit_in_bytes", std::to_string(200 * kMiB));
  machine.write(group + "memory.usage_in_bytes", std::to_string(150 * kMiB));
  machine.write(group + "memory.stat", "inactive_file 1\ntotal_inactive_file " + std::to_string(50 * kMiB) + "\n");
  machine.write(group + "inner/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK_EQ(memory_room(machine.path).capacity, 200 * kMiB);
  CHECK_EQ(memory_room(machine.path).left, 100 * kMiB);
}

TEST(stalls_are_those_of_the_group_else_of_the_machine) {
  const Machine machine;
  CHECK(!memory_stall_us(machine.path));
  machine.write("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull total=1\n");
  CHECK_EQ(*memory_stall_us(machine.path), 12u);
  machine.stall(34);
  CHECK_EQ(*memory_stall_us(machine.path), 34u);
  machine.write(machine.group + "memory.pressure", "");
  CHECK_EQ(*memory_stall_us(machine.path), 12u);
}

TEST(an_automatic_limit_leaves_a_margin) {
  const Machine machine;
  CHECK_EQ(auto_limit(machine.path).capacity, 400 * kMiB);
  CHECK_EQ(auto_limit(machine.path).limit, 384 * kMiB);
  machine.write(machine.group + "memory.max", std::to_string(20 * kMiB));
  CHECK_EQ(auto_limit(machine.path).limit, 10 * kMiB);
}

TEST(a_rise_counts_at_once_and_a_fall_once_it_has_lasted) {
  OutsideLevel level;
  CHECK_EQ(level.add(0, 100), 100u);
  CHECK_EQ(level.add(250, 300), 300u);
  CHECK_EQ(level.add(500, 50), 300u);
  CHECK_EQ(level.add(750, 200), 300u);
  CHECK_EQ(level.add(2249, 10), 300u);
  CHECK_EQ(level.add(2250, 10), 200u);
  CHECK_EQ(level.add(2750, 10), 10u);
}

TEST(what_was_never_touched_is_not_resident) {
  constexpr std::size_t kBytes = 64 * kMiB;
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  madvise(memory, kBytes, MADV_NOHUGEPAGE);
  const auto start = reinterpret_cast<std::uintptr_t>(memory);
  CHECK_EQ(mempool::resident_bytes({{start, kBytes}}), 0u);
  for (std::size_t i = 0; i < 40 * kMiB; i += 4096) static_cast<char*>(memory)[i] = 1;
  CHECK_EQ(mempool::resident_bytes({{start, kBytes / 2}, {start + kBytes / 2, kBytes / 2}}), 40 * kMiB);
  munmap(memory, kBytes);
  CHECK_EQ(mempool::resident_bytes({{start, kBytes}}), 0u);
}

TEST(what_the_device_itself_has_in_memory_is_not_of_others) {
  const Machine machine;
  Cpu cpu;
  OutsideWatch watch(cpu.device, 400 * kMiB, machine.path);
  CHECK_EQ(watch.look(), 100 * kMiB);
  void* const block = cpu.device.allocate(64 * kMiB);
  CHECK_EQ(watch.look(), 100 * kMiB);  // it is held, and nothing of it is used
  std::fill_n(static_cast<char*>(block), 64 * kMiB, 1);
  machine.use(164 * kMiB, 0);
  CHECK_EQ(watch.look(), 100 * kMiB);
  CHECK_EQ(cpu.device.ledger().outside(), 100 * kMiB);
  cpu.device.deallocate(block);
  cpu.device.trim(0);
  machine.use(100 * kMiB, 0);
  CHECK_EQ(watch.look(), 100 * kMiB);
}

TEST(others_take_the_room_of_a_device_and_give_it_back) {
  const Machine machine;
  Cpu cpu;
  cpu.device.ledger().force_limit(384 * kMiB);
  OutsideWatch watch(cpu.device, 400 * kMiB, machine.path);
  CHECK_EQ(watch.tick(1000), 0u);
  void* const live = cpu.device.allocate(100 * kMiB);
  cpu.device.deallocate(cpu.device.allocate(150 * kMiB));  // free, and held
  CHECK(cpu.device.ledger().held() >= 250 * kMiB);
  machine.use(300 * kMiB, 0);
  const std::size_t missing = watch.tick(1250);
  CHECK(cpu.device.ledger().held() <= 104 * kMiB);  // what was free went back
  CHECK(missing >= 16 * kMiB && missing <= 24 * kMiB);
  CHECK_EQ(watch.tick(1500), 0u);  // it was said once
  bool refused = false;
  try {
    cpu.device.allocate(kMiB);
  } catch (const mempool::OutOfMemory& error) {
    refused = error.info().reason == mempool::OomReason::device_limit && error.info().outside == 300 * kMiB;
  }
  CHECK(refused);
  machine.use(100 * kMiB, 0);
  watch.tick(1750);
  CHECK_EQ(cpu.device.ledger().outside(), 300 * kMiB);  // not at once
  watch.tick(1500 + OutsideLevel::kFallMs);
  CHECK_EQ(cpu.device.ledger().outside(), 100 * kMiB);
  cpu.device.deallocate(cpu.device.allocate(kMiB));
  cpu.device.deallocate(live);
}

TEST(free_memory_goes_back_when_tasks_wait_and_then_the_program_is_asked) {
  const Machine machine;
  Cpu cpu;
  cpu.device.ledger().force_limit(384 * kMiB);
  OutsideWatch watch(cpu.device, 400 * kMiB, machine.path);
  void* const live = cpu.device.allocate(64 * kMiB);
  const auto free_some = [&] { cpu.device.deallocate(cpu.device.allocate(64 * kMiB)); };
  machine.stall(5'000'000);
  watch.tick(1000);  // what was before it looked is no news
  free_some();
  machine.stall(5'050'000);  // a twentieth of a second
  CHECK_EQ(watch.tick(2000), 0u);
  CHECK(cpu.device.ledger().held() >= 128 * kMiB);
  machine.stall(5'250'000);
  CHECK_EQ(watch.tick(3000), 0u);
  CHECK(cpu.device.ledger().held() < 80 * kMiB);
  machine.stall(5'500'000);
  CHECK_EQ(watch.tick(4000), cpu.device.ledger().held() / 32);
  machine.stall(5'800'000);
  CHECK_EQ(watch.tick(5000), 0u);  // it was said
  CHECK_EQ(watch.tick(6000), 0u);
  free_some();
  machine.stall(6'500'000);
  CHECK_EQ(watch.tick(7000), 0u);  // and from the beginning
  CHECK(cpu.device.ledger().held() < 80 * kMiB);
  cpu.device.deallocate(live);
}
