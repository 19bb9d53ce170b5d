#include "backend/fake_memory.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/address_space.h"
#include "common/align.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<std::mutex>;

std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

// Takes addresses that no process can map (the upper half of the 48 bits that the page map knows). Each is given out
// once, as fakes of several threads must not share one. 0 when they are used up, after 128 TiB.
std::uintptr_t take_addresses(std::size_t bytes, std::size_t alignment) {
  constexpr std::uintptr_t kFirst = std::uintptr_t{1} << 47;
  constexpr std::uintptr_t kEnd = std::uintptr_t{1} << 48;
  static std::atomic<std::uintptr_t> next{kFirst};
  if (bytes >= kEnd - kFirst) return 0;
  const std::uintptr_t raw = next.fetch_add(bytes + 2 * alignment);
  const std::uintptr_t start = align_up(raw, alignment);
  if (start + bytes <= kEnd) return start;
  next.fetch_sub(bytes + 2 * alignment);
  return 0;
}

}  // namespace

FakeMemory::FakeMemory(const Settings& settings) : settings_(settings) {}

FakeMemory::~FakeMemory() {
  if (!settings_.accessible) return;
  for (const auto& [start, bytes] : reserved_) unmap_space(reinterpret_cast<void*>(start), bytes);  // NOLINT
}

PhysicalMemory::Capabilities FakeMemory::capabilities() const noexcept {
  switch (settings_.personality) {
    case Personality::host:
      return {.can_cut = true, .can_move = true};
    case Personality::device:
      return {.can_alias = true, .can_move = true};
    case Personality::exact:
      return {.backs_addresses = true, .takes_exactly = true};
    default:
      return {.backs_addresses = true, .decommit_waits = true};
  }
}

// ---- checking ----------------------------------------------------------------------------------------------------

bool FakeMemory::enter(Call call) noexcept {
  ++calls_[static_cast<std::size_t>(call)];
  if (call == Call::free_addresses || fail_after_ == 0) return true;
  return --fail_after_ != 0;
}

bool FakeMemory::broken(const char* what) noexcept {
  if (violation_.empty()) violation_ = what;
  return false;
}

bool FakeMemory::inside(const Ranges& ranges, std::uintptr_t start, std::size_t bytes) noexcept {
  auto it = ranges.upper_bound(start);
  if (it == ranges.begin()) return false;
  --it;
  return start + bytes <= it->first + it->second;
}

bool FakeMemory::touches(const Ranges& ranges, std::uintptr_t start, std::size_t bytes) noexcept {
  auto it = ranges.lower_bound(start);
  if (it != ranges.end() && it->first < start + bytes) return true;
  return it != ranges.begin() && std::prev(it)->first + std::prev(it)->second > start;
}

bool FakeMemory::is_free_space(std::uintptr_t start, std::size_t bytes) const noexcept {
  return bytes != 0 && start % settings_.granule_bytes == 0 && bytes % settings_.granule_bytes == 0 &&
         inside(reserved_, start, bytes) && !touches(mapped_, start, bytes) && !touches(left_, start, bytes);
}

bool FakeMemory::is_mapped_exactly(const Handle& handle) const noexcept {
  const auto it = mapped_.find(number(handle.address));
  return it != mapped_.end() && it->second == handle.bytes;
}

// ---- the contract ------------------------------------------------------------------------------------------------

void* FakeMemory::reserve_addresses(std::size_t bytes) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::reserve_addresses)) return nullptr;
  if (bytes == 0 || bytes % settings_.granule_bytes != 0) {
    broken("reserve: odd size");
    return nullptr;
  }
  if (capabilities().backs_addresses && bytes > settings_.capacity_bytes - reserved_total()) return nullptr;
  std::uintptr_t start = 0;
  if (settings_.accessible) {
    start = number(map_space(bytes, settings_.granule_bytes));
    if (start == 0) return nullptr;
  } else {
    start = take_addresses(bytes, settings_.granule_bytes);
    if (start == 0) return nullptr;
  }
  reserved_[start] = bytes;
  return reinterpret_cast<void*>(start);  // NOLINT(performance-no-int-to-ptr)
}

