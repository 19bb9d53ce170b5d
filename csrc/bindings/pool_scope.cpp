// Entering and leaving pools from Python. All functions hold the interpreter's lock throughout, so no thread sees an
// entry that another thread is about to end.
#include "pool_scope.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "backend/cpu_device.h"
#include "backend/cuda_device.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

// One stay of one thread in a pool. Destroying it leaves the pool.
class Entry {
 public:
  explicit Entry(std::shared_ptr<Pool> pool) : pool_(std::move(pool)), entry_(this) {}
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;
  ~Entry() { leave(); }

  void enter() {
    if (entry_.home() != nullptr) throw PoolStateError("mempool: this entry is on a thread's stack already.");
    thread_ = PyThread_get_thread_ident();
    pool_->device().pools().enter(entry_, &pool_->account());
  }
  bool leave() noexcept { return pool_->device().pools().leave(entry_); }
  bool entered() const noexcept { return entry_.home() != nullptr; }
  bool is_here() const noexcept { return thread_ == PyThread_get_thread_ident(); }

  bool suspended = false;  // it was taken off the stack while other code of this thread runs
  bool followed = false;   // it is put on the stack for each step of its context, and taken off after it

 private:
  const std::shared_ptr<Pool> pool_;
  PoolEntry entry_;
  unsigned long thread_ = 0;  // the thread that entered
};

// Visits the calling thread's entries of all devices, device after device and the innermost first. `visit` may leave
// its entry.
template <typename Visit>
void for_each_entry(Visit visit) {
  const auto of_device = [&visit](CachingAllocator* device) {
    if (device != nullptr) device->pools().for_each_entry(visit);
  };
  of_device(cpu_device_if_made());
  for (int i = 0; i < kMaxCudaDevices; ++i) of_device(cuda_device_if_made(i));
}

// The calling thread's entries, the innermost last. nullptr stands for an entry that the allocator made itself, to keep
// a pressure callback out of the pool that called it.
std::vector<Entry*> own_entries() {
  std::vector<std::pair<std::uint64_t, Entry*>> found;
  for_each_entry([&found](PoolEntry& entry) { found.emplace_back(entry.order(), static_cast<Entry*>(entry.user)); });
  std::sort(found.begin(), found.end());
  std::vector<Entry*> out;
  for (const auto& [order, entry] : found) out.push_back(entry);
  return out;
}

py::list entries() {
  py::list out;
  for (Entry* const entry : own_entries()) out.append(entry != nullptr ? py::cast(entry) : py::none());
  return out;
}

std::size_t leave_all() {
  std::size_t left = 0;
  for_each_entry([&left](PoolEntry& entry) {
    if (entry.user != nullptr && static_cast<Entry*>(entry.user)->leave()) ++left;
  });
  return left;
}

// The argument `following` of the call_in_pools() that this thread is in; nullptr outside of it.
thread_local PyObject* t_following = nullptr;

// One step of a coroutine, or one call, with its pools entered. Its destructor takes back all that was set, however the
// step ends: no interrupt can come in between, as none of it is Python.
class Step {
 public:
  Step(const py::tuple& entries, const py::object& following, const py::object& context, const py::object& place)
      : context_(context), place_(place), mark_(PoolStack::mark()), outer_(t_following) {
    t_following = following.is_none() ? nullptr : following.ptr();
    try {
      if (!place_.is_none()) push_place();
      for (const py::handle each : entries) {
        auto& entry = each.cast<Entry&>();
        entry.enter();
        entry.followed = true;
        entry.suspended = false;
      }
    } catch (...) {
      end();
      throw;
    }
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  ~Step() { end(); }

 private:
  void push_place() {
    before_ = read_context();
    const py::tuple one = py::make_tuple(place_);
    set_ = py::reinterpret_steal<py::object>(PySequence_Concat(before_.ptr(), one.ptr()));
    if (!set_ || !write_context(set_)) throw py::error_already_set();
  }

  void end() noexcept {
    for_each_entry([this](PoolEntry& each) {
      if (each.order() <= mark_ || each.user == nullptr) return;
      auto& entry = *static_cast<Entry*>(each.user);
      entry.leave();
      entry.suspended = !entry.followed;
    });
    t_following = outer_;
    if (set_) pop_place();
  }

  void pop_place() noexcept {
    try {
      const py::object now = read_context();
      if (now.is(set_)) {
        if (!write_context(before_)) PyErr_Clear();
        return;
      }
      py::list kept;  // what was opened in the step and goes on in the next
      for (const py::handle place : now) {
        if (!place.is(place_)) kept.append(place);
      }
      if (!write_context(py::tuple(kept))) PyErr_Clear();
    } catch (const std::exception&) {
      // Without memory for the tuple the place stays in the context until its entry ends.
    }
  }

  py::object read_context() const {
    PyObject* value = nullptr;
    if (PyContextVar_Get(context_.ptr(), nullptr, &value) != 0 || value == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  }
  bool write_context(const py::object& value) const noexcept {
    PyObject* const token = PyContextVar_Set(context_.ptr(), value.ptr());
    Py_XDECREF(token);
    return token != nullptr;
  }

  const py::object& context_;
  const py::object& place_;
  const std::uint64_t mark_;
  PyObject* const outer_;
  py::object before_;
  py::object set_;
};

constexpr const char* kCallInPools =
    "call_in_pools(entries, following, context, place, function, arguments)\n\n"
    "function(*arguments) with the entries set and, unless it is None, the place in the context. What is opened in it "
    "and not closed is taken off at its end.";

// A plain function of Python's C interface: every coroutine ends with a StopIteration, which pybind11 would throw as a
// C++ exception. That takes 7 microseconds, and the rest half of one.
PyObject* call_in_pools(PyObject* module, PyObject* const* given, Py_ssize_t count) noexcept {
  if (count != 6 || !PyTuple_Check(given[0]) || !PyTuple_Check(given[5])) {
    PyErr_SetString(PyExc_TypeError, kCallInPools);
    return nullptr;
  }
  const auto of = [given](int i) { return py::reinterpret_borrow<py::object>(given[i]); };
  const py::object context = of(2);
  const py::object place = of(3);
  std::optional<Step> step;
  try {
    step.emplace(py::tuple(of(0)), of(1), context, place);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const PoolStateError& error) {
    const auto type = py::reinterpret_steal<py::object>(PyObject_GetAttrString(module, "PoolStateError"));
    if (type) PyErr_SetString(type.ptr(), error.what());
    return nullptr;
  } catch (const std::exception& error) {  // an entry that is none
    PyErr_SetString(PyExc_TypeError, error.what());
    return nullptr;
  }
  PyObject* const result = PyObject_Call(given[4], given[5], nullptr);
  const py::error_scope raised;  // the end of the step calls Python, too
  step.reset();
  return result;
}

PyMethodDef g_call_in_pools = {"call_in_pools",
                               // How METH_FASTCALL functions are registered: through a type that has no arguments.
                               reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_in_pools)),  // NOLINT
                               METH_FASTCALL, kCallInPools};

