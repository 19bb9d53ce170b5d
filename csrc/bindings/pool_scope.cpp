// Entering and leaving pools from Python. All of it holds the interpreter's lock throughout, so nobody sees an entry
// that another thread is about to end.
#include "pool_scope.h"

#include <algorithm>
#include <array>
#include <vector>

#include "backend/cpu_device.h"
#include "backend/cuda_device.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

// One stay of one thread in a pool. Its end leaves the pool, too.
class Entry {
 public:
  explicit Entry(std::shared_ptr<Pool> pool) : pool_(std::move(pool)), entry_(this) {}
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;
  ~Entry() { leave(); }

  void enter() {
    if (entry_.home() != nullptr) throw PoolStateError("mempool: this entry is on a thread's stack already.");
    thread_ = PyThread_get_thread_ident();
    pool_->device().enter_pool(entry_, &pool_->account());
  }
  bool leave() noexcept { return pool_->device().leave_pool(entry_); }
  bool entered() const noexcept { return entry_.home() != nullptr; }
  bool is_here() const noexcept { return thread_ == PyThread_get_thread_ident(); }

 private:
  const std::shared_ptr<Pool> pool_;
  PoolEntry entry_;
  unsigned long thread_ = 0;  // that entered
};

// The calling thread's entries of all devices that were made after the mark, the innermost last. nullptr: what the
// allocator itself has entered, to keep a pressure callback out of the pool that called it.
std::vector<Entry*> entries_since(std::uint64_t mark) {
  std::vector<std::pair<std::uint64_t, Entry*>> found;
  const auto gather = [&found, mark](CachingAllocator* device) {
    if (device == nullptr) return;
    device->for_each_entry([&found, mark](PoolEntry& entry) {
      if (entry.order() > mark) found.emplace_back(entry.order(), static_cast<Entry*>(entry.user));
    });
  };
  gather(cpu_device_if_made());
  for (int i = 0; i < kMaxCudaDevices; ++i) gather(cuda_device_if_made(i));
  std::sort(found.begin(), found.end());
  std::vector<Entry*> out;
  for (const auto& [order, entry] : found) out.push_back(entry);
  return out;
}

py::list entries() {
  py::list out;
  for (Entry* const entry : entries_since(0)) out.append(entry != nullptr ? py::cast(entry) : py::none());
  return out;
}

py::list leave_since(std::uint64_t mark) {
  py::list left;
  for (Entry* const entry : entries_since(mark)) {
    if (entry == nullptr) continue;
    left.append(py::cast(entry));
    entry->leave();
  }
  return left;
}

// The base of mempool.use_pool. It is in C++ because an interrupt strikes between two steps of Python: the last thing
// that entering does and the first that leaving does is one call each, with no such step around it.
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
    // One object may be entered by several threads, and nested; each leaves its own last entry.
    const auto own =
        std::find_if(open.rbegin(), open.rend(), [](const py::object& each) { return each.cast<Entry&>().is_here(); });
    const py::object entry = own != open.rend() ? *own : open.back();
    remove(open, entry);
    auto& left = entry.cast<Entry&>();
    const bool was_elsewhere = left.leave() && !left.is_here();
    entry.attr("place").attr("entry") = py::none();  // no context is in it any more, whatever becomes of the next call
    return self.attr("_close")(entry, was_elsewhere, exc);
  }

 private:
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
      .def("enter", &Entry::enter)
      .def("leave", &Entry::leave, "At once, whichever thread's stack it is on. False: it was on none.");
  py::class_<Scope>(m, "PoolScope", "A context manager that enters a pool; see mempool.use_pool.")
      .def(py::init<>())
      .def("__enter__", [](const py::object& self) { return Scope::enter(self); })
      .def("__exit__", &Scope::exit, "kind"_a, "exc"_a, "traceback"_a);
  m.def("pool_entries", &entries,
        "The calling thread's entries of all devices, the innermost last. None: a pressure callback runs in no pool.");
  m.def("pool_mark", &PoolStack::mark, "For leave_pools_since().");
  m.def("leave_pools_since", &leave_since, "mark"_a,
        "Leaves what this thread has entered since the mark was taken, and returns these entries.");
}

}  // namespace mempool::bindings