void FakeMemory::free_addresses(void* address, std::size_t bytes) noexcept {
  const Guard guard(mutex_);
  enter(Call::free_addresses);
  const auto it = reserved_.find(number(address));
  if (it == reserved_.end() || it->second != bytes || touches(mapped_, number(address), bytes) ||
      touches(left_, number(address), bytes)) {
    broken("free_addresses: not a whole reservation, or something is mapped in it");
    return;
  }
  if (settings_.accessible) unmap_space(address, bytes);
  reserved_.erase(it);
}

bool FakeMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::commit)) return false;
  if (!is_free_space(number(address), bytes)) return broken("commit: not free reserved space on granules");
  if (bytes > settings_.capacity_bytes - committed_) return false;
  if (capabilities().backs_addresses) {
    const auto it = reserved_.find(number(address));
    if (it == reserved_.end() || it->second != bytes) return broken("commit: not a whole reservation");
  }
  if (settings_.accessible && !open_space(address, bytes)) return false;
  mapped_[number(address)] = bytes;
  if (capabilities().can_alias) closed_[number(address)] = bytes;
  committed_ += bytes;
  out = {address, bytes, 0};
  return true;
}

bool FakeMemory::open(void* address, std::size_t bytes) noexcept {
  if (!capabilities().can_alias) return true;
  const Guard guard(mutex_);
  if (!enter(Call::open)) return false;
  std::uintptr_t at = number(address);
  for (auto it = mapped_.find(at); it != mapped_.end() && it->first == at && at < number(address) + bytes; ++it) {
    at += it->second;
  }
  if (at != number(address) + bytes) return broken("open: not whole handles in a row");
  closed_.erase(closed_.lower_bound(number(address)), closed_.lower_bound(at));
  return true;
}

bool FakeMemory::decommit(const Handle& handle) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::decommit)) return false;
  if (!is_mapped_exactly(handle)) return broken("decommit: not a whole handle");
  if (settings_.accessible && !shut_space(handle.address, handle.bytes)) return false;
  mapped_.erase(number(handle.address));
  closed_.erase(number(handle.address));
  committed_ -= handle.bytes;
  if (capabilities().backs_addresses) {
    if (settings_.accessible) unmap_space(handle.address, handle.bytes);
    reserved_.erase(number(handle.address));
  }
  return true;
}

bool FakeMemory::cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::cut)) return false;
  if (!capabilities().can_cut) return broken("cut: handles of this memory stay whole");
  if (!is_mapped_exactly(handle)) return broken("cut: not a whole handle");
  if (first_bytes == 0 || first_bytes >= handle.bytes || first_bytes % settings_.granule_bytes != 0) {
    return broken("cut: not on a granule inside the handle");
  }
  rest = {static_cast<char*>(handle.address) + first_bytes, handle.bytes - first_bytes, 0};
  handle.bytes = first_bytes;
  mapped_[number(handle.address)] = handle.bytes;
  mapped_[number(rest.address)] = rest.bytes;
  return true;
}

bool FakeMemory::join(Handle& first, const Handle& second) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::join)) return false;
  if (!capabilities().can_cut) return broken("join: handles of this memory stay whole");
  if (!is_mapped_exactly(first) || !is_mapped_exactly(second)) return broken("join: not whole handles");
  const std::size_t bytes = first.bytes + second.bytes;
  if (number(first.address) + first.bytes != number(second.address) ||
      !inside(reserved_, number(first.address), bytes)) {
    return broken("join: not neighbours in one reservation");
  }
  mapped_.erase(number(second.address));
  first.bytes = bytes;
  mapped_[number(first.address)] = bytes;
  return true;
}

bool FakeMemory::move(Handle& handle, void* to) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::move)) return false;
  if (!capabilities().can_move) return broken("move: this memory cannot");
  if (!is_mapped_exactly(handle)) return broken("move: not a whole handle");
  if (!is_free_space(number(to), handle.bytes)) return broken("move: the target is not free reserved space");
  if (settings_.accessible) {
    // A fake may copy: tests ask only that contents arrive, and that the old address is no longer used.
    if (!open_space(to, handle.bytes)) return false;
    std::memcpy(to, handle.address, handle.bytes);
    if (!capabilities().can_alias && !shut_space(handle.address, handle.bytes)) return false;
  }
  mapped_.erase(number(handle.address));
  mapped_[number(to)] = handle.bytes;
  if (capabilities().can_alias) left_[number(handle.address)] = closed_[number(to)] = handle.bytes;
  handle.address = to;
  return true;
}

