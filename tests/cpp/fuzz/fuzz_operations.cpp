// The entry point of libFuzzer. A broken promise ends the process, so that the fuzzer keeps the input.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "operations.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    mempool::fuzz::run_operations(data, size);
  } catch (const std::logic_error& error) {
    std::fprintf(stderr, "broken: %s\n", error.what());
    std::abort();
  }
  return 0;
}