// The base of mempool.use_pool. It is in C++ because Python handles interrupts between two of its own steps: entering
// ends with one call, and leaving begins with one, and no interrupt can come in between.
class Scope {
 public:
  // `_open` of the subclass makes the entry.
  static py::object enter(const py::object& self) {
    auto& open = self.cast<Scope&>().open_;
    const py::object entry = self.attr("_open")();
    open.push_back(entry);
    try {
      entry.cast<Entry&>().enter();
    } catch (...) {
      remove(open, entry);
      throw;
    }
    return entry.attr("pool");
  }

  // `_close(entry, was_elsewhere, exc)` of the subclass does the rest.
  static py::object exit(const py::object& self, const py::object&, const py::object& exc, const py::object&) {
    auto& open = self.cast<Scope&>().open_;
    if (open.empty()) throw PoolStateError("mempool: this `with use_pool` was not entered, or was left already.");
    std::optional<py::error_already_set> interrupt;
    const py::object entry = open.size() == 1 ? open.back() : pick(self, open, interrupt);
    remove(open, entry);
    auto& left = entry.cast<Entry&>();
    const bool was_elsewhere = left.leave() && !left.is_here();
    entry.attr("place").attr("entry") = py::none();  // no context is in it any more, whatever becomes of the next call
    if (interrupt) throw std::move(*interrupt);
    return self.attr("_close")(entry, was_elsewhere, exc);
  }

 private:
  // `_pick(entries)` of the subclass chooses the entry that ends. It is Python, so an interrupt may end it: then it is
  // called again, and the interrupt is raised once the pool is left.
  static py::object pick(const py::object& self, const std::vector<py::object>& open,
                         std::optional<py::error_already_set>& interrupt) {
    constexpr int kMostTries = 3;
    for (int i = 0; i < kMostTries; ++i) {
      try {
        py::tuple entries(open.size());
        for (std::size_t k = 0; k < open.size(); ++k) entries[k] = open[k];
        return self.attr("_pick")(entries);
      } catch (py::error_already_set& error) {
        interrupt.emplace(std::move(error));
      }
    }
    return open.back();
  }

  static void remove(std::vector<py::object>& open, const py::object& entry) {
    open.erase(std::find_if(open.begin(), open.end(), [&](const py::object& each) { return each.is(entry); }));
  }

  std::vector<py::object> open_;
};

}  // namespace

void add_pool_scope(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<Entry>(m, "PoolEntry", "One stay of one thread in a pool.")
      .def(py::init<std::shared_ptr<Pool>>(), "pool"_a)
      .def_property_readonly("entered", &Entry::entered)
      .def_property_readonly("is_here", &Entry::is_here)
      .def_readwrite("suspended", &Entry::suspended)
      .def_readwrite("followed", &Entry::followed)
      .def("enter", &Entry::enter)
      .def("leave", &Entry::leave, "At once, whichever thread's stack it is on. False: it was on none.");
  py::class_<Scope>(m, "PoolScope", "A context manager that enters a pool; see mempool.use_pool.")
      .def(py::init<>())
      .def("__enter__", [](const py::object& self) { return Scope::enter(self); })
      .def("__exit__", &Scope::exit, "kind"_a, "exc"_a, "traceback"_a);
  m.def("pool_entries", &entries,
        "The calling thread's entries of all devices, the innermost last. None: a pressure callback runs in no pool.");
  m.def("leave_pools", &leave_all, "Takes the calling thread out of all of them. Returns how many.");
  m.attr("call_in_pools") =
      py::reinterpret_steal<py::object>(PyCFunction_NewEx(&g_call_in_pools, m.ptr(), m.attr("__name__").ptr()));
  m.def(
      "following", [] { return t_following != nullptr ? py::reinterpret_borrow<py::object>(t_following) : py::none(); },
      "What call_in_pools() was given on this thread; None outside of it.");
}

}  // namespace mempool::bindings
