// The devices: how much memory each has, and which host pages play it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace standin {

inline constexpr std::size_t kGranularity = std::size_t{2} << 20;
inline constexpr int kMostDevices = 8;

// Physical memory of one device: ranges of a file in memory, so that the same bytes can be mapped at two addresses. A
// page costs the host something only once it is written.
class Memory {
 public:
  // Offset of `bytes` in the file, or -1 when the device is full. Precondition: a multiple of kGranularity.
  std::int64_t take(std::size_t bytes);
  void give_back(std::int64_t offset);
  int file();

  std::size_t capacity = std::size_t{16} << 30;
  std::size_t used() const { return used_; }
  std::size_t peak = 0;

 private:
  std::map<std::int64_t, std::size_t> taken_;
  std::size_t used_ = 0;
  int file_ = -1;
};

class Devices {
 public:
  static Devices& instance();

  int count() const { return count_; }
  void set_count(int count) { count_ = count; }
  bool exists(int device) const { return device >= 0 && device < count_; }
  // A device without it has plain allocations alone.
  bool manages_virtual_memory() const { return manages_virtual_memory_; }
  void set_manages_virtual_memory(bool manages) { manages_virtual_memory_ = manages; }
  Memory& memory(int device) { return memories_[static_cast<std::size_t>(device)]; }

 private:
  Devices();
  int count_ = 1;
  bool manages_virtual_memory_ = true;
  std::vector<Memory> memories_;
};

// The calling thread's device.
int current_device();
void set_current_device(int device);

}  // namespace standin
