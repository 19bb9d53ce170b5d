// Writes each allocation and free to a file, in the format that replays read (CSV; one line an event). Off by default.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/observe/block_listener.h"

namespace mempool {

class TraceRecorder {
 public:
  bool enabled() const noexcept { return enabled_.load(std::memory_order_relaxed); }

  // False, with nothing changed, when a recording runs already or the file cannot be made; errno then says why.
  bool start(const std::string& path);
  struct Result {
    std::uint64_t events = 0;
    int error = 0;  // errno of the first write that failed; events after it are lost
  };
  Result stop();
  // A mark between two events, such as the end of a training step.
  void mark(std::uint64_t number) noexcept;

  // The block is live: call before anybody can free it.
  void on_alloc(const ObservedBlock& block) noexcept;
  // The live block is used on that stream, too.
  void on_use(const void* address, StreamId stream) noexcept;
  // Call before the block can be handed out again. Blocks that are older than the recording are left out.
  void on_free(const void* address) noexcept;

  std::mutex& lock_for_fork() { return mutex_; }
  // In a forked child: the recording is the parent's.
  void abandon() noexcept;

 private:
  void write(const char* op, std::uint64_t id, const std::size_t* bytes, std::uint32_t account,
             StreamId stream) noexcept;
  // Small numbers for streams: 0 is the default one, then in the order of their first event.
  std::size_t number_of(StreamId stream) noexcept;
  void flush() noexcept;

  std::atomic<bool> enabled_{false};
  std::mutex mutex_;
  std::FILE* file_ = nullptr;  // not buffered: a forked child would write the buffer again at its exit
  std::string buffer_;
  std::unordered_map<const void*, std::uint64_t> live_;
  std::vector<StreamId> streams_;
  std::uint64_t next_id_ = 0;
  std::int64_t start_ns_ = 0;
  Result result_;
};

}  // namespace mempool
