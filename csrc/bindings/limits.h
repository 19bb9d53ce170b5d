// Limits as Python has them: bytes, or None for no limit.
#pragma once

#include <cstddef>
#include <optional>

#include "common/bytes.h"

namespace mempool::bindings {

using Limit = std::optional<std::size_t>;

inline std::size_t from_limit(Limit limit) { return limit.value_or(kNoLimit); }
inline Limit to_limit(std::size_t limit) { return limit == kNoLimit ? Limit{} : Limit{limit}; }

}  // namespace mempool::bindings
