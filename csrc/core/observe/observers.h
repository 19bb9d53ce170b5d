// Whoever wants to hear of each allocation and free of one device: the history of blocks, the recording of a trace, and
// a listener of the layers above.
//
// All are off by default. While they are, an allocation pays nothing for them but a load that it shares (Detours).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "core/observe/block_listener.h"
#include "core/observe/detours.h"
#include "core/observe/history.h"
#include "core/observe/trace_recorder.h"

namespace mempool {

class Observers {
 public:
  explicit Observers(Detours& detours) noexcept : detours_(detours) {}
  // Whether somebody listens: then blocks take the slow way, on which the functions below are called.
  bool any() const noexcept { return detours_.has(Detours::observed); }

  void start_history(std::size_t most_events);
  void stop_history();
  const History& history() const noexcept { return history_; }
  // As TraceRecorder::start().
  bool start_recording(const std::string& path);
  TraceRecorder::Result stop_recording();
  // A mark between two events of the recording, such as the end of a training step.
  void mark_recording(std::uint64_t number) noexcept { recorder_.mark(number); }
  // The listener from now on; nullptr: none. It outlives this: a thread may be on its way to the one before.
  void listen(BlockListener* listener);

  // The block is live: call before anybody can free it, with no lock held. `capture_stack` is called when the history
  // wants a stack.
  void on_alloc(const ObservedBlock& block, std::uint32_t (*capture_stack)()) noexcept;
  // The live block is used on that stream, too.
  void on_use(const void* address, StreamId stream) noexcept;
  // Call before the block can be handed out again, with no lock held. `waits`: on_completed() comes later.
  void on_free(const ObservedBlock& block, bool waits) noexcept;
  void on_completed(const ObservedBlock& block) noexcept;

  // ---- fork, in this order; the other locks of the process are taken in between
  void prepare_fork() { switching_.lock(); }
  void lock_for_fork();
  void after_fork(bool in_child) noexcept;  // in the child the recording is over: it is the parent's

 private:
  // Expects that `switching_` is held.
  void update() noexcept {
    const bool is_heard = listener_.load(std::memory_order_relaxed) != nullptr;
    detours_.set(Detours::observed, history_.enabled() || recorder_.enabled() || is_heard);
  }

  Detours& detours_;
  std::mutex switching_;  // held while an observer starts or stops
  History history_;
  TraceRecorder recorder_;
  std::atomic<BlockListener*> listener_{nullptr};
};

}  // namespace mempool
