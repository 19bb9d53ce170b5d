// A backend for tests and replays: it needs no driver, counts every call, makes any call fail on demand, and checks
// that its caller keeps the contract.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/physical_memory.h"

namespace mempool {

class FakeMemory final : public PhysicalMemory {
 public:
  enum class Call : std::uint8_t {
    reserve_addresses,
    free_addresses,
    commit,
    open,
    decommit,
    cut,
    join,
    move,
    unmap,
    save,
    restore,
    record
  };
  static constexpr std::size_t kCalls = 12;

  // The kind of memory that it plays. Handles of `host` can be cut at any granule; those of `device` stay whole and can
  // be mapped at two addresses at once; `plain` memory comes with its address, and so does `exact`, of which no more is
  // taken than is asked for.
  enum class Personality : std::uint8_t { host, device, plain, exact };

  struct Settings {
    Personality personality = Personality::host;
    std::size_t granule_bytes = std::size_t{2} << 20;
    std::size_t capacity_bytes = SIZE_MAX;  // commits beyond it are refused
    bool accessible = true;                 // false: addresses without memory, for replays larger than the machine
    bool has_streams = false;               // true: it has streams, whose work is done when a test calls finish()
  };

  explicit FakeMemory(const Settings& settings);
  ~FakeMemory() override;

  std::size_t granule_bytes() const noexcept override { return settings_.granule_bytes; }
  Capabilities capabilities() const noexcept override;
  void* reserve_addresses(std::size_t bytes) noexcept override;
  void free_addresses(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  std::size_t available_bytes() noexcept override { return settings_.capacity_bytes - committed_bytes(); }
  std::size_t capacity_bytes() const noexcept override { return settings_.capacity_bytes; }
  bool cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept override;
  bool join(Handle& first, const Handle& second) noexcept override;
  bool open(void* address, std::size_t bytes) noexcept override;
  bool move(Handle& handle, void* to) noexcept override;
  bool move_back(Handle& handle, void* from) noexcept override;
  bool unmap(void* address, std::size_t bytes) noexcept override;
  StreamEvents* stream_events() noexcept override { return settings_.has_streams ? &streams_ : nullptr; }
  std::unique_ptr<Backup> make_backup() noexcept override;

  // Makes the n-th call from now (1 = the next one) fail. free_addresses() cannot fail and does not count; 0 disarms.
  void fail_call(std::uint64_t n) noexcept;
  std::uint64_t calls(Call call) const noexcept;
  std::uint64_t fallible_calls() const noexcept;
  std::size_t committed_bytes() const noexcept;
  std::size_t reserved_bytes() const noexcept;
  // ---- streams: each counts the pieces of work that were enqueued, and those that are done
  void work(StreamId stream);                                       // enqueues one more piece
  void finish(StreamId stream, std::uint64_t pieces = UINT64_MAX);  // does the next `pieces` of them
  void refuse_events(bool refused);                                 // as while a stream is captured
  void capture_events();                   // events that are recorded and not done are lost to a capture
  void destroy_stream(StreamId stream);    // its work goes on
  void create_stream(StreamId stream);     // a new stream gets the handle of a destroyed one
  void fail_device(bool failed);           // its work is never done
  std::uint64_t waits() const noexcept;    // how many calls had to wait; a wait does the work
  std::uint64_t queries() const noexcept;  // how often it was asked whether an event is done

  // The first use of this backend that broke the contract; empty when there was none.
  std::string violation() const;

 private:
  class FakeBackup;
  class Streams final : public StreamEvents {
   public:
    explicit Streams(FakeMemory& memory) : memory_(memory) {}
    Recorded record(StreamId stream, Event& out) noexcept override;
    Progress query(Event event) noexcept override;
    Progress wait(Event event) noexcept override;
    Obstacle wait_for_device() noexcept override;
    std::string failure() noexcept override { return failed ? "the fake device has failed" : ""; }
    void discard(Event event) noexcept override;

    struct Line {
      std::uint64_t asked = 0;
      std::uint64_t done = 0;
      bool is_gone = false;
    };
    struct Asked {
      StreamId stream;
      std::uint64_t until;  // of its line
      bool is_captured = false;
    };
    std::map<StreamId, Line> lines;
    std::map<Event, Asked> events;
    std::uint64_t waits = 0;
    std::uint64_t queries = 0;
    bool refused = false;
    bool failed = false;

   private:
    FakeMemory& memory_;
    Event next_ = 1;
  };
  using Ranges = std::map<std::uintptr_t, std::size_t>;

  bool enter(Call call) noexcept;  // counts the call; false when it is the one to fail
  bool broken(const char* what) noexcept;
  bool is_mapped_exactly(const Handle& handle) const noexcept;
  bool is_free_space(std::uintptr_t start, std::size_t bytes) const noexcept;
  std::size_t reserved_total() const noexcept;
  static bool inside(const Ranges& ranges, std::uintptr_t start, std::size_t bytes) noexcept;
  static bool touches(const Ranges& ranges, std::uintptr_t start, std::size_t bytes) noexcept;

  const Settings settings_;
  mutable std::mutex mutex_;
  Ranges reserved_;
  Ranges mapped_;
  Ranges left_;    // the old addresses of move(), mapped until unmap()
  Ranges closed_;  // mapped, and not yet open
  std::array<std::uint64_t, kCalls> calls_{};
  std::uint64_t fail_after_ = 0;
  std::size_t committed_ = 0;
  std::string violation_;
  Streams streams_{*this};
};

}  // namespace mempool
