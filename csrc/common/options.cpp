#include "common/options.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "common/errors.h"
#include "common/text.h"

namespace mempool {
namespace {

std::size_t parse_count(std::string_view key, std::string_view value) {
  std::size_t out = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
  if (error != std::errc() || end != value.data() + value.size()) {
    throw ConfigError("option '" + std::string(key) + "' wants a whole number, not '" + std::string(value) + "'.");
  }
  return out;
}

std::int64_t parse_decay(std::string_view key, std::string_view value) {
  constexpr std::size_t kMost = std::size_t{1} << 40;  // ms: far beyond any process, and sums of it do not overflow
  if (value == "never") return kNeverDecays;
  return static_cast<std::int64_t>(std::min(parse_count(key, value), kMost));
}

bool parse_bool(std::string_view key, std::string_view value) {
  for (const char* yes : {"true", "True", "1", "on", "yes"}) {
    if (value == yes) return true;
  }
  for (const char* no : {"false", "False", "0", "off", "no"}) {
    if (value == no) return false;
  }
  throw ConfigError("option '" + std::string(key) + "' wants true or false, not '" + std::string(value) + "'.");
}

// Zero is a meaning of its own for these ("off"), so it is let through where parse_bytes refuses it.
std::size_t parse_bytes_or_zero(std::string_view value, std::size_t whole_bytes) {
  return value == "0" ? 0 : parse_bytes(value, whole_bytes);
}

OptionValue limit_value(std::size_t bytes) {
  if (bytes == kNoLimit) return {};
  return std::uint64_t{bytes};
}

GrowthStep parse_growth(std::string_view value, std::size_t whole_bytes) {
  if (value == "as_needed") return {};
  if (value == "double") return {.kind = GrowthStep::Kind::doubling};
  return {.kind = GrowthStep::Kind::fixed, .bytes = parse_bytes(value, whole_bytes)};
}

OptionValue growth_value(GrowthStep growth) {
  switch (growth.kind) {
    case GrowthStep::Kind::as_needed:
      return std::string("as_needed");
    case GrowthStep::Kind::doubling:
      return std::string("double");
    case GrowthStep::Kind::fixed:
      break;
  }
  return std::uint64_t{growth.bytes};
}

struct Entry {
  OptionInfo info;
  void (*set)(Options&, std::string_view key, std::string_view value, std::size_t whole_bytes);
  OptionValue (*get)(const Options&);
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> table{
      {{"limit", "bytes",
        "most bytes the device may hold from the system; a size or a percentage of the memory available"},
       [](Options& o, std::string_view, std::string_view v, std::size_t w) { o.limit = parse_bytes(v, w); },
       [](const Options& o) -> OptionValue { return limit_value(o.limit); }},
      {{"soft_limit", "bytes", "held bytes above which caches are trimmed and pressure callbacks run"},
       [](Options& o, std::string_view, std::string_view v, std::size_t w) { o.soft_limit = parse_bytes(v, w); },
       [](const Options& o) -> OptionValue { return limit_value(o.soft_limit); }},
      {{"thread_cache_bytes", "bytes",
        "free bytes in blocks of up to 32 KiB that one thread may keep for itself; 0 turns thread caches off"},
       [](Options& o, std::string_view, std::string_view v, std::size_t w) {
         o.thread_cache_bytes = parse_bytes_or_zero(v, w);
       },
       [](const Options& o) -> OptionValue { return std::uint64_t{o.thread_cache_bytes}; }},
      {{"segment_bytes", "bytes", "address space (not memory) that is reserved at once"},
       [](Options& o, std::string_view, std::string_view v, std::size_t w) { o.segment_bytes = parse_bytes(v, w); },
       [](const Options& o) -> OptionValue { return std::uint64_t{o.segment_bytes}; }},
      {{"reserve", "bytes", "memory that is held from the start, and does not go back by itself; 0 for none"},
       [](Options& o, std::string_view, std::string_view v, std::size_t w) { o.reserve = parse_bytes_or_zero(v, w); },
       [](const Options& o) -> OptionValue { return std::uint64_t{o.reserve}; }},
      {{"growth", "bytes or a word",
        "memory that is taken at once where some is missing: as_needed, double (as much as is held), or a size"},
       [](Options& o, std::string_view, std::string_view v, std::size_t w) { o.growth = parse_growth(v, w); },
       [](const Options& o) { return growth_value(o.growth); }},
      {{"huge_pages", "bool", "advise transparent huge pages for CPU memory"},
       [](Options& o, std::string_view k, std::string_view v, std::size_t) { o.huge_pages = parse_bool(k, v); },
       [](const Options& o) -> OptionValue { return o.huge_pages; }},
      {{"stitch", "bool", "make ranges longer with free memory moved from elsewhere, before asking for new memory"},
       [](Options& o, std::string_view k, std::string_view v, std::size_t) { o.stitch = parse_bool(k, v); },
       [](const Options& o) -> OptionValue { return o.stitch; }},
      {{"decay_ms", "count or never",
        "milliseconds after which free memory that nobody needed goes back to the system"},
       [](Options& o, std::string_view k, std::string_view v, std::size_t) { o.decay_ms = parse_decay(k, v); },
       [](const Options& o) -> OptionValue {
         if (o.decay_ms == kNeverDecays) return {};
         return static_cast<std::uint64_t>(o.decay_ms);
       }},
      {{"history_events", "count", "allocation events that record_history keeps"},
       [](Options& o, std::string_view k, std::string_view v, std::size_t) { o.history_events = parse_count(k, v); },
       [](const Options& o) -> OptionValue { return std::uint64_t{o.history_events}; }},
  };
  return table;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace

const std::vector<OptionInfo>& option_table() {
  static const std::vector<OptionInfo> table = [] {
    std::vector<OptionInfo> out;
    for (const Entry& entry : entries()) out.push_back(entry.info);
    return out;
  }();
  return table;
}

std::vector<OptionValue> option_values(const Options& options) {
  std::vector<OptionValue> out;
  for (const Entry& entry : entries()) out.push_back(entry.get(options));
  return out;
}

void set_option(Options& options, std::string_view key, std::string_view value, std::size_t whole_bytes) {
  const Entry* nearest = nullptr;
  std::size_t nearest_distance = SIZE_MAX;
  for (const Entry& entry : entries()) {
    if (entry.info.key == key) {
      entry.set(options, key, value, whole_bytes);
      return;
    }
    const std::size_t distance = edit_distance(entry.info.key, key);
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = &entry;
    }
  }
  throw ConfigError("unknown option '" + std::string(key) + "'. Did you mean '" + std::string(nearest->info.key) +
                    "'? The options are listed by `mempool options`.");
}

void parse_conf(Options& options, std::string_view conf, std::size_t whole_bytes) {
  Options parsed = options;
  while (!conf.empty()) {
    const auto comma = conf.find(',');
    const std::string_view item = strip(conf.substr(0, comma));
    conf = comma == std::string_view::npos ? std::string_view{} : conf.substr(comma + 1);
    if (item.empty()) continue;
    const auto colon = item.find(':');
    if (colon == std::string_view::npos) {
      throw ConfigError("'" + std::string(item) + "' is not an option: write key:value,key:value.");
    }
    set_option(parsed, strip(item.substr(0, colon)), strip(item.substr(colon + 1)), whole_bytes);
  }
  options = parsed;
}

}  // namespace mempool
