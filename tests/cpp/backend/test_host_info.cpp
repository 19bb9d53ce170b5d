// How much memory a machine lets a process use, read from the files of fake machines.
#include <bit>
#include <filesystem>
#include <fstream>
#include <string>

#include "backend/host_info.h"
#include "check.h"
#include "temporary_folder.h"

namespace fs = std::filesystem;
using mempool::usable_memory_bytes;

namespace {

// A made-up root of the file system.
class Root : public TemporaryFolder {
 public:
  Root() { write("proc/meminfo", "MemFree: 5 kB\nMemTotal:       1000 kB\n"); }
  void write(const std::string& file, const std::string& text) const {
    fs::create_directories(fs::path(path + "/" + file).parent_path());
    std::ofstream(path + "/" + file) << text;
  }
};

}  // namespace

TEST(memory_of_the_machine) {
  const Root root;
  CHECK_EQ(usable_memory_bytes(root.path), 1000u * 1024);
}

TEST(the_smallest_enclosing_group_decides) {
  const Root root;
  root.write("proc/self/cgroup", "0::/outer/inner\n");
  root.write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  CHECK_EQ(usable_memory_bytes(root.path), 1000u * 1024);
  root.write("sys/fs/cgroup/outer/memory.max", "4096\n");
  CHECK_EQ(usable_memory_bytes(root.path), 4096u);
  root.write("sys/fs/cgroup/outer/inner/memory.max", "2048\n");
  CHECK_EQ(usable_memory_bytes(root.path), 2048u);
  root.write("sys/fs/cgroup/memory.max", "1024\n");
  CHECK_EQ(usable_memory_bytes(root.path), 1024u);
}

TEST(control_groups_of_version_1) {
  const Root root;
  root.write("proc/self/cgroup", "5:cpu:/a\n4:memory:/a\n");
  root.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "8192\n");
  root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK_EQ(usable_memory_bytes(root.path), 8192u);
}

TEST(the_real_machine_has_memory) {
  CHECK(usable_memory_bytes() > (std::size_t{64} << 20));
  CHECK(std::has_single_bit(mempool::page_bytes()));
}

TEST(huge_pages_of_every_size_are_read) {
  const Root root;
  const std::string file = "sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
  CHECK_EQ(mempool::huge_page_bytes(root.path), 0u);
  for (const std::size_t mib : {2u, 32u, 512u}) {
    root.write(file, std::to_string(mib << 20) + "\n");
    CHECK_EQ(mempool::huge_page_bytes(root.path), mib << 20);
  }
  for (const char* const odd : {"0", "3145728", "no number", "4096"}) {
    root.write(file, odd);
    CHECK_EQ(mempool::huge_page_bytes(root.path), 0u);
  }
}
