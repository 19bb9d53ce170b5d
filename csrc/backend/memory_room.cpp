#include "backend/memory_room.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <vector>

#include "backend/control_groups.h"
#include "backend/host_info.h"

namespace mempool {
namespace {

std::size_t minus(std::size_t from, std::size_t what) { return from > what ? from - what : 0; }

// The group's own limit; SIZE_MAX for none. Above memory.high the kernel slows tasks down until they stand still.
std::size_t limit_of(const ControlGroup& group) {
  if (group.is_v1) return number_in(group.folder + "/memory.limit_in_bytes");
  return std::min(number_in(group.folder + "/memory.max"), number_in(group.folder + "/memory.high"));
}

// What the group and those below it use, without the page cache that goes first. SIZE_MAX where it does not say.
std::size_t used_in(const ControlGroup& group) {
  const std::size_t usage = number_in(group.folder + (group.is_v1 ? "/memory.usage_in_bytes" : "/memory.current"));
  if (usage == SIZE_MAX) return SIZE_MAX;
  const char* const key = group.is_v1 ? "total_inactive_file" : "inactive_file";
  return minus(usage, entry_in(group.folder + "/memory.stat", key).value_or(0));
}

// "total=" of the line that begins with "some".
std::optional<std::uint64_t> stalled_in(const std::string& path) {
  constexpr std::string_view kKey = "total=";
  const std::string line = first_line(path);
  const auto at = line.find(kKey);
  if (line.compare(0, 5, "some ") != 0 || at == std::string::npos) return std::nullopt;
  std::uint64_t value = 0;
  const char* const begin = line.data() + at + kKey.size();
  const auto [end, error] = std::from_chars(begin, line.data() + line.size(), value);
  if (error != std::errc() || end == begin) return std::nullopt;
  return value;
}

}  // namespace

MemoryRoom memory_room(const std::string& root) {
  MemoryRoom out;
  out.capacity = usable_memory_bytes(root);
  if (const auto kib = entry_in(root + "/proc/meminfo", "MemAvailable:")) out.left = *kib * 1024;
  for (const ControlGroup& group : memory_groups(root)) {
    const std::size_t limit = limit_of(group);
    if (limit == SIZE_MAX) continue;
    out.capacity = std::min(out.capacity, limit);
    const std::size_t used = used_in(group);
    if (used != SIZE_MAX) out.left = std::min(out.left, minus(limit, used));
  }
  out.left = std::min(out.left, out.capacity);
  return out;
}

std::optional<std::uint64_t> memory_stall_us(const std::string& root) {
  for (const ControlGroup& group : memory_groups(root)) {
    if (group.is_v1) continue;
    if (const auto stalled = stalled_in(group.folder + "/memory.pressure")) return stalled;
  }
  return stalled_in(root + "/proc/pressure/memory");
}

}  // namespace mempool
