#include "core/allocator/decay.h"

#include <algorithm>
#include <new>

#include "common/options.h"
#include "core/allocator/policy.h"

namespace mempool {

bool Decay::is_on() const noexcept { return span_ms_ != kNeverDecays; }

std::int64_t Decay::tick_ms() const noexcept {
  return std::clamp<std::int64_t>(span_ms_ / kDecayTicks, kShortestTickMs, kLongestTickMs);
}

bool Decay::tick(std::int64_t now_ms, std::size_t need, std::size_t unused) noexcept {
  now_ms_ = now_ms;
  try {
    const std::lock_guard guard(mutex_);
    demand_.add(now_ms, static_cast<std::int64_t>(need - std::min(unused, need)));
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

bool Decay::should_recall(std::size_t unused) noexcept {
  if (unused < granule_bytes_) {
    unused_since_ms_ = kNotUnused;
    return false;
  }
  if (unused_since_ms_ == kNotUnused) unused_since_ms_ = now_ms_;
  if (now_ms_ - unused_since_ms_ < span_ms_) return false;
  unused_since_ms_ = kNotUnused;
  return true;
}

std::size_t Decay::surplus(std::size_t held, std::size_t overcounted) const noexcept {
  auto highest = static_cast<std::size_t>(demand_.highest());
  highest -= std::min(highest, overcounted);
  // Demand comes back in other sizes and places: what that may cost it stays as well.
  const std::size_t stays = highest + highest / kDecayMarginShare;
  return held < stays + granule_bytes_ ? 0 : held - stays;
}

}  // namespace mempool
