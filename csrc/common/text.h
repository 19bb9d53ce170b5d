// Small helpers for text: options and sizes that people wrote, files of the kernel, names in shared memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>

namespace mempool {

// The text without white space at its ends.
inline std::string_view strip(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// As much of the text as there is room for, with a zero behind it.
template <std::size_t N>
void copy_text(char (&to)[N], std::string_view from) {
  std::size_t length = std::min(from.size(), N - 1);
  while (length > 0 && length < from.size() && (from[length] & 0xC0) == 0x80) --length;  // within a character of UTF-8
  std::memcpy(to, from.data(), length);
  to[length] = 0;
}

}  // namespace mempool
