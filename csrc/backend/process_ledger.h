// The shared ledger that this process is in, if it is in one, and what its devices have to do with it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "backend/shared_ledger.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {

// Joins the ledger of this name in shared_folder(), for good; `process` is what others see. A name may also be a whole
// path, as children are told it, whose environment may lead to another folder. Once joined, the same name changes
// nothing. Throws what SharedLedger::join() does, and PoolStateError when this process is in another one.
void join_ledger(const std::string& name, const std::string& process);
// nullptr before that; the path is empty.
SharedLedger* process_ledger() noexcept;
std::string process_ledger_path();

// A limit that processes share. A share of the device ("75%", or "auto") is turned into bytes by the first that sets
// it.
struct SharedLimit {
  std::size_t bytes = kNoLimit;  // kNoLimit: none is asked for
  bool is_share = false;
};
SharedLimit parse_shared_limit(const std::string& text, std::size_t whole_bytes);

// Counts what the device holds in the ledger, from now on, and sets the limit where there is none yet. `key` names the
// device in all processes. Trims where that is needed. Throws ConfigError: more is held than the limit allows, another
// limit is in force, or the ledger knows too many devices. Expects that the process is in a ledger.
void share(CachingAllocator& device, const std::string& key, SharedLimit limit);
// Whether what it holds is counted there.
bool is_shared(const CachingAllocator& device) noexcept;

// nullptr where it is not.
SharedBudget* budget_of(CachingAllocator& device) noexcept;
// Its number in the ledger. Throws ConfigError for a device that is not shared, as all of these do.
int shared_number(const CachingAllocator& device);
// The limit in force.
std::size_t shared_limit(CachingAllocator& device);
// Sets it for all processes. Throws ConfigError when they hold more even after a trim of this one.
void set_shared_limit(CachingAllocator& device, std::size_t limit);

// What is counted of one device in the ledger, of all processes, whether this one uses it or not.
struct SharedFigures {
  std::size_t limit = kNoLimit;
  std::size_t held = 0;
  std::size_t peak = 0;
  std::vector<SharedLedger::Process> processes{};
};
SharedFigures shared_figures(SharedLedger& ledger, int device);

// For CUDA devices, which torch makes later: the limit that share_when_made() sets, as text.
void share_cuda_later(const std::string& limit);
// share() for a device that was just made, with device_making() held.
void share_when_made(CachingAllocator& device, const std::string& key, std::size_t whole_bytes);

}  // namespace mempool
