// The schedules of the emulator under which each test of a kernel runs.
#pragma once

#include "emulator.h"

namespace emulator {

template <typename Action>
void for_each_schedule(Action action) {
  for (const Schedule& schedule : {Schedule{Order::forward, 0}, Schedule{Order::reversed, 0},
                                   Schedule{Order::random, 1}, Schedule{Order::random, 2}}) {
    set_schedule(schedule);
    action();
  }
}

// The text of the Error that running `body` on one block of `threads` ends with; empty if none.
template <typename Body>
std::string error_of(unsigned threads, std::size_t shared_bytes, Body body) {
  try {
    launch("test", {1, 1, 1}, {threads, 1, 1}, shared_bytes, body);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace emulator
