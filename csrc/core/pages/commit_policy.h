// How much memory a heap takes from its backend at a time, and when new memory is better than free memory that moves.
#pragma once

#include <cstddef>

#include "common/options.h"
#include "core/accounts/ledger.h"
#include "core/pages/recurrence.h"
#include "core/physical_memory.h"

namespace mempool {

class CommitPolicy {
 public:
  // `stitches`: free memory may move, if the backend can move it.
  CommitPolicy(PhysicalMemory& memory, const Ledger& ledger, bool stitches, GrowthStep growth) noexcept
      : memory_(memory),
        ledger_(ledger),
        growth_(growth),
        can_cut_(memory.capabilities().can_cut),
        can_stitch_(stitches && memory.capabilities().can_move),
        takes_exactly_(memory.capabilities().takes_exactly) {}

  bool can_stitch() const noexcept { return can_stitch_; }
  // Whether more is taken at once than is needed, by the user's word.
  bool grows_by_steps() const noexcept { return growth_.kind != GrowthStep::Kind::as_needed; }

  // How much a medium block of `bytes` and those after it share: `least`, or what that comes to where memory is taken
  // exactly.
  std::size_t chunk_bytes(std::size_t bytes, std::size_t least) const noexcept;
  // How much of `wanted` one handle takes.
  std::size_t handle_bytes(std::size_t wanted) const noexcept;
  // What a growth by `bytes` takes so that those which follow need nothing, in one handle unless it grows by steps;
  // `bytes` if no more.
  std::size_t generous_bytes(std::size_t bytes) const noexcept;
  // Whether a range of `bytes` gets new memory, `missing` of it, although free memory could move: a workload makes it
  // again in each turn, so its turns to come then need no call. To ask counts as a turn.
  bool rests_better_on_new_memory(std::size_t bytes, std::size_t missing) noexcept;

  // Free bytes that could not move, as of the last plan to move: in handles of which a part is in use.
  void set_stranded(std::size_t bytes) noexcept { stranded_ = bytes; }

 private:
  std::size_t available() const noexcept;

  PhysicalMemory& memory_;
  const Ledger& ledger_;
  const GrowthStep growth_;
  const bool can_cut_;
  const bool can_stitch_;
  const bool takes_exactly_;
  Recurrence recurrence_;
  std::size_t stranded_ = 0;
};

}  // namespace mempool
