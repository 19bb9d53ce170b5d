// Random bytes through the fuzzer's machine: what every run of the tests does without a fuzzer at hand.
#include <random>
#include <vector>

#include "check.h"
#include "operations.h"

TEST(random_operations_keep_every_promise) {
  for (unsigned seed = 0; seed < 96; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::uint8_t> bytes(600);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    bytes[0] = static_cast<std::uint8_t>(seed);  // every kind of device
    mempool::fuzz::run_operations(bytes.data(), bytes.size());
  }
}
