// Small helpers for text that people wrote: options, sizes, files of the kernel.
#pragma once

#include <string_view>

namespace mempool {

// The text without white space at its ends.
inline std::string_view strip(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

}  // namespace mempool
