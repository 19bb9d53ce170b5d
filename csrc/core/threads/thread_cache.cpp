#include "core/threads/thread_cache.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

namespace mempool {
namespace {

using Guard = std::lock_guard<CountedMutex>;

}  // namespace

ThreadCache::ThreadCache(Owner& owner_in, Arena& arena, std::size_t most_small_bytes)
    : owner(owner_in),
      arena_(&arena),
      stream_(arena.stream()),
      served_(arena.family.is_thread_cached ? &arena : nullptr),
      most_small_bytes_(most_small_bytes),
      keeps_many_(arena.pages.handles_can_cut()),
      most_in_bin_(most_small_bytes == 0 ? 0
                   : keeps_many_         ? kMostInBin
                                         : kFirstBinCapacity),
      most_medium_(keeps_many_ ? kMostMedium : 1),
      most_large_(keeps_many_ ? kMostLarge : 1) {
  for (std::size_t i = 0; i < kSmallClasses; ++i) bins_[i].block_bytes = kSizeClasses[i].block_bytes;
}

bool ThreadCache::refill(std::size_t size_class, SmallBlock& out, const Supply& supply, Refusal& why) noexcept {
  Bin& bin = bins_[size_class];
  if (bin.capacity == 0 && !enlarge(size_class)) return arena_->slabs.allocate(size_class, &out, 1, supply, why) == 1;
  const std::size_t size = bin.block_bytes;
  // What the thread has used before gives way to what it uses now.
  if (small_bytes() + size > most_small_bytes_) give_back_small(&bin);
  // Half of the bin, so that frees which follow find room.
  const std::size_t room = most_small_bytes_ > small_bytes() ? (most_small_bytes_ - small_bytes()) / size : 0;
  const std::size_t batch = std::clamp<std::size_t>(room, 1, bin.capacity / 2);
  const std::size_t filled = arena_->slabs.allocate(size_class, bin.slots, batch, supply, why);
  if (filled == 0) return false;
  // The lowest address goes out first.
  std::reverse(bin.slots, bin.slots + filled);
  out = bin.slots[filled - 1];
  bin.count = static_cast<std::uint16_t>(filled - 1);
  set_small_bytes(small_bytes() + (filled - 1) * size);
  return true;
}

// All but those of that bin. Expects that the arena's lock is held.
void ThreadCache::give_back_small(const Bin* but) noexcept {
  for (Bin& bin : bins_) {
    if (&bin == but) continue;
    set_small_bytes(small_bytes() - std::size_t{bin.count} * bin.block_bytes);
    for (; bin.count > 0; --bin.count) arena_->slabs.free(bin.slots[bin.count - 1]);
  }
}

// A block that was handed out since has lost its mark, also if it is back: then all of the bin counts as used, which
// costs the way of a small block nothing.
std::size_t ThreadCache::take_unused_small() noexcept {
  std::size_t unused = 0;
  for (Bin& bin : bins_) {
    const bool is_there = bin.marked > 0 && bin.marked <= bin.count;
    if (is_there && bin.slots[bin.marked - 1].tag->account == kMarkedTag) unused += bin.marked;
    bin.marked = bin.count;
    if (bin.count > 0) bin.slots[bin.count - 1].tag->account = kMarkedTag;
  }
  return unused;
}

// False: it is as large as it may be, or there is no memory for more.
bool ThreadCache::enlarge(std::size_t size_class) noexcept {
  Bin& bin = bins_[size_class];
  if (bin.capacity == most_in_bin_) return false;
  const auto capacity = static_cast<std::uint16_t>(std::max<int>(kFirstBinCapacity, bin.capacity * 2));
  std::unique_ptr<SmallBlock[]> slots(new (std::nothrow) SmallBlock[capacity]);
  if (slots == nullptr) return false;
  std::copy(bin.slots, bin.slots + bin.count, slots.get());
  slots_[size_class] = std::move(slots);
  bin.slots = slots_[size_class].get();
  bin.capacity = capacity;
  return true;
}

void ThreadCache::serve(Arena& arena) noexcept {
  flush();
  arena_ = &arena;
  stream_ = arena.stream();
  served_ = arena.family.is_thread_cached ? &arena : nullptr;
}

// The whole cache is full, and everything goes; or the bin is, and becomes larger, or its older half goes.
void ThreadCache::make_room(std::size_t size_class) noexcept {
  Bin& bin = bins_[size_class];
  if (bin.count < bin.capacity) {
    flush_small();
    return;
  }
  if (enlarge(size_class)) return;
  const std::uint16_t leave = bin.count / 2;
  SmallBlock* const first = bin.slots;
  {
    const Guard guard(arena_->mutex);
    for (std::uint16_t i = 0; i < leave; ++i) arena_->slabs.free(first[i]);
  }
  std::copy(first + leave, first + bin.count, first);
  bin.count = static_cast<std::uint16_t>(bin.count - leave);
  set_small_bytes(small_bytes() - std::size_t{leave} * bin.block_bytes);
}

void ThreadCache::push_or_give_back(std::size_t size_class, const SmallBlock& block) noexcept {
  if (push(size_class, block)) return;
  make_room(size_class);
  if (push(size_class, block)) return;
  const Guard guard(arena_->mutex);
  arena_->slabs.free(block);
}

void ThreadCache::flush_small() noexcept {
  if (small_bytes() == 0) return;
  const Guard guard(arena_->mutex);
  give_back_small(nullptr);
}

// Half of all go, other sizes first: those that the thread used before would else keep out the ones that it uses now.
void ThreadCache::make_room_for_medium(std::size_t bin) noexcept {
  const std::size_t count = (most_medium_ + 1) / 2;
  std::size_t same = 0;
  for (const Span* span = medium_[bin]; span != nullptr; span = span->cached_next) ++same;
  const std::size_t others = std::min(count, medium_count_ - same);
  evict_medium(others, bin);
  evict_medium(count - others);
}

void ThreadCache::evict_medium(std::size_t count, std::size_t but) noexcept {
  if (count == 0) return;
  std::size_t bytes = 0;
  std::size_t left = count;
  {
    const Guard guard(arena_->mutex);
    for (Span** head = &medium_[keeps_many_ ? kMediumBins - 1 : newest_bin_]; left > 0; --head) {
      if (head == medium_.data() + but) continue;
      for (; *head != nullptr && left > 0; --left) {
        Span* const span = *head;
        *head = span->cached_next;
        bytes += span->bytes;
        arena_->pages.free(span);
      }
    }
  }
  medium_count_ -= count;
  set_span_bytes(span_bytes() - bytes);
}

void ThreadCache::evict_large(std::size_t count) noexcept {
  if (count == 0) return;
  std::size_t bytes = 0;
  {
    const Guard guard(arena_->mutex);
    for (std::size_t i = 0; i < count; ++i) {
      bytes += large_sizes_[i];
      arena_->pages.free(large_[i]);
    }
  }
  std::copy(large_sizes_.begin() + count, large_sizes_.begin() + large_count_, large_sizes_.begin());
  std::copy(large_.begin() + count, large_.begin() + large_count_, large_.begin());
  large_count_ -= count;
  set_span_bytes(span_bytes() - bytes);
}

}  // namespace mempool
