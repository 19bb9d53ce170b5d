// MEMPOOL_EXPECTS aborts in checked builds, and is not even evaluated in others.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "check.h"
#include "common/expects.h"

namespace {

// How a child ends that expects `condition`.
int status_of(bool condition, int& evaluated) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    MEMPOOL_EXPECTS((++evaluated, condition));
    _exit(evaluated);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

}  // namespace

TEST(a_broken_expectation_aborts_where_it_is_checked) {
  int evaluated = 0;
  const int broken = status_of(false, evaluated);
  const int kept = status_of(true, evaluated);
#ifdef MEMPOOL_CHECKED
  CHECK(WIFSIGNALED(broken) && WTERMSIG(broken) == SIGABRT);
  CHECK_EQ(WEXITSTATUS(kept), 1);
#else  // not even evaluated
  CHECK_EQ(WEXITSTATUS(broken), 0);
  CHECK_EQ(WEXITSTATUS(kept), 0);
#endif
}
