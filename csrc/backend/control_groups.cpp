#include "backend/control_groups.h"

#include <charconv>
#include <cstdint>
#include <fstream>
#include <sstream>

#include "common/text.h"

namespace mempool {
namespace {

std::size_t number_or_max(std::string_view text) {
  text = strip(text);
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && value < (std::size_t{1} << 62) ? value : SIZE_MAX;
}

}  // namespace

std::vector<ControlGroup> memory_groups(const std::string& root) {
  std::vector<ControlGroup> out;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    // "hierarchy:controllers:path"; version 2 has hierarchy 0 and no controllers.
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_v1 = controllers.find(",memory,") != std::string::npos;
    if (!is_v1 && controllers != ",,") continue;
    const std::string mount = root + (is_v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup");
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    while (true) {
      out.push_back({mount + path, is_v1});
      const auto slash = path.find_last_of('/');
      if (slash == std::string::npos) break;
      path.resize(slash);
    }
  }
  return out;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::size_t number_in(const std::string& path) { return number_or_max(first_line(path)); }

std::optional<std::size_t> entry_in(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0 || line.find_first_of(" \t") != key.size()) continue;
    std::istringstream fields(line.substr(key.size()));
    std::size_t value = 0;
    if (fields >> value) return value;
  }
  return std::nullopt;
}

}  // namespace mempool
