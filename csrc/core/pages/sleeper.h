// Sleep of one heap: its memory goes back to the backend, every address is kept, and the same handles are taken again
// when it wakes. In steps, because contents are copied between them without the arena's lock:
//
//   awake -> fall() -> falling asleep -> sleep() -> asleep -> start_waking() -> waking -> wake() -> awake
//
// and back by stay_awake() instead of sleep(), by sleep_on() instead of wake().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/accounts/ledger.h"
#include "core/pages/handle_map.h"
#include "core/pages/refusal.h"
#include "core/physical_memory.h"

namespace mempool {

class Sleeper {
 public:
  // What the ledger counts of the heap, unless it is asleep.
  struct Footprint {
    int backed_ranges = 0;
    std::size_t shared_bytes = 0;
  };

  // `handles`: of the heap; `reserved`: of its family.
  Sleeper(PhysicalMemory& memory, HandleMap& handles, Ledger& ledger, Ledger::Reserved& reserved) noexcept
      : memory_(memory), handles_(handles), ledger_(ledger), reserved_(reserved) {}

  bool is_awake() const noexcept { return state_ == State::awake; }
  bool is_asleep() const noexcept { return state_ == State::asleep; }
  Backup* backup() noexcept { return backup_.get(); }
  std::size_t bytes() const noexcept { return bytes_; }  // that were given up

  // Blocks that keep the heap awake, because others know their handles: `change` more.
  void pin(int change) noexcept;
  bool is_pinned() const noexcept { return pinned_ > 0; }

  // Awake and not pinned.
  void fall() noexcept;
  // Falling asleep.
  void stay_awake() noexcept;
  // Falling asleep. False: the backend kept some memory, and the heap is awake; what `backup` has not may be lost.
  bool sleep(const Footprint& footprint, std::unique_ptr<Backup> backup) noexcept;
  // False: refused, or it was not asleep; nothing has changed. Contents are not restored yet.
  bool start_waking(const Footprint& footprint, Refusal& why) noexcept;
  // Waking.
  void wake() noexcept;
  void sleep_on(const Footprint& footprint) noexcept;

  // Memory that will not come back: a handle that was given up, or nullptr; and that it is forgotten. Once there is
  // none the heap is awake by forget_sleep().
  const Handle* first_given_up() const noexcept { return given_up_.empty() ? nullptr : &given_up_.begin()->second; }
  void forget_first() noexcept;
  void forget_sleep() noexcept;

  std::size_t sum_of_handles() const noexcept;  // bytes() as the handles have it

 private:
  enum class State : std::uint8_t { awake, falling_asleep, asleep, waking };

  bool give_up(const Footprint& footprint) noexcept;
  bool give_up_handles(std::size_t shared_bytes) noexcept;
  bool take_handles(std::size_t& bytes_to_share) noexcept;

  PhysicalMemory& memory_;
  HandleMap& handles_;
  Ledger& ledger_;
  Ledger::Reserved& reserved_;
  State state_ = State::awake;
  HandleMap::Handles given_up_;  // where they were
  std::size_t bytes_ = 0;
  std::unique_ptr<Backup> backup_;
  int pinned_ = 0;
};

}  // namespace mempool
