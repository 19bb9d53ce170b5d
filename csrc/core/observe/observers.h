// Whoever wants to hear of each allocation and free of one device: the history of blocks, and the recording of a trace.
//
// Both are off by default. While they are, an allocation pays one relaxed load for them: any().
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "core/accounts/block_size.h"
#include "core/observe/history.h"
#include "core/observe/trace_recorder.h"

namespace mempool {

class Observers {
 public:
  // Whether somebody listens: then blocks take the slow way, on which the functions below are called.
  bool any() const noexcept { return any_.load(std::memory_order_relaxed); }

  void start_history(std::size_t most_events);
  void stop_history();
  const History& history() const noexcept { return history_; }
  // As TraceRecorder::start().
  bool start_recording(const std::string& path);
  TraceRecorder::Result stop_recording();
  // A mark between two events of the recording, such as the end of a training step.
  void mark_recording(std::uint64_t number) noexcept { recorder_.mark(number); }

  // The block is live: call before anybody can free it. `capture_stack` is called when the history wants a stack.
  void on_alloc(const void* address, const BlockSize& size, std::uint32_t account, StreamId stream,
                std::uint32_t (*capture_stack)()) noexcept;
  // The live block is used on that stream, too.
  void on_use(const void* address, StreamId stream) noexcept;
  // Call before the block can be handed out again.
  void on_free(const void* address) noexcept;

  // ---- fork, in this order; the other locks of the process are taken in between
  void prepare_fork() { switching_.lock(); }
  void lock_for_fork();
  void after_fork(bool in_child) noexcept;  // in the child the recording is over: it is the parent's

 private:
  // Expects that `switching_` is held.
  void update() noexcept { any_.store(history_.enabled() || recorder_.enabled()); }

  std::mutex switching_;  // held while an observer starts or stops
  std::atomic<bool> any_{false};
  History history_;
  TraceRecorder recorder_;
};

}  // namespace mempool
