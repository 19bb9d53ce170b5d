#include "backend/host_info.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "backend/control_groups.h"

namespace mempool {
namespace {

std::size_t memory_total(const std::string& root) {
  const std::size_t kib = entry_in(root + "/proc/meminfo", "MemTotal:").value_or(0);
  return kib == 0 ? SIZE_MAX : kib * 1024;
}

std::size_t control_group_limit(const std::string& root) {
  std::size_t least = SIZE_MAX;
  for (const ControlGroup& group : memory_groups(root)) {
    least = std::min(least, number_in(group.folder + (group.is_v1 ? "/memory.limit_in_bytes" : "/memory.max")));
  }
  return least;
}

std::size_t address_space_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
  return limit.rlim_cur;
}

}  // namespace

std::size_t page_bytes() noexcept { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

std::size_t huge_page_bytes(const std::string& root) noexcept {
  try {
    const std::size_t size = number_in(root + "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    return std::has_single_bit(size) && size > page_bytes() ? size : 0;
  } catch (const std::exception&) {
    return 0;
  }
}

bool huge_pages_available() noexcept {
  try {
    const std::string line = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
    return line.find("[always]") != std::string::npos || line.find("[madvise]") != std::string::npos;
  } catch (const std::exception&) {
    return false;
  }
}

std::size_t usable_memory_bytes(const std::string& root) {
  return std::min({memory_total(root), control_group_limit(root), address_space_limit()});
}

}  // namespace mempool