bool FakeMemory::move_back(Handle& handle, void* from) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::move)) return false;
  const auto left = left_.find(number(from));
  if (!is_mapped_exactly(handle) || left == left_.end() || left->second != handle.bytes) {
    return broken("move_back: it did not come from there");
  }
  if (settings_.accessible && !shut_space(handle.address, handle.bytes)) return false;
  mapped_.erase(number(handle.address));
  closed_.erase(number(handle.address));
  mapped_[left->first] = left->second;
  left_.erase(left);
  handle.address = from;
  return true;
}

bool FakeMemory::unmap(void* address, std::size_t bytes) noexcept {
  const Guard guard(mutex_);
  if (!enter(Call::unmap)) return false;
  const std::uintptr_t start = number(address);
  std::uintptr_t at = start;
  auto it = left_.find(at);
  for (; it != left_.end() && it->first == at && at < start + bytes; ++it) at += it->second;
  if (at != start + bytes) return broken("unmap: not whole ranges in a row");
  if (settings_.accessible && !shut_space(address, bytes)) return false;
  left_.erase(left_.find(start), it);
  return true;
}

// ---- controls ----------------------------------------------------------------------------------------------------

void FakeMemory::fail_call(std::uint64_t n) noexcept {
  const Guard guard(mutex_);
  fail_after_ = n;
}

std::uint64_t FakeMemory::calls(Call call) const noexcept {
  const Guard guard(mutex_);
  return calls_[static_cast<std::size_t>(call)];
}

std::uint64_t FakeMemory::fallible_calls() const noexcept {
  const Guard guard(mutex_);
  return std::accumulate(calls_.begin(), calls_.end(), std::uint64_t{0}) -
         calls_[static_cast<std::size_t>(Call::free_addresses)];
}

std::size_t FakeMemory::committed_bytes() const noexcept {
  const Guard guard(mutex_);
  return committed_;
}

std::size_t FakeMemory::reserved_bytes() const noexcept {
  const Guard guard(mutex_);
  return reserved_total();
}

std::size_t FakeMemory::reserved_total() const noexcept {
  std::size_t sum = 0;
  for (const auto& [start, bytes] : reserved_) sum += bytes;
  return sum;
}

std::string FakeMemory::violation() const {
  const Guard guard(mutex_);
  return violation_;
}

// ---- backup ------------------------------------------------------------------------------------------------------

// A backup in copies. A FakeMemory outlives its backups: heaps are destroyed before their backend.
class FakeMemory::FakeBackup final : public Backup {
 public:
  explicit FakeBackup(FakeMemory& memory) : memory_(memory) {}
  bool save(const void* address, std::size_t bytes) noexcept override {
    if (!enter(Call::save)) return false;
    if (!memory_.settings_.accessible) return true;
    const char* const from = static_cast<const char*>(address);
    try {
      copies_.emplace_back(number(address), std::vector<char>(from, from + bytes));
    } catch (const std::bad_alloc&) {
      return false;
    }
    return true;
  }
  std::string problem() const override { return "the fake backup has failed"; }
  bool restore() noexcept override {
    if (!enter(Call::restore)) return false;
    for (const auto& [start, copy] : copies_) {
      std::memcpy(reinterpret_cast<void*>(start), copy.data(), copy.size());  // NOLINT(performance-no-int-to-ptr)
    }
    return true;
  }

 private:
  bool enter(Call call) noexcept {
    const Guard guard(memory_.mutex_);
    return memory_.enter(call);
  }

  FakeMemory& memory_;
  std::vector<std::pair<std::uintptr_t, std::vector<char>>> copies_;
};

std::unique_ptr<Backup> FakeMemory::make_backup() noexcept {
  return std::unique_ptr<Backup>(new (std::nothrow) FakeBackup(*this));
}

}  // namespace mempool
