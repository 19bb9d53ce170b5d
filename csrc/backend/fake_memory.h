// A backend for tests and replays: no driver, every call counted, any call made to fail, the contract checked.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/physical_memory.h"

namespace mempool {

class FakeMemory final : public PhysicalMemory {
 public:
  enum class Call : std::uint8_t { reserve, unreserve, commit, decommit, cut, join, move, save, restore };
  static constexpr std::size_t kCalls = 9;

  // The two kinds of memory in the world: `host` can be cut at any granule; `device` handles stay whole and can be
  // mapped at two addresses at once.
  enum class Personality : std::uint8_t { host, device };

  struct Settings {
    Personality personality = Personality::host;
    std::size_t granule_bytes = std::size_t{2} << 20;
    std::size_t capacity_bytes = SIZE_MAX;  // commits beyond it are refused
    bool accessible = true;  // false: addresses alone, for replays larger than the machine; reading one faults
  };

  explicit FakeMemory(const Settings& settings);
  ~FakeMemory() override;

  std::size_t granule_bytes() const noexcept override { return settings_.granule_bytes; }
  Capabilities capabilities() const noexcept override;
  void* reserve(std::size_t bytes) noexcept override;
  void unreserve(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  bool cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept override;
  bool join(Handle& first, const Handle& second) noexcept override;
  bool move(Handle& handle, void* to) noexcept override;
  std::unique_ptr<Backup> make_backup() noexcept override;

  // Makes the n-th call from now (1 = the next one) fail. unreserve cannot fail and does not count; 0 disarms.
  void fail_call(std::uint64_t n) noexcept;
  std::uint64_t calls(Call call) const noexcept;
  std::uint64_t fallible_calls() const noexcept;
  std::size_t committed_bytes() const noexcept;
  std::size_t reserved_bytes() const noexcept;
  // The first use of this backend that broke the contract; empty when there was none.
  std::string violation() const;

 private:
  class FakeBackup;
  using Ranges = std::map<std::uintptr_t, std::size_t>;

  bool enter(Call call) noexcept;  // counts; false when this call is to fail
  bool broken(const char* what) noexcept;
  bool is_mapped_exactly(const Handle& handle) const noexcept;
  bool is_free_space(std::uintptr_t start, std::size_t bytes) const noexcept;
  static bool inside(const Ranges& ranges, std::uintptr_t start, std::size_t bytes) noexcept;
  static bool touches(const Ranges& ranges, std::uintptr_t start, std::size_t bytes) noexcept;

  const Settings settings_;
  mutable std::mutex mutex_;
  Ranges reserved_;
  Ranges mapped_;
  std::array<std::uint64_t, kCalls> calls_{};
  std::uint64_t fail_after_ = 0;
  std::size_t committed_ = 0;
  std::string violation_;
};

}  // namespace mempool
