#include "backend/pinned_memory.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include "backend/address_space.h"
#include "common/bytes.h"
#include "common/expects.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<std::mutex>;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kHugePage = std::size_t{2} << 20;  // the pages of a longer range may be huge ones

std::int64_t microseconds_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
}

}  // namespace

void PinnedMemory::Times::add(std::int64_t us) noexcept {
  least_us = count == 0 ? us : std::min(least_us, us);
  most_us = std::max(most_us, us);
  total_us += us;
  ++count;
}

PinnedMemory::PinnedMemory(std::unique_ptr<HostRegistrar> registrar, std::unique_ptr<StreamEvents> events,
                           bool huge_pages)
    : registrar_(std::move(registrar)), events_(std::move(events)), huge_pages_(huge_pages) {}

// Locking touches every page, and so backs it.
void* PinnedMemory::reserve_addresses(std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(nullptr, bytes));
  if (registrar_->is_cut_off()) return nullptr;
  void* const address = map_space(bytes, bytes >= kHugePage ? std::max(kHugePage, granule_) : granule_);
  if (address == nullptr) return nullptr;
  if (bytes >= kHugePage) advise_huge_pages(address, bytes, huge_pages_);
  const Clock::time_point start = Clock::now();
  const bool is_open = open_space(address, bytes);
  const int error = is_open ? registrar_->lock(address, bytes) : 0;
  if (!is_open || error != 0) {
    unmap_space(address, bytes);
    const Guard guard(mutex_);
    refused_bytes_ = bytes;
    refusal_ = error;
    return nullptr;
  }
  const std::int64_t took_us = microseconds_since(start);
  const Guard guard(mutex_);
  figures_.locking.add(took_us);
  ++figures_.locked_by_size[static_cast<std::size_t>(std::bit_width(bytes - 1))];
  return address;
}

bool PinnedMemory::release(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(address != nullptr && is_on_granules(address, bytes));
  if (registrar_->is_cut_off()) return false;
  const Clock::time_point start = Clock::now();
  if (registrar_->unlock(address) != 0) return false;
  unmap_space(address, bytes);
  const std::int64_t took_us = microseconds_since(start);
  const Guard guard(mutex_);
  figures_.unlocking.add(took_us);
  return true;
}

// What the driver does not unlock stays mapped: it may write there.
void PinnedMemory::free_addresses(void* address, std::size_t bytes) noexcept { release(address, bytes); }

bool PinnedMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  MEMPOOL_EXPECTS(address != nullptr && is_on_granules(address, bytes));
  out = {address, bytes, 0};
  return true;
}

bool PinnedMemory::decommit(const Handle& handle) noexcept { return release(handle.address, handle.bytes); }

// Where the driver is out of reach the process is a forked one: a thread of its parent may hold the mutex.
std::string PinnedMemory::last_refusal() const {
  if (registrar_->is_cut_off()) return {};
  const Guard guard(mutex_);
  if (refused_bytes_ == 0) return {};
  if (refusal_ == 0) return "the system has no " + format_bytes(refused_bytes_) + " to page-lock";
  return "the CUDA driver did not page-lock " + format_bytes(refused_bytes_) + " (error " + std::to_string(refusal_) +
         ")";
}

PinnedMemory::Figures PinnedMemory::figures() const {
  if (registrar_->is_cut_off()) return {};
  const Guard guard(mutex_);
  return figures_;
}

void PinnedMemory::reset_figures() {
  if (registrar_->is_cut_off()) return;
  const Guard guard(mutex_);
  figures_ = {};
}

}  // namespace mempool
