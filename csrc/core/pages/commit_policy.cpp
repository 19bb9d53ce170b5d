#include "core/pages/commit_policy.h"

#include <algorithm>

#include "common/align.h"
#include "core/pages/policy.h"

namespace mempool {
namespace {

// Of byte counts whose product may be too large for an integer.
std::size_t scaled(std::size_t bytes, std::size_t part, std::size_t whole) {
  return static_cast<std::size_t>(static_cast<double>(bytes) * static_cast<double>(part) / static_cast<double>(whole));
}

}  // namespace

// What can still be had, by the backend's word and the device's limit.
std::size_t CommitPolicy::available() const noexcept { return std::min(memory_.available_bytes(), ledger_.room()); }

// Exact memory: as many blocks of that size as a chunk holds, so that blocks of one size leave no end of it over.
std::size_t CommitPolicy::chunk_bytes(std::size_t bytes, std::size_t least) const noexcept {
  if (!takes_exactly_) return least;
  const std::size_t goal = std::clamp(ledger_.held() / policy::kShareOfChunk, least, policy::kLargestChunk);
  return align_up(goal / bytes * bytes, memory_.granule_bytes());
}

std::size_t CommitPolicy::handle_bytes(std::size_t wanted) const noexcept {
  if (can_cut_) return wanted;
  const std::size_t held = ledger_.held();
  std::size_t most = std::max(policy::kLargestHandle, held / policy::kHandlesHeld);
  if (const std::size_t bearable = held / policy::kShareStranded; stranded_ > bearable) {
    most = std::max(policy::kLeastHandle, scaled(most, bearable, stranded_));
  }
  const std::size_t of_the_rest = std::clamp(available() / policy::kHandlesLeft, policy::kLeastHandle, most);
  return std::min(wanted, align_up(of_the_rest, memory_.granule_bytes()));
}

std::size_t CommitPolicy::generous_bytes(std::size_t bytes) const noexcept {
  if (grows_by_steps()) {
    const std::size_t step = growth_.kind == GrowthStep::Kind::doubling ? ledger_.held() : growth_.bytes;
    return std::max(bytes, align_down(std::min(std::max(bytes, step), available()), memory_.granule_bytes()));
  }
  if (can_cut_) return bytes;
  const std::size_t useful = std::min(ledger_.held() / policy::kShareOfHandle, available() / policy::kShareOfLeft);
  return std::max(bytes, handle_bytes(align_down(useful, memory_.granule_bytes())));
}

bool CommitPolicy::rests_better_on_new_memory(std::size_t bytes, std::size_t missing) noexcept {
  const Ledger::Moment moment = ledger_.moment();
  if (!recurrence_.missing(bytes, moment.allocations)) return false;
  const std::size_t peak = moment.peak_allocated;
  const std::size_t share = can_cut_ ? policy::kShareForRest : policy::kShareForRestOfWhole;
  const std::size_t for_rest = std::max(peak / share, std::min(peak / 2, policy::kBytesForRest));
  return moment.held + missing <= peak + for_rest;
}

}  // namespace mempool
