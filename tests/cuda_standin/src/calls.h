// What every entry point does first: it is counted, perhaps logged, charged with a latency, and fails if it is told to.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace standin {

// One lock for everything: host functions that a stream runs may call back.
std::recursive_mutex& lock();
using Guard = std::lock_guard<std::recursive_mutex>;

struct CallKind {
  std::uint64_t count = 0;
  std::uint64_t fail_in = 0;  // the call that fails, counted from here: 1 is the next; 0: none
  int error = 0;              // with this error
  std::uint64_t latency_ns = 0;
};

class Calls {
 public:
  static Calls& instance();

  CallKind& kind(const std::string& name) { return kinds_[name]; }  // the address stays
  // Counts a call, waits for its latency, and returns the error that it is to fail with (0: none).
  int enter(CallKind& kind);
  void reset();

  bool is_logged() const { return is_logged_; }
  void set_logged(bool logged) { is_logged_ = logged; }
  void log(std::string line) { lines_.push_back(std::move(line)); }
  const std::map<std::string, CallKind>& kinds() const { return kinds_; }
  std::vector<std::string>& lines() { return lines_; }
  std::uint64_t charged_ns() const { return charged_ns_; }

 private:
  std::map<std::string, CallKind> kinds_;
  std::vector<std::string> lines_;
  std::uint64_t charged_ns_ = 0;
  bool is_logged_ = false;
};

std::string text_of(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The runtime remembers the last error of each thread until it is asked for.
cudaError_t remember(cudaError_t error);
cudaError_t last_error(bool forget);

}  // namespace standin

// The first lines of an entry point that returns cudaError_t or CUresult. What follows runs under the lock. The name is
// made a text here and not one macro deeper: cuda.h defines macros that would add a version to it.
#define STANDIN_ENTER(type, name, finish)                                             \
  const ::standin::Guard standin_guard(::standin::lock());                            \
  static ::standin::CallKind& standin_kind = ::standin::Calls::instance().kind(name); \
  if (const int injected = ::standin::Calls::instance().enter(standin_kind)) {        \
    STANDIN_LOG("%s: made to fail with %d", name, injected);                          \
    return finish(static_cast<type>(injected));                                       \
  }
#define STANDIN_RUNTIME(name) STANDIN_ENTER(cudaError_t, #name, ::standin::remember)
#define STANDIN_DRIVER(name) STANDIN_ENTER(CUresult, #name, )
#define STANDIN_LOG(...) \
  if (::standin::Calls::instance().is_logged()) ::standin::Calls::instance().log(::standin::text_of(__VA_ARGS__))
