// The options of an allocator, and the one table that spells, checks and documents each key, for MEMPOOL_CONF and for
// the Python API.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/bytes.h"

namespace mempool {

inline constexpr std::int64_t kNeverDecays = -1;

// How much memory is taken at once where some is missing.
struct GrowthStep {
  enum class Kind : std::uint8_t {
    as_needed,
    doubling,  // as much as is held already
    fixed,     // `bytes`
  } kind = Kind::as_needed;
  std::size_t bytes = 0;
};

struct Options {
  // Bytes held from the system by the device; kNoLimit = no limit.
  std::size_t limit = kNoLimit;
  // Above this many held bytes the allocator trims and calls pressure callbacks; kNoLimit = never.
  std::size_t soft_limit = kNoLimit;
  // Free bytes in blocks of up to 32 KiB that one thread may keep for itself. 0 turns thread caches off.
  std::size_t thread_cache_bytes = 16u << 20;
  // Address space (not memory) that is reserved at once. A larger block gets a reservation of its own size.
  std::size_t segment_bytes = std::size_t{1} << 30;
  // Memory (not address space) that is held from the start, and never goes back by itself. 0: none.
  std::size_t reserve = 0;
  GrowthStep growth{};
  // Advise transparent huge pages for CPU memory.
  bool huge_pages = true;
  // Make ranges longer with free memory moved from elsewhere, before new memory is asked for.
  bool stitch = true;
  // Free memory goes back to the system when it has not been needed for this many milliseconds; kNeverDecays: it goes
  // back only when asked.
  std::int64_t decay_ms = 10000;
  // Allocation events that record_history keeps; the oldest go first.
  std::size_t history_events = 100000;
};

struct OptionInfo {
  std::string_view key;
  std::string_view type;  // "bytes", "count", "bool"
  std::string_view help;
};

// Every key, in the order of the documentation.
const std::vector<OptionInfo>& option_table();

// The value of an option: bytes, a count, a switch or a word; nothing where there is no limit or memory never decays.
using OptionValue = std::variant<std::monostate, std::uint64_t, bool, std::string>;

// What the options are set to, in the order of option_table().
std::vector<OptionValue> option_values(const Options& options);

// Sets one option from text. `whole_bytes` is what percentages are taken of. Throws ConfigError for an unknown key (the
// message names the nearest known one) and for a value that does not parse.
void set_option(Options& options, std::string_view key, std::string_view value, std::size_t whole_bytes);

// Reads "key:value,key:value". Nothing is changed when any part is wrong.
void parse_conf(Options& options, std::string_view conf, std::size_t whole_bytes);

}  // namespace mempool
