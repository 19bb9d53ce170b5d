// Byte sizes as people write them: "1.5GiB", "512 MB", "4096".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mempool {

// "unlimited": what a limit holds when none is set.
inline constexpr std::size_t kNoLimit = SIZE_MAX;

// Parses a size. Binary units (KiB, MiB, GiB, TiB; K, M, G and T mean the same), decimal units (KB, MB, GB, TB),
// plain bytes ("B" or no unit). A fraction is rounded down to whole bytes. "50%" is taken of `whole_bytes`.
// Throws ConfigError on anything else, on a negative or zero size, and on one past 2^63 - 1.
std::size_t parse_bytes(std::string_view text, std::size_t whole_bytes = 0);

// "1.50 GiB", "512 B": three digits at most behind the point, binary units.
std::string format_bytes(std::size_t bytes);

}  // namespace mempool
