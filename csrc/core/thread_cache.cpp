#include "core/thread_cache.h"

#include <algorithm>
#include <mutex>

namespace mempool {
namespace {

using Guard = std::lock_guard<AdaptiveMutex>;

// Blocks of one class that a thread may keep: 64 KiB of them, but never so few that each pair visits the arena.
constexpr std::size_t capacity_of(const SizeClass& info) {
  constexpr std::size_t kBytes = std::size_t{64} << 10;
  return std::clamp<std::size_t>(kBytes / info.block_bytes, 4, 64);
}

}  // namespace

ThreadCache::ThreadCache(CachingAllocator& owner_in, Arena& arena, std::size_t most_bytes)
    : owner(owner_in), arena_(arena), most_bytes_(most_bytes) {
  std::uint32_t slots = 0;
  for (std::size_t i = 0; i < kSmallClasses; ++i) {
    bins_[i].capacity = static_cast<std::uint16_t>(capacity_of(kSizeClasses[i]));
    bins_[i].first = slots;
    slots += bins_[i].capacity;
  }
  slots_ = std::make_unique<SmallBlock[]>(slots);
}

bool ThreadCache::refill(std::size_t size_class, SmallBlock& out, const Supply& supply, Refusal& why) noexcept {
  Bin& bin = bins_[size_class];
  const std::size_t size = kSizeClasses[size_class].block_bytes;
  // Half of the bin, so that frees which follow find room.
  const std::size_t room = most_bytes_ > bytes_ ? (most_bytes_ - bytes_) / size : 0;
  const std::size_t batch = std::clamp<std::size_t>(room, 1, bin.capacity / 2);
  const Guard guard(arena_.mutex);
  const std::size_t filled = arena_.slabs.allocate(size_class, &slots_[bin.first], batch, supply, why);
  if (filled == 0) return false;
  // The lowest address goes out first.
  std::reverse(&slots_[bin.first], &slots_[bin.first + filled]);
  out = slots_[bin.first + filled - 1];
  bin.count = static_cast<std::uint16_t>(filled - 1);
  bytes_ += (filled - 1) * size;
  return true;
}

// The bin or the whole cache is full: the older half of the bin goes, or everything.
void ThreadCache::make_room(std::size_t size_class) noexcept {
  Bin& bin = bins_[size_class];
  if (bin.count < bin.capacity) {
    flush_kept_by_bytes();
    return;
  }
  const std::uint16_t leave = bin.count / 2;
  SmallBlock* const first = &slots_[bin.first];
  {
    const Guard guard(arena_.mutex);
    for (std::uint16_t i = 0; i < leave; ++i) arena_.slabs.free(first[i]);
  }
  std::copy(first + leave, first + bin.count, first);
  bin.count = static_cast<std::uint16_t>(bin.count - leave);
  bytes_ -= std::size_t{leave} * kSizeClasses[size_class].block_bytes;
}

void ThreadCache::give_back(const SmallBlock& block) noexcept {
  const Guard guard(arena_.mutex);
  arena_.slabs.free(block);
}

void ThreadCache::push_medium(Span* span) noexcept {
  if (bytes_ + span->bytes > most_bytes_) {
    if (bytes_ > 0) flush_kept_by_bytes();
    if (span->bytes > most_bytes_) {
      const Guard guard(arena_.mutex);
      arena_.pages.free(span);
      return;
    }
  }
  Span*& head = medium_[medium_bin(span->bytes)];
  span->cached_next = head;
  head = span;
  bytes_ += span->bytes;
}

void ThreadCache::flush() noexcept {
  flush_kept_by_bytes();
  flush_large();
}

void ThreadCache::flush_kept_by_bytes() noexcept {
  const Guard guard(arena_.mutex);
  for (Bin& bin : bins_) {
    for (; bin.count > 0; --bin.count) arena_.slabs.free(slots_[bin.first + bin.count - 1]);
  }
  for (Span*& head : medium_) {
    while (head != nullptr) {
      Span* const span = head;
      head = span->cached_next;
      arena_.pages.free(span);
    }
  }
  bytes_ = 0;
}

void ThreadCache::evict_large(std::size_t count) noexcept {
  if (count == 0) return;
  std::size_t bytes = 0;
  {
    const Guard guard(arena_.mutex);
    for (std::size_t i = 0; i < count; ++i) {
      bytes += large_sizes_[i];
      arena_.pages.free(large_[i]);
    }
  }
  std::copy(large_sizes_.begin() + count, large_sizes_.begin() + large_count_, large_sizes_.begin());
  std::copy(large_.begin() + count, large_.begin() + large_count_, large_.begin());
  large_count_ -= count;
  set_large_bytes(large_bytes() - bytes);
}

}  // namespace mempool
