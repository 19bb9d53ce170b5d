// The process's operator new, which can be told to fail once.
#pragma once

namespace fixtures {

// The n-th allocation of this thread from now on throws std::bad_alloc; 0: none does. Returns how many are left to it,
// so 0 says that it has failed.
long fail_new(long n) noexcept;

}  // namespace fixtures
