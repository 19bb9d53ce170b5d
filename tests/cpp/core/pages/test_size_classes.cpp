// Size classes and rounding.
#include "check.h"
#include "core/pages/size_classes.h"
#include "core/pages/slab_heap.h"

using namespace mempool;

TEST(every_small_size_rounds_to_its_class) {
  for (std::size_t bytes = 1; bytes <= kSmallMax; ++bytes) {
    const std::size_t index = size_class_of(bytes);
    CHECK_EQ(round_block(bytes), kSizeClasses[index].block_bytes);
    CHECK(kSizeClasses[index].block_bytes >= bytes);
    CHECK(index == 0 || kSizeClasses[index - 1].block_bytes < bytes);
  }
}

TEST(rounding_is_what_the_documentation_says) {
  CHECK_EQ(round_block(1), 64u);
  CHECK_EQ(round_block(1000), 1024u);
  CHECK_EQ(round_block(1025), 1152u);
  CHECK_EQ(round_block(32769), 36864u);
  CHECK_EQ(round_block((1u << 20) + 1), (1u << 20) + 4096);
  for (std::size_t bytes = 1025; bytes <= kSmallMax; ++bytes) CHECK((round_block(bytes) - bytes) * 8 < bytes);
}

TEST(blocks_are_aligned_and_slabs_have_short_tails) {
  for (const SizeClass& info : kSizeClasses) {
    CHECK_EQ(info.block_bytes % kMinAlignment, 0u);
    CHECK_EQ(info.slab_bytes % kPageBytes, 0u);
    CHECK(info.slab_bytes >= 64u << 10 && info.slab_bytes <= 128u << 10);
    CHECK(info.blocks <= kMaxBlocksInSlab);
    const std::size_t tail = info.slab_bytes - std::size_t{info.blocks} * info.block_bytes;
    CHECK(tail * 32 <= info.slab_bytes);
  }
}

TEST(the_reciprocal_divides_every_offset) {
  for (const SizeClass& info : kSizeClasses) {
    for (std::uint32_t offset = 0; offset < info.slab_bytes; ++offset) {
      if (index_in_slab(info, offset) != offset / info.block_bytes) CHECK_EQ(offset, UINT32_MAX);
      if (begins_block(info, offset) != (offset % info.block_bytes == 0)) CHECK_EQ(offset, UINT32_MAX);
    }
  }
}
