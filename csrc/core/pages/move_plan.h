// Which free memory moves under a growth: of the heap's own, and of others that lend theirs. stitch_plan.h chooses
// among the pieces of one list; this makes the lists.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/pages/growth_plan.h"
#include "core/pages/page_space.h"
#include "core/pages/stitch_plan.h"

namespace mempool {

struct MovePlan {
  std::vector<FreePiece> pieces;  // in the order in which they are moved
  Growth growth;                  // longer than asked, where the last handle reaches beyond
  std::size_t stranded = 0;       // bytes that are free in whole granules of handles that cannot move
};

// `sources`: that memory may move of, `target` itself or others. `may_wait`: for work that still uses the memory of
// others. May throw std::bad_alloc.
MovePlan plan_moves(const Growth& growth, const PageSpace& target, std::span<PageSpace* const> sources, bool may_wait);

}  // namespace mempool
