// Contents of sleeping memory in a file that has no name, so that it goes when the process goes.
#pragma once

#include <memory>

#include "core/physical_memory.h"

namespace mempool {

// In the directory that TMPDIR names, else in /tmp. Where no file can be made there, saving fails and says why. nullptr
// without memory.
std::unique_ptr<Backup> make_file_backup() noexcept;

}  // namespace mempool
