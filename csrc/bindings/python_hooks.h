// The core's hooks in a Python process: they run pressure callbacks and capture Python stacks.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace mempool::bindings {

// Installs the hooks for good.
void install_hooks();
// For atexit: from now on the hooks do nothing. Waits for hooks that are running, because Python ends a thread that
// asks for the interpreter's lock during shutdown, and the process with it.
void retire_hooks();
// For a forked child: forgets the hooks that other threads of the parent were running.
void reset_after_fork();

// handler(pool: str, needed_bytes: int, failing: bool) -> (calls: int, error: str, error_id: int); None removes it.
void set_pressure_handler(pybind11::object handler);

// handler(device: str, reason: str, pool: str, label: str, is_of_request: bool, requested: int) ->
// (help: str, capture: str); None removes it.
void set_refusal_handler(pybind11::object handler);

// While on, each recorded allocation carries the id of its Python stack. Either way, stacks from before are forgotten.
void set_stack_capture(bool on);
// The frames behind an id, innermost first: [{"filename", "name", "line"}, ...]. Empty for 0 and unknown ids.
pybind11::list stack_frames(std::uint32_t id);

}  // namespace mempool::bindings
