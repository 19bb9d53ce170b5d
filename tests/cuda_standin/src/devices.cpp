// The memory of the devices that the stand-in plays.
#include "devices.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace standin {
namespace {
thread_local int t_device = 0;
constexpr off_t kFileBytes = off_t{1} << 44;
}  // namespace

int Memory::file() {
  if (file_ < 0) {
    file_ = memfd_create("device memory", MFD_CLOEXEC);
    if (file_ < 0 || ftruncate(file_, kFileBytes) != 0) std::abort();  // a machine that cannot run the tests at all
  }
  return file_;
}

std::int64_t Memory::take(std::size_t bytes) {
  if (bytes > capacity - std::min(used_, capacity)) return -1;
  std::int64_t offset = 0;  // first fit
  for (const auto& [start, size] : taken_) {
    if (start - offset >= static_cast<std::int64_t>(bytes)) break;
    offset = start + static_cast<std::int64_t>(size);
  }
  taken_[offset] = bytes;
  used_ += bytes;
  peak = std::max(peak, used_);
  return offset;
}

void Memory::give_back(std::int64_t offset) {
  const auto found = taken_.find(offset);
  fallocate(file(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(found->second));
  used_ -= found->second;
  taken_.erase(found);
}

Devices& Devices::instance() {
  static Devices* const devices = new Devices;
  return *devices;
}

Devices::Devices() : memories_(kMostDevices) {
  if (const char* const count = std::getenv("CUDA_STANDIN_DEVICES"))
    count_ = std::clamp(std::atoi(count), 0, kMostDevices);
  if (const char* const names = std::getenv("CUDA_VISIBLE_DEVICES")) {  // which of them does not matter: all are alike
    const std::string_view listed(names);
    const auto commas = static_cast<int>(std::ranges::count(listed, ','));
    count_ = std::min(count_, listed.empty() ? 0 : commas + 1);
  }
  if (const char* const bytes = std::getenv("CUDA_STANDIN_CAPACITY")) {
    for (Memory& memory : memories_) memory.capacity = std::strtoull(bytes, nullptr, 10);
  }
}

int current_device() { return t_device; }
void set_current_device(int device) { t_device = device; }

}  // namespace standin
