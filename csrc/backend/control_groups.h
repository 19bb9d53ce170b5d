// The memory control groups that this process is in, of either version, and numbers in the kernel's files. `root` is a
// prefix of each path, for tests.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mempool {

struct ControlGroup {
  std::string folder;
  bool is_v1 = false;
};

// From its own up to the root of each hierarchy. A container may show its group as the root: then the path in
// /proc/self/cgroup does not exist below the mount, and its missing parts are listed as well.
std::vector<ControlGroup> memory_groups(const std::string& root);

// The first line of a file that the kernel offers; empty when it cannot be read.
std::string first_line(const std::string& path);
// That as a number; SIZE_MAX for "max", for what is not a number, and for values that mean "no limit".
std::size_t number_in(const std::string& path);
// What follows `key` and blanks in a file of such lines.
std::optional<std::size_t> entry_in(const std::string& path, std::string_view key);

}  // namespace mempool
