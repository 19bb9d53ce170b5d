// Counts, logs and fails calls, as a test has told.
#include "calls.h"

#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <string_view>

namespace standin {
namespace {
thread_local cudaError_t t_last = cudaSuccess;
}

std::recursive_mutex& lock() {
  static std::recursive_mutex* const mutex = new std::recursive_mutex;  // calls come after static destruction too
  return *mutex;
}

Calls& Calls::instance() {
  static Calls* const calls = new Calls;
  return *calls;
}

int Calls::enter(CallKind& kind) {
  ++kind.count;
  if (kind.latency_ns > 0) {
    charged_ns_ += kind.latency_ns;
    const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(kind.latency_ns);
    while (std::chrono::steady_clock::now() < until) {
    }
  }
  if (kind.fail_in == 0 || --kind.fail_in > 0) return 0;
  return kind.error;
}

void Calls::reset() {
  for (auto& [name, kind] : kinds_) kind = {};
  lines_.clear();
  charged_ns_ = 0;
  is_logged_ = false;
}

std::string text_of(const char* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) t_last = error;
  return error;
}

cudaError_t last_error(bool forget) {
  const cudaError_t error = t_last;
  if (forget) t_last = cudaSuccess;
  return error;
}

}  // namespace standin

// A function that torch imports and the stand-in does not play: counted, and refused. In generated code, by name.
extern "C" int unplayed_call(const char* name) {
  const standin::Guard guard(standin::lock());
  standin::CallKind& kind = standin::Calls::instance().kind(name);
  const int injected = standin::Calls::instance().enter(kind);
  STANDIN_LOG("%s: not played", name);
  const auto error = static_cast<cudaError_t>(injected != 0 ? injected : cudaErrorNotSupported);
  return std::string_view(name).starts_with("cuda") ? standin::remember(error) : error;
}
