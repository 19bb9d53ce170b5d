#include "python_hooks.h"

#include <atomic>
#include <chrono>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "core/allocator/caching_allocator.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

// Guarded by the interpreter's lock. Never destroyed: a thread may still allocate while the interpreter shuts down.
struct State {
  py::object pressure_handler = py::none();
  py::object refusal_handler = py::none();
  bool capturing = false;
  // Distinct stacks, innermost frame first. Code objects are kept alive until capturing is switched off.
  using Stack = std::vector<std::pair<PyObject*, int>>;
  std::map<Stack, std::uint32_t> ids;
  std::vector<const Stack*> stacks;  // by id - first_id
  std::uint32_t first_id = 1;        // ids are never used twice: an old id is unknown, and names no other stack
};

State& state() {
  static State* const instance = new State;
  return *instance;
}

std::atomic<bool> g_retired{false};
std::atomic<bool> g_handles_refusals{false};  // so that a refusal takes the interpreter's lock only if it has to
std::atomic<int> g_running{0};

// Announces a hook that may take the interpreter's lock. False once the hooks are retired.
class Running {
 public:
  Running() { g_running.fetch_add(1); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running() { g_running.fetch_sub(1); }
  explicit operator bool() const { return !g_retired.load(); }
};

void call_pressure_handler(const char* pool, std::size_t needed, bool failing, PressureOutcome& outcome) {
  const py::gil_scoped_acquire gil;
  const py::object handler = state().pressure_handler;
  if (handler.is_none()) return;
  // An allocation can fail while an exception is pending, which has to survive the callback.
  const py::error_scope keep;
  try {
    const auto result = handler(pool, needed, failing).cast<py::tuple>();
    outcome.calls += result[0].cast<std::size_t>();
    if (outcome.error_id == 0) {
      outcome.error = result[1].cast<std::string>();
      outcome.error_id = result[2].cast<std::size_t>();
    }
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_KeyboardInterrupt)) {
      PyErr_SetInterrupt();  // the main thread sees it at its next step in Python
      ++outcome.calls;
    } else {
      error.discard_as_unraisable("mempool pressure handler");
    }
  }
}

void pressure(const char* pool, std::size_t needed, bool failing, PressureOutcome& outcome) noexcept {
  const Running running;
  if (!running) return;
  try {
    call_pressure_handler(pool, needed, failing, outcome);
  } catch (const std::exception&) {
    // No exception may reach the allocator: the allocation is refused as it would have been without a callback.
  }
}

void call_refusal_handler(RefusedRequest& request) {
  const py::gil_scoped_acquire gil;
  const py::object handler = state().refusal_handler;
  if (handler.is_none()) return;
  const py::error_scope keep;  // as above
  try {
    const OomInfo& info = request.info;
    const auto told = handler(request.device.device(), to_string(info.reason), info.pool, request.label,
                              request.is_of_request, info.requested)
                          .cast<py::tuple>();
    request.info.help = told[0].cast<std::string>();
    request.info.capture = told[1].cast<std::string>();
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_KeyboardInterrupt)) {
      PyErr_SetInterrupt();
    } else {
      error.discard_as_unraisable("mempool refusal handler");
    }
  }
}

void refused(RefusedRequest& request) noexcept {
  if (!g_handles_refusals.load(std::memory_order_relaxed)) return;
  const Running running;
  if (!running) return;
  try {
    call_refusal_handler(request);
  } catch (const std::exception&) {
    // The request is refused without a word from the handler.
  }
}

std::uint32_t intern(State::Stack&& stack) {
  State& s = state();
  const auto [found, fresh] =
      s.ids.try_emplace(std::move(stack), s.first_id + static_cast<std::uint32_t>(s.stacks.size()));
  if (fresh) {
    for (const auto& [code, line] : found->first) Py_INCREF(code);
    s.stacks.push_back(&found->first);
  }
  return found->second;
}

std::uint32_t capture_stack() noexcept {
  const Running running;
  // A thread that Python does not know has no Python stack.
  if (!running || PyGILState_GetThisThreadState() == nullptr) return 0;
  constexpr std::size_t kMostFrames = 64;
  const PyGILState_STATE gil = PyGILState_Ensure();
  std::uint32_t id = 0;
  try {
    if (state().capturing) {
      State::Stack stack;
      PyFrameObject* frame = PyThreadState_GetFrame(PyThreadState_Get());
      while (frame != nullptr && stack.size() < kMostFrames) {
        PyCodeObject* const code = PyFrame_GetCode(frame);
        stack.emplace_back(reinterpret_cast<PyObject*>(code), PyFrame_GetLineNumber(frame));
        Py_DECREF(code);  // the frame holds it; intern() takes a reference of its own
        PyFrameObject* const back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
      }
      Py_XDECREF(frame);
      if (!stack.empty()) id = intern(std::move(stack));
    }
  } catch (const std::exception&) {
    id = 0;
  }
  PyGILState_Release(gil);
  return id;
}

const Hooks kHooks{.pressure = pressure, .refused = refused, .capture_stack = capture_stack};

}  // namespace

void install_hooks() { set_hooks(&kHooks); }

void retire_hooks() {
  g_retired.store(true);
  const py::gil_scoped_release release;
  // A callback that never returns must not keep the process from ending.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (g_running.load() > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void reset_after_fork() { g_running.store(0); }

void set_pressure_handler(py::object handler) { state().pressure_handler = std::move(handler); }

void set_refusal_handler(py::object handler) {
  g_handles_refusals.store(!handler.is_none());
  state().refusal_handler = std::move(handler);
}

void set_stack_capture(bool on) {
  State& s = state();
  s.capturing = on;
  s.first_id += static_cast<std::uint32_t>(s.stacks.size());
  s.stacks.clear();
  for (auto& [stack, id] : std::exchange(s.ids, {})) {
    for (const auto& [code, line] : stack) Py_DECREF(code);
  }
}

py::list stack_frames(std::uint32_t id) {
  py::list frames;
  const State& s = state();
  if (id < s.first_id || id - s.first_id >= s.stacks.size()) return frames;
  for (const auto& [object, line] : *s.stacks[id - s.first_id]) {
    const py::handle code(object);
    py::dict frame;
    frame["filename"] = code.attr("co_filename");
    frame["name"] = code.attr("co_name");
    frame["line"] = line;
    frames.append(frame);
  }
  return frames;
}

}  // namespace mempool::bindings
