// Observers: history and recorder hear of allocations and frees while they are on, and only then.
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "check.h"
#include "core/observe/observers.h"

using mempool::Detours;
using mempool::History;
using mempool::HistoryEvent;
using mempool::Observers;

namespace {

int g_captures = 0;
std::uint32_t capture() {
  ++g_captures;
  return 7;
}

// A name for a file, which goes with the test.
struct File {
  const std::string path = "/tmp/mempool_test_observers_" + std::to_string(reinterpret_cast<std::uintptr_t>(this));
  ~File() { std::remove(path.c_str()); }
  // Of each line: what happened, which block, and its bytes.
  std::string events() const {
    std::ifstream in(path);
    std::string line;
    std::string out;
    std::getline(in, line);  // the names of the columns
    while (std::getline(in, line)) {
      const std::size_t first = line.find(',') + 1;
      std::size_t end = first;
      for (int i = 0; i < 3; ++i) end = line.find(',', end) + 1;
      out += line.substr(first, end - 1 - first) + "\n";
    }
    return out;
  }
};

}  // namespace

TEST(allocations_have_to_tell_as_long_as_either_observer_runs) {
  Detours detours;
  Observers observers(detours);
  const File file;
  CHECK(!observers.any());
  observers.start_history(10);
  CHECK(observers.any());
  CHECK(observers.start_recording(file.path));
  observers.stop_history();
  CHECK(observers.any());
  observers.stop_recording();
  CHECK(!observers.any());
}

TEST(a_stack_is_captured_for_the_history_alone) {
  Detours detours;
  Observers observers(detours);
  const File file;
  int block = 0;
  g_captures = 0;
  CHECK(observers.start_recording(file.path));
  observers.on_alloc({&block, {128, 100}, 3, 0, nullptr}, &capture);
  CHECK_EQ(g_captures, 0);
  observers.start_history(10);
  observers.on_alloc({&block, {128, 100}, 3, 0, nullptr}, &capture);
  CHECK_EQ(g_captures, 1);
  const History::View view = observers.history().view();
  CHECK_EQ(view.live.size(), 1u);
  const HistoryEvent event = view.live.begin()->second;
  CHECK_EQ(event.bytes, 128u);
  CHECK_EQ(event.requested, 100u);
  CHECK_EQ(event.stack, 7u);
  CHECK_EQ(event.account, 3u);
  observers.stop_recording();
}

TEST(a_recording_and_the_history_hear_of_the_same_blocks) {
  Detours detours;
  Observers observers(detours);
  const File file;
  int blocks[2] = {};
  CHECK(observers.start_recording(file.path));
  observers.start_history(10);
  observers.on_alloc({&blocks[0], {64, 60}, 0, 0, nullptr}, &capture);
  observers.on_alloc({&blocks[1], {64, 61}, 0, 0, nullptr}, &capture);
  observers.on_use(&blocks[0], 5);
  observers.mark_recording(9);
  observers.on_free({&blocks[0], {64, 60}, 0, 0, nullptr}, false);
  CHECK_EQ(observers.history().view().live.size(), 1u);
  CHECK_EQ(observers.history().view().events.size(), 3u);
  CHECK_EQ(observers.stop_recording().events, 5u);
  CHECK_EQ(file.events(), "alloc,0,60\nalloc,1,61\nrecord_stream,0,\nstep,9,\nfree,0,\n");
}

TEST(a_second_recording_is_refused_and_the_first_goes_on) {
  Detours detours;
  Observers observers(detours);
  const File file;
  const File other;
  CHECK(observers.start_recording(file.path));
  CHECK(!observers.start_recording(other.path));
  CHECK_EQ(errno, EBUSY);
  CHECK(observers.any());
  CHECK(!observers.start_recording("/nowhere/at/all"));
  CHECK_EQ(observers.stop_recording().error, 0);
}

TEST(a_forked_child_has_no_recording_and_keeps_its_history) {
  Detours detours;
  Observers observers(detours);
  const File file;
  int block = 0;
  CHECK(observers.start_recording(file.path));
  observers.start_history(10);
  observers.prepare_fork();
  observers.lock_for_fork();
  observers.after_fork(true);
  CHECK(observers.any());
  observers.on_alloc({&block, {64, 64}, 0, 0, nullptr}, &capture);
  CHECK_EQ(observers.history().view().live.size(), 1u);
  observers.stop_history();
  CHECK(!observers.any());
  CHECK_EQ(observers.stop_recording().events, 0u);  // there is none
}
