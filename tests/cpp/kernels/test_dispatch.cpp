// The choice of the set of kernels: the best that the machine runs, or the one that the environment names.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "check.h"
#include "common/errors.h"
#include "kernels/kernels.h"

using namespace mempool::kernels;

namespace {

constexpr int kRefused = 100;

// What a process with that environment gets: it is asked once in the life of a process.
int isa_with(const char* forced) {
  const pid_t child = fork();
  if (child == 0) {
    setenv("MEMPOOL_FORCE_ISA", forced, 1);
    try {
      _exit(static_cast<int>(current_isa()));
    } catch (const mempool::ConfigError& error) {
      _exit(std::strstr(error.what(), forced) != nullptr ? kRefused : kRefused + 1);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

// On a processor that whoever runs the test knows, such as one that qemu plays.
TEST(the_best_set_is_the_one_that_is_expected) {
  const char* const expected = std::getenv("MEMPOOL_TEST_BEST_ISA");
  if (expected != nullptr) CHECK_EQ(std::string(name_of(static_cast<Isa>(isa_with("")))), expected);
}

TEST(the_environment_chooses_the_kernels) {
  int best = 0;
  for (int i = 0; i < kIsas; ++i) {
    const Isa isa = static_cast<Isa>(i);
    const bool runs = kernels_of(isa) != nullptr;
    if (runs) best = i;
    CHECK_EQ(isa_with(name_of(isa)), runs ? i : kRefused);
  }
  CHECK_EQ(isa_with(""), best);
  CHECK_EQ(isa_with("sse9"), kRefused);
}
