// One limit for many processes: what each of them holds, in shared memory.
//
// Each process has a slot, which it alone writes. There is no total that could go wrong: the sum over the slots is
// taken under a mutex whenever memory is to be mapped, and each change is one store. Bytes are counted before they are
// committed and uncounted after they are unmapped, so a process that is killed in between has counted too much, never
// too little. The kernel drops the lock on a dead process's slot; whoever would be refused looks for such slots first,
// and takes their charge away.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/ledger_rows.h"
#include "backend/shared_region.h"
#include "common/bytes.h"
#include "core/accounts/budget.h"

namespace mempool {

class SharedLedger {
 public:
  static constexpr int kMostProcesses = 256;
  static constexpr int kMostDevices = LedgerRows::kMostDevices;

  // Joins the ledger of this name, or makes it: the first process finds no limit and no figures of earlier ones. Throws
  // what SharedRegion does, and ConfigError when kMostProcesses are in it already.
  static std::unique_ptr<SharedLedger> join(const std::string& folder, const std::string& name,
                                            const std::string& process);
  SharedLedger(const SharedLedger&) = delete;
  SharedLedger& operator=(const SharedLedger&) = delete;
  // Leaves it. The last one takes the name away.
  ~SharedLedger();

  // The number of a device in this ledger. `key` is the same in all processes: "cpu", or the UUID of a GPU. -1: there
  // are too many.
  int device(const std::string& key) noexcept;

  // Those of the devices that were numbered so far, in that order.
  std::vector<std::string> keys() const;

  // As Budget's, of one device.
  bool try_hold(int device, std::size_t bytes) noexcept;
  void unhold(int device, std::size_t bytes) noexcept;
  // Whether this process is counted; a forked child is from its first bytes, or this call on.
  bool has_place() noexcept;

  // False, and nothing changed, when more is held. kNoLimit: none.
  bool set_limit(int device, std::size_t limit) noexcept;
  // The same for a process that asks for a limit when it joins: the first of them sets it, whatever becomes of it
  // later.
  bool set_first_limit(int device, std::size_t limit) noexcept;
  // What that one has asked for; kNoLimit: nobody has.
  std::size_t first_limit(int device) const noexcept;
  std::size_t limit(int device) const noexcept;
  // What of it is left for these processes, beside what others use.
  std::size_t most_held(int device) const noexcept;
  // What others than these processes use of the device: it counts in the limit. Whoever finds that nobody has looked
  // since `since_ms` takes the turn, and tells it; `now_ms` is of the system's clock, which all share.
  bool take_turn(int device, std::int64_t now_ms, std::int64_t since_ms) noexcept;
  void set_outside(int device, std::size_t bytes) noexcept;
  std::size_t outside(int device) const noexcept;
  // Of what this process holds, the bytes that are in memory, and those of all processes.
  void tell_resident(int device, std::size_t bytes) noexcept;
  std::size_t resident(int device) const noexcept;
  // The bytes that all processes hold, and the most that they held at one moment.
  std::size_t held(int device) noexcept;
  std::size_t peak(int device) const noexcept;

  // One process that is in the ledger, or was: figures of one that has ended stay until its slot is needed.
  struct Process {
    std::int32_t pid = 0;
    std::uint64_t start_time = 0;  // ticks since the system started, of /proc/PID/stat: a pid is used again
    std::string name{};
    bool is_alive = true;
    std::size_t held = 0;
    std::size_t peak = 0;
  };
  std::vector<Process> processes(int device);

  // ---- metrics: each process tells its own from time to time, and any process can read those of all.
  // Those of the devices that this process shares; they take the place of earlier ones.
  void tell_metrics(const std::vector<LedgerRows::OfDevice>& devices) noexcept;
  struct Worker {
    int slot = -1;  // -1: all those that have ended, together: their counters alone
    std::int32_t pid = 0;
    std::string name{};
    std::vector<LedgerRows::OfDevice> devices{};
  };
  std::vector<Worker> read_metrics();

  // For a process that is about to end: takes the name away if no other is in the ledger. What it holds stays counted
  // until it has ended.
  void prepare_exit() noexcept;
  // Removes ledgers of this folder whose processes have all ended without a chance to do so.
  static void remove_ended(const std::string& folder) noexcept;

  // Keeps cleaners of /tmp from the file.
  void touch() noexcept { region_.touch(); }

  // Around a fork: the child is known to be in the ledger before the parent can end.
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  // In the child of a fork: it holds nothing of its own yet, and gets a slot when it first does. What it has inherited
  // stays the parent's: the caller sees to it that nothing of it is uncounted.
  void after_fork_in_child() noexcept;

  const std::string& path() const noexcept { return region_.path(); }

 private:
  SharedLedger(const std::string& folder, const std::string& name, const std::string& process);
  struct Slot;
  struct Layout;
  class Guard;

  Layout& layout() const noexcept { return *static_cast<Layout*>(region_.memory()); }
  // These expect that the mutex is held.
  bool take_slot() noexcept;
  void sweep() noexcept;
  void end(Slot& slot) noexcept;
  bool is_alone() const noexcept;
  void unlink_if_alone() noexcept;
  void ensure_open() noexcept;
  int open_as_member() const noexcept;
  std::int64_t place_of(const Slot& slot) const noexcept;
  bool set_limit_locked(int device, std::size_t limit) noexcept;
  std::size_t sum(int device) const noexcept;

  SharedRegion region_;
  std::string process_;
  int childs_file_ = -1;  // opened for the child, while a fork is on its way
  std::atomic<Slot*> own_{nullptr};
};

// One device's share of a ledger, for its allocator.
class SharedBudget final : public Budget {
 public:
  SharedBudget(SharedLedger& ledger, int device) : ledger_(ledger), device_(device) {}
  bool try_hold(std::size_t bytes) noexcept override { return ledger_.try_hold(device_, bytes); }
  void unhold(std::size_t bytes) noexcept override { ledger_.unhold(device_, bytes); }
  bool has_place() noexcept override { return ledger_.has_place(); }
  std::size_t limit() const noexcept override { return ledger_.most_held(device_); }
  std::size_t held() noexcept override { return ledger_.held(device_); }

  SharedLedger& ledger() const noexcept { return ledger_; }
  int device() const noexcept { return device_; }

 private:
  SharedLedger& ledger_;
  const int device_;
};

}  // namespace mempool
