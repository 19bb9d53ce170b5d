// 2:4 weights: packed and unpacked, and refused when they are not sound. Kernels for them run on GPUs alone.
#include <numeric>
#include <utility>

#include "kernels/packed.h"

using namespace mempool::kernels;

TEST(what_is_packed_as_2_of_4_is_unpacked_as_it_was) {
  std::mt19937 random(1);
  for (const double density : {0.0, 0.1, 0.5, 1.0}) {
    for (const auto& [outputs, inputs] : {std::pair{0, 5}, {1, 1}, {16, 64}, {17, 65}, {40, 130}, {9, 259}}) {
      const Problem problem = two_of_four(1, outputs, inputs, random, density);
      const PackedSparse24 packed(problem);
      CHECK(packed.sound());
      std::vector<std::int8_t> back(problem.weights.size(), 9);
      Sparse24Format::unpack(packed.weights(), back.data());
      CHECK(back == problem.weights);
      for (std::int64_t output = 0; output < outputs; ++output) {
        const auto row = problem.weights.begin() + output * inputs;
        CHECK_EQ(packed.sums[Problem::size(output)], std::accumulate(row, row + inputs, 0));
      }
    }
  }
}

TEST(every_group_has_a_place_of_its_own) {
  std::vector<int> values(Problem::size(sparse24_values(40, 130)));
  std::vector<std::uint32_t> places(Problem::size(sparse24_places(40, 130)));
  for (std::int64_t output = 0; output < 48; ++output) {
    for (std::int64_t group = 0; group < 48; ++group) {
      const Place24 place = place24(output, group, 130);
      for (std::int64_t i = 0; i < 2; ++i) values[Problem::size(place.value + i)] += 1;
      places[Problem::size(place.word)] += 0xFU << place.shift;
    }
  }
  CHECK(values == std::vector<int>(values.size(), 1));
  CHECK(places == std::vector<std::uint32_t>(places.size(), 0xFFFFFFFFU));
}

TEST(more_than_two_of_four_are_refused) {
  std::mt19937 random(2);
  Problem problem(1, 2, 8, random, false, 0.0);
  problem.weights[12] = problem.weights[13] = problem.weights[15] = 1;
  CHECK(!PackedSparse24(problem).fits);
  problem.weights[13] = 0;
  CHECK(PackedSparse24(problem).fits);
}

TEST(sparse24_that_is_not_sound_is_seen) {
  std::mt19937 random(3);
  const Problem problem = two_of_four(1, 20, 70, random, 1.0);
  const auto broken = [&](auto change) {
    PackedSparse24 packed(problem);
    CHECK(packed.sound());
    change(packed);
    return !packed.sound();
  };
  const Place24 inside = place24(3, 5, 70);
  const Place24 beyond_inputs = place24(3, 17, 70);   // inputs 68 to 71
  const Place24 beyond_outputs = place24(25, 0, 70);  // of 32 that are held
  const auto nibble = [](PackedSparse24& packed, const Place24& place, std::uint32_t bits) {
    std::uint32_t& word = packed.places[Problem::size(place.word)];
    word = (word & ~(0xFU << place.shift)) | bits << place.shift;
  };
  CHECK(broken([&](PackedSparse24& packed) { nibble(packed, inside, 0x1); }));  // 1, 0
  CHECK(broken([&](PackedSparse24& packed) { nibble(packed, inside, 0xA); }));  // 2 twice
  CHECK(broken([&](PackedSparse24& packed) { nibble(packed, beyond_outputs, 0x0); }));
  CHECK(broken([&](PackedSparse24& packed) { packed.values[Problem::size(inside.value)] ^= 1; }));
  CHECK(broken([&](PackedSparse24& packed) {
    nibble(packed, beyond_inputs, 0xC);  // 0, 3
    std::int8_t& value = packed.values[Problem::size(beyond_inputs.value + 1)];
    packed.sums[3] += 1 - value;
    value = 1;
  }));
  CHECK(broken([&](PackedSparse24& packed) { packed.values[Problem::size(beyond_outputs.value)] = 1; }));
  CHECK(broken([](PackedSparse24& packed) { packed.sums[0] += 1; }));
  CHECK(broken([](PackedSparse24& packed) { packed.sums[19] += 1; }));
}
