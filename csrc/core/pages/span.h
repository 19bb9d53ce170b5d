// The records of the page level: spans (runs of pages) and segments (reservations). Records live outside of the memory
// that they describe, so that the same code serves memory that the CPU cannot read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool {

class Arena;
struct Segment;
struct Slab;
struct Span;

// The allocator's page: the unit in which spans are cut. Not the system's page, though it often has the same size.
inline constexpr std::size_t kPageBytes = 4096;

// Blocks up to kSmallMax come from slabs, up to kMediumMax from granules that medium blocks share, others from large
// ranges. kMediumMax is also where torch divides its "small_pool" from its "large_pool".
inline constexpr std::size_t kSmallMax = std::size_t{32} << 10;
inline constexpr std::size_t kMediumMax = std::size_t{1} << 20;

// What is remembered of a live block of at most kMediumMax bytes. kFreeTag in `requested` marks a free one.
struct BlockTag {
  std::uint32_t requested = 0;  // bytes as asked
  std::uint32_t account = 0;    // id of the pool that is charged; 0 is the device's root pool
};
inline constexpr std::uint32_t kFreeTag = UINT32_MAX;
// In `account`, with kFreeTag: the block waits in a thread's cache since a moment that the cache knows.
inline constexpr std::uint32_t kMarkedTag = 1;
// Added to `account`: other streams than its own use the block, too. With kFreeTag: it is freed and waits for them.
inline constexpr std::uint32_t kUsedElsewhere = std::uint32_t{1} << 31;
// The same: other processes have the live block's memory.
inline constexpr std::uint32_t kExported = std::uint32_t{1} << 30;
inline constexpr std::uint32_t kTagFlags = kUsedElsewhere | kExported;

// A span's place in one FreeIndex.
struct IndexLinks {
  Span* next = nullptr;
  Span* previous = nullptr;
  std::uint32_t bin = 0;  // 0: in no index
};

// A run of pages inside one segment. The spans of a segment cover it without gaps, linked in address order. What the
// way of a cached block reads comes first, in one cache line.
struct alignas(64) Span {
  enum class State : std::uint8_t {
    hole,   // reserved address space without backing
    stale,  // its memory has moved away, but work on the device may still use it under these addresses
    free,   // backed, in a free index
    block,  // one medium or large block; handed out or waiting in a thread cache
    slab,   // cut into small blocks
  };

  std::uintptr_t start = 0;
  std::size_t bytes = 0;  // a multiple of kPageBytes; of the granule for a hole
  Segment* segment = nullptr;
  Slab* slab = nullptr;       // of a slab
  BlockTag tag;               // of a block
  std::size_t requested = 0;  // of a block: bytes as asked; unlike the tag's it holds large sizes too
  union {
    Span* cached_next = nullptr;  // of a block that waits in a thread cache: link of its list
    const void* home;  // of a live large block: the cache of the thread that it was given to; of a slab: its arena
  };
  State state = State::hole;
  bool shared = false;  // lies in a chunk of medium blocks and slabs; shared spans coalesce only with each other

  Span* previous = nullptr;
  Span* next = nullptr;
  IndexLinks links[2];  // of a hole or a free span
  // Of a free or stale span: the moment of its arena's stream until which earlier work may use it. The stream itself
  // need not wait for that.
  std::uint64_t moment = 0;

  std::uintptr_t end() const { return start + bytes; }
  bool is_backed() const { return state != State::hole && state != State::stale; }
  void* address() const { return reinterpret_cast<void*>(start); }  // NOLINT(performance-no-int-to-ptr)
  // Makes it a live block. The tag of a large one has no room for its size: `requested` has.
  void hand_out(std::size_t asked, std::uint32_t account, const void* to) {
    tag = {bytes > kMediumMax ? 0 : static_cast<std::uint32_t>(asked), account};
    requested = asked;
    home = to;
  }
};

// Of a neighbour, which may be none.
inline bool is_backed(const Span* span) { return span != nullptr && span->is_backed(); }

// One reservation of address space.
struct Segment {
  std::uintptr_t start = 0;
  std::size_t bytes = 0;
  std::size_t backed_bytes = 0;
  Arena* arena = nullptr;
  Span* first = nullptr;
  Segment* previous = nullptr;
  Segment* next = nullptr;
  bool is_given_back = false;  // address and all, where memory comes with its address
};

}  // namespace mempool
