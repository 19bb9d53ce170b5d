// Preconditions and invariants as calls: MEMPOOL_EXPECTS(condition).
//
// Builds with sanitizers and debug builds (MEMPOOL_CHECKED, see CMakeLists.txt) evaluate the condition and abort with
// its text where it is false: the caller has a bug. Other builds do not evaluate it, and it costs nothing there; so
// what a user can cause is never an expectation, but an exception.
#pragma once

namespace mempool {

[[noreturn]] void fail_expectation(const char* condition, const char* file, int line) noexcept;

}  // namespace mempool

#ifdef MEMPOOL_CHECKED
#define MEMPOOL_EXPECTS(condition) \
  ((condition) ? static_cast<void>(0) : ::mempool::fail_expectation(#condition, __FILE__, __LINE__))
#else
#define MEMPOOL_EXPECTS(condition) static_cast<void>(sizeof(!(condition)))
#endif
