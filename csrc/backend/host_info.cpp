#include "backend/host_info.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string_view>

#include "common/text.h"

namespace mempool {
namespace {

// The first line of a file that the kernel offers; empty when it cannot be read.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// SIZE_MAX for "max", for what is not a number, and for values that mean "no limit".
std::size_t number_or_max(std::string_view text) {
  text = strip(text);
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && value < (std::size_t{1} << 62) ? value : SIZE_MAX;
}

std::size_t memory_total(const std::string& root) {
  std::ifstream file(root + "/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    constexpr std::string_view kKey = "MemTotal:";
    if (line.compare(0, kKey.size(), kKey) != 0) continue;
    std::istringstream fields(line.substr(kKey.size()));
    std::size_t kib = 0;
    fields >> kib;
    return kib == 0 ? SIZE_MAX : kib * 1024;
  }
  return SIZE_MAX;
}

// The smallest limit from the process's own control group up to the root of the hierarchy. A container may show its
// group as the root: then the path in /proc/self/cgroup does not exist below the mount, and its missing parts are
// skipped.
std::size_t smallest_on_path(const std::string& mount, std::string path, const char* file) {
  std::size_t least = SIZE_MAX;
  while (true) {
    least = std::min(least, number_or_max(first_line(mount + path + "/" + file)));
    const auto slash = path.find_last_of('/');
    if (slash == std::string::npos) return least;
    path.resize(slash);
  }
}

std::size_t control_group_limit(const std::string& root) {
  std::size_t least = SIZE_MAX;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    // "hierarchy:controllers:path"; version 2 has hierarchy 0 and no controllers.
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers == ",,") {
      least = std::min(least, smallest_on_path(root + "/sys/fs/cgroup", path, "memory.max"));
    } else if (controllers.find(",memory,") != std::string::npos) {
      least = std::min(least, smallest_on_path(root + "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
    }
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
    const std::size_t size = number_or_max(first_line(root + "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"));
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
