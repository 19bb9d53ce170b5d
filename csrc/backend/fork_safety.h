// fork: every allocator of the process is whole in the child, whatever other threads were doing.
#pragma once

#include <mutex>

#include "core/allocator/caching_allocator.h"

namespace mempool {

// Held while an allocator of the process is made. The child finds it free.
std::mutex& device_making();
// From now on the allocator takes part in every fork. Precondition: it is immortal, device_making() is held. Throws
// std::bad_alloc.
void survive_fork(CachingAllocator& allocator);

}  // namespace mempool
