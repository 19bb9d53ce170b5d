// Whom a request tells when memory is short: the pressure callbacks, and whoever hears of refusals.
#include <string>
#include <utility>

#include "core/allocator/allocation.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {
namespace {

constinit thread_local bool t_pressing = false;

// A callback's own allocations call no callbacks.
bool may_press() noexcept {
  const Hooks* const hooks = installed_hooks();
  return hooks != nullptr && hooks->pressure != nullptr && !t_pressing;
}

// Expects may_press().
void run_callbacks(const char* pool, std::size_t needed, bool failing, PressureOutcome& outcome) noexcept {
  t_pressing = true;
  installed_hooks()->pressure(pool, needed, failing, outcome);
  t_pressing = false;
}

}  // namespace

// Held bytes grew above the soft limit: caches and free handles first, then the callbacks.
void Allocation::after_growth() {
  const std::size_t soft = parts_.ledger.soft_limit();
  parts_.reclaimer.trim(soft, false);
  if (!parts_.ledger.take_soft_alarm()) return;
  const std::size_t held = parts_.ledger.held();
  PressureOutcome outcome;
  press(nullptr, held > soft ? held - soft : 0, false, outcome);
}

// Runs the callbacks, with the root pool current: what they allocate must not fail at the limit that called them.
void Allocation::press(const Account* refuser, std::size_t needed, bool failing, PressureOutcome& outcome) {
  if (!may_press()) return;
  const Account* const named = refuser != nullptr ? refuser : account_;
  const std::string pool = named != nullptr ? named->name : "default";
  const std::size_t before = outcome.calls;
  parts_.accounts.keep(account_);  // meanwhile
  PoolEntry root;
  if (cache_ != nullptr) parts_.pools.enter(root, nullptr);
  run_callbacks(pool.c_str(), needed, failing, outcome);
  parts_.pools.leave(root);
  parts_.accounts.release(account_);
  if (outcome.calls > before) parts_.ledger.count_pressure_call(account_, refuser);
}

void CachingAllocator::press(std::size_t needed) noexcept {
  if (!may_press()) return;
  PressureOutcome outcome;
  run_callbacks("default", needed, false, outcome);
  if (outcome.calls > 0) parts_.ledger.count_pressure_call(nullptr, nullptr);
}

void Allocation::refuse(OomInfo info, const Account* refuser, const PressureOutcome& outcome) {
  parts_.ledger.count_oom(account_, refuser, info.reason);
  info.device = parts_.device;
  info.requested = size_.asked;
  parts_.count_outside();
  info.held = parts_.ledger.held();
  info.outside = parts_.ledger.outside();
  if (refuser == nullptr) {
    if (account_ != nullptr) {
      const Account account = parts_.accounts.read(*account_);
      info.pool = account.name;
      info.allocated = static_cast<std::size_t>(account.blocks.bytes.current);
    } else {
      info.pool = "default";
      const CacheSet::Folded folded(parts_.caches);
      info.allocated = static_cast<std::size_t>(parts_.ledger.read_stats().blocks.all.bytes.current);
    }
  }
  if (Arena* const arena = arena_ != nullptr ? arena_ : family_->first.load()) {
    const ArenaGuard guard(arena->mutex);
    info.largest_free = arena->pages.largest_free();
    if (info.reason == OomReason::backend_refused) {
      if (family_->has_own_memory()) info.source = family_->name;
      info.source_refusal = arena->memory().last_refusal();
    }
  }
  info.pressure_calls = outcome.calls;
  info.callback_error = outcome.error;
  info.callback_error_id = outcome.error_id;
  if (StreamEvents* const events = parts_.memory->stream_events()) info.device_failure = events->failure();
  parts_.tell_growth();
  tell_refusal(info, refuser != nullptr ? refuser : account_);
  throw OutOfMemory(std::move(info));
}

void Allocation::tell_refusal(OomInfo& info, const Account* of) {
  const Hooks* const hooks = installed_hooks();
  if (hooks == nullptr || hooks->refused == nullptr) return;
  RefusedRequest request{parts_.owner, info, {}, of != nullptr && of->for_one_request};
  if (of != nullptr) request.label = parts_.accounts.label_of(*of);
  hooks->refused(request);
}

}  // namespace mempool
