// The contents of sleeping CPU memory, in a file without a name: the system deletes it when the process ends.
#pragma once

#include <memory>

#include "core/physical_memory.h"

namespace mempool {

// An empty backup in the directory that TMPDIR names, else in /tmp. Where no file can be made there, saving fails and
// problem() says why. nullptr without memory.
std::unique_ptr<Backup> make_file_backup() noexcept;

}  // namespace mempool
