// Replaces the process's operator new by one that a test can make fail.
#include "core/failing_new.h"

#include <cstdlib>
#include <new>
#include <utility>

namespace {
constinit thread_local long t_left = 0;
}

long fixtures::fail_new(long n) noexcept { return std::exchange(t_left, n); }

void* operator new(std::size_t bytes) {
  if (t_left > 0 && --t_left == 0) throw std::bad_alloc();
  if (void* const block = std::malloc(bytes > 0 ? bytes : 1)) return block;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return operator new(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t& tag) noexcept { return operator new(bytes, tag); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, std::size_t) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete[](void* block, std::size_t) noexcept { std::free(block); }
