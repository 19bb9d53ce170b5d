#include "backend/process_ledger.h"

#include <atomic>
#include <mutex>

#include "backend/decay_thread.h"
#include "backend/fork_safety.h"
#include "backend/outside_watch.h"
#include "common/bytes.h"
#include "common/errors.h"
#include "common/expects.h"

namespace mempool {
namespace {

std::atomic<SharedLedger*> g_ledger{nullptr};
std::string& cuda_limit() {
  static std::string* const limit = new std::string;  // immortal; guarded by device_making()
  return *limit;
}

struct Place {
  std::string folder;
  std::string name;
};
Place place_of(const std::string& name) {
  if (name.empty() || name.front() != '/') return {shared_folder(), name};
  const std::size_t slash = name.rfind('/');
  Place place{name.substr(0, slash), name.substr(slash + 1)};
  check_private(place.folder);
  return place;
}

const SharedBudget& known_budget_of(const CachingAllocator& device) {
  if (const SharedBudget* const budget = budget_of(const_cast<CachingAllocator&>(device))) return *budget;
  throw ConfigError("device " + device.device() +
                    " is in no shared ledger: call mempool.enable(..., shared=True) first.");
}

[[noreturn]] void refuse_limit(const CachingAllocator& device, const std::string& what, std::size_t held) {
  throw ConfigError(what + " for device " + device.device() + " is below the " + std::to_string(held) +
                    " bytes that all processes of the ledger hold, even after a trim of this one: free tensors first.");
}

// Whether it succeeds, at once or after free memory of this process went back.
template <typename Attempt>
bool with_trim(CachingAllocator& device, Attempt attempt) {
  if (attempt()) return true;
  device.trim(0);
  return attempt();
}

// share(), with device_making() held.
void share_guarded(CachingAllocator& device, const std::string& key, SharedLimit limit) {
  MEMPOOL_EXPECTS(process_ledger() != nullptr);
  SharedLedger& ledger = *process_ledger();
  const int number = ledger.device(key);
  if (number < 0) throw ConfigError("the shared ledger has no room for device " + device.device() + ".");
  if (!is_shared(device)) {
    auto budget = std::make_unique<SharedBudget>(ledger, number);
    if (!with_trim(device, [&] { return device.ledger().join(*budget); })) {
      refuse_limit(device, "the shared limit of " + format_bytes(ledger.limit(number)),
                   ledger.held(number) + device.ledger().held());
    }
    budget.release();  // immortal
    ensure_decay_thread(device);
  }
  if (limit.bytes == kNoLimit) return;
  if (!with_trim(device, [&] { return ledger.set_first_limit(number, limit.bytes); })) {
    refuse_limit(device, "a shared limit of " + format_bytes(limit.bytes), ledger.held(number));
  }
  const std::size_t asked = ledger.first_limit(number);
  if (limit.is_share || asked == limit.bytes) return;
  throw ConfigError("the processes of ledger '" + ledger.path() + "' were given a limit of " + std::to_string(asked) +
                    " bytes for device " + device.device() + " already, not " + std::to_string(limit.bytes) +
                    ": mempool.set_limit(..., shared=True) changes it for all of them.");
}

}  // namespace

void join_ledger(const std::string& name, const std::string& process) {
  const std::lock_guard guard(device_making());
  const SharedLedger* const joined = g_ledger.load();
  if (joined != nullptr && joined->path() == name) return;  // its folder may be gone
  const Place place = place_of(name);
  if (joined != nullptr) {
    if (joined->path() == place.folder + "/" + place.name) return;
    throw PoolStateError("This process is in the shared ledger '" + joined->path() + "' already: it cannot join '" +
                         name + "'.");
  }
  SharedLedger::remove_ended(place.folder);
  std::unique_ptr<SharedLedger> made = SharedLedger::join(place.folder, place.name, process);
  survive_fork(*made);
  g_ledger.store(made.release());  // immortal, as allocators are
}

std::string process_ledger_path() {
  const SharedLedger* const ledger = process_ledger();
  return ledger != nullptr ? ledger->path() : "";
}

SharedLedger* process_ledger() noexcept { return g_ledger.load(std::memory_order_acquire); }

SharedLimit parse_shared_limit(const std::string& text, std::size_t whole_bytes) {
  if (text.empty()) return {};
  if (text == "auto") return {auto_limit().limit, true};
  return {parse_bytes(text, whole_bytes), text.find('%') != std::string::npos};
}

void share(CachingAllocator& device, const std::string& key, SharedLimit limit) {
  const std::lock_guard guard(device_making());
  share_guarded(device, key, limit);
}

SharedBudget* budget_of(CachingAllocator& device) noexcept {
  return static_cast<SharedBudget*>(device.ledger().budget());
}

bool is_shared(const CachingAllocator& device) noexcept {
  return budget_of(const_cast<CachingAllocator&>(device)) != nullptr;
}

int shared_number(const CachingAllocator& device) { return known_budget_of(device).device(); }

std::size_t shared_limit(CachingAllocator& device) {
  const SharedBudget& budget = known_budget_of(device);
  return budget.ledger().limit(budget.device());
}

void set_shared_limit(CachingAllocator& device, std::size_t limit) {
  const SharedBudget& budget = known_budget_of(device);
  if (with_trim(device, [&] { return budget.ledger().set_limit(budget.device(), limit); })) return;
  refuse_limit(device, "a shared limit of " + format_bytes(limit), budget.ledger().held(budget.device()));
}

SharedFigures shared_figures(SharedLedger& ledger, int device) {
  SharedFigures out;
  out.processes = ledger.processes(device);
  out.limit = ledger.limit(device);
  out.held = ledger.held(device);
  out.peak = ledger.peak(device);
  return out;
}

void share_cuda_later(const std::string& limit) {
  const std::lock_guard guard(device_making());
  cuda_limit() = limit;
}

void share_when_made(CachingAllocator& device, const std::string& key, std::size_t whole_bytes) {
  share_guarded(device, key, parse_shared_limit(cuda_limit(), whole_bytes));
}

}  // namespace mempool
