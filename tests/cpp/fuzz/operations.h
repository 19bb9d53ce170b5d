// Runs a sequence of allocator operations that is read from bytes, and compares it with a model.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool::fuzz {

// Runs the operations that the bytes stand for. Throws std::logic_error when the allocator breaks a promise.
void run_operations(const std::uint8_t* data, std::size_t size);

}  // namespace mempool::fuzz
