#include "common/expects.h"

#include <cstdio>
#include <cstdlib>

namespace mempool {

void fail_expectation(const char* condition, const char* file, int line) noexcept {
  std::fprintf(stderr, "mempool: %s:%d: expected %s\n", file, line, condition);
  std::abort();
}

}  // namespace mempool
