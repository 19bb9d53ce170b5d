#include "common/bytes.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "common/errors.h"
#include "common/text.h"

namespace mempool {
namespace {

struct Unit {
  std::string_view name;  // lower case
  double bytes;
};

constexpr double kKi = 1024.0;
constexpr std::array<Unit, 18> kUnits{{
    {"", 1},
    {"b", 1},
    {"k", kKi},
    {"ki", kKi},  // as Kubernetes writes it
    {"kib", kKi},
    {"kb", 1e3},
    {"m", kKi* kKi},
    {"mi", kKi* kKi},
    {"mib", kKi* kKi},
    {"mb", 1e6},
    {"g", kKi* kKi* kKi},
    {"gi", kKi* kKi* kKi},
    {"gib", kKi* kKi* kKi},
    {"gb", 1e9},
    {"t", kKi* kKi* kKi* kKi},
    {"ti", kKi* kKi* kKi* kKi},
    {"tib", kKi* kKi* kKi* kKi},
    {"tb", 1e12},
}};

[[noreturn]] void fail(std::string_view text, const char* why) {
  throw ConfigError("'" + std::string(text) + "' is not a size: " + why +
                    ". Write whole bytes or a number with a unit, such as \"512MiB\", \"1.5GiB\" or \"50%\".");
}

std::size_t to_size(double bytes, std::string_view text) {
  if (bytes >= 9.2e18) fail(text, "it is larger than any address space");
  if (!(bytes >= 1.0)) fail(text, "it must be at least one byte");
  return static_cast<std::size_t>(bytes);
}

}  // namespace

std::size_t parse_bytes(std::string_view text, std::size_t whole_bytes) {
  const std::string_view body = strip(text);
  if (body.empty()) fail(text, "it is empty");
  if (body.front() == '-') fail(text, "it is negative");
  double number = 0;
  const auto [end, error] = std::from_chars(body.data(), body.data() + body.size(), number, std::chars_format::fixed);
  if (error != std::errc()) fail(text, "it does not begin with a number");
  const std::string_view suffix = strip(body.substr(static_cast<std::size_t>(end - body.data())));
  if (suffix == "%") {
    if (whole_bytes == 0) fail(text, "a percentage has no meaning here");
    if (number > 100.0) fail(text, "it is more than 100%");
    return to_size(std::floor(static_cast<double>(whole_bytes) * number / 100.0), text);
  }
  std::string unit;
  for (const char c : suffix) unit.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  for (const Unit& known : kUnits) {
    if (unit != known.name) continue;
    // Whole bytes are read as an integer: a double holds only 53 bits.
    std::size_t exact = 0;
    const auto integer = std::from_chars(body.data(), body.data() + body.size(), exact);
    if (known.bytes == 1 && integer.ec == std::errc() && integer.ptr == end && exact <= (SIZE_MAX >> 1)) {
      if (exact == 0) fail(text, "it must be at least one byte");
      return exact;
    }
    return to_size(std::floor(number * known.bytes), text);
  }
  fail(text, ("the unit '" + std::string(suffix) + "' is not known").c_str());
}

std::string format_bytes(std::size_t bytes) {
  static constexpr std::array<const char*, 5> names{"B", "KiB", "MiB", "GiB", "TiB"};
  if (bytes == kNoLimit) return "unlimited";
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= kKi && unit + 1 < names.size()) {
    value /= kKi;
    ++unit;
  }
  std::array<char, 48> out{};
  std::snprintf(out.data(), out.size(), unit == 0 ? "%.0f %s" : "%.2f %s", value, names[unit]);
  return out.data();
}

}  // namespace mempool
