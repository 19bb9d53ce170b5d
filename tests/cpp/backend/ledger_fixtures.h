// Ledgers of a test, and processes that join them.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "backend/shared_ledger.h"
#include "temporary_folder.h"

namespace ledger_fixtures {

// Where ledgers of a test are.
class Folder : public TemporaryFolder {
 public:
  std::unique_ptr<mempool::SharedLedger> join(const std::string& process = "test") const {
    return mempool::SharedLedger::join(path, "one", process);
  }
  bool is_empty() const { return std::filesystem::is_empty(path); }
};

// Runs in a child; ends with 0 where it returns true.
inline pid_t in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child != 0) return child;
  bool passed = false;
  try {
    passed = body();
  } catch (...) {
  }
  _exit(passed ? 0 : 1);
}

inline bool ended_well(pid_t child) {
  int status = -1;
  return waitpid(child, &status, 0) == child && status == 0;
}

}  // namespace ledger_fixtures
