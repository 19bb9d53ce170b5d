// The emulated instructions against a plain restatement of the tables in the PTX ISA: whole matrices are laid into
// registers element by element, as the tables say which lane holds which, and the result is read back the same way.
#include <random>
#include <vector>

#include "check.h"
#include "kernels/cuda/ptx.h"
#include "schedules.h"

using namespace mempool::kernels::cuda;

namespace {

struct Place {
  unsigned lane;
  unsigned number;  // of the register
  unsigned byte;
};

// m16n8k32 with .s8: matrix A, row-major.
Place place_in_rows(unsigned row, unsigned k) { return {row % 8 * 4 + k % 16 / 4, (row / 8) + (k / 16) * 2, k % 4}; }
// m16n8k32 and m16n8k64 with .s8: matrix B, by columns.
Place place_in_columns(unsigned k, unsigned column) { return {column * 4 + k % 16 / 4, k / 16, k % 4}; }
// Accumulators of both.
Place place_in_sums(unsigned row, unsigned column) { return {row % 8 * 4 + column / 2, row / 8 * 2 + column % 2, 0}; }
// m16n8k64 with .s8: metadata; the 4 bits of the inputs 4 * four on begin at bit four % 8 * 4.
unsigned lane_of_places(unsigned row, unsigned four) { return row % 8 * 4 + four / 8 * 2 + row / 8; }

template <typename Registers>
void put(std::vector<Registers>& lanes, const Place& place, std::int8_t value) {
  const unsigned shift = place.byte * 8;
  unsigned& word = lanes[place.lane].of[place.number];
  word = (word & ~(0xFFU << shift)) | static_cast<unsigned>(static_cast<std::uint8_t>(value)) << shift;
}

struct Matrices {
  explicit Matrices(unsigned inputs_in, std::mt19937& random) : inputs(inputs_in), a(16 * inputs), b(inputs * 8) {
    for (std::int8_t& value : a) value = static_cast<std::int8_t>(random());
    for (std::int8_t& value : b) value = static_cast<std::int8_t>(random());
    a[0] = -128, b[0] = -128;
  }
  int sum(unsigned row, unsigned column) const {
    int total = 0;
    for (unsigned k = 0; k < inputs; ++k) total += a[row * inputs + k] * b[k * 8 + column];
    return total;
  }
  unsigned inputs;
  std::vector<std::int8_t> a;  // [16][inputs]
  std::vector<std::int8_t> b;  // [inputs][8]
};

template <typename Multiply>
void check_product(const Matrices& matrices, Multiply multiply) {
  emulator::for_each_schedule([&] {
    std::vector<Sums> sums(32);
    for (unsigned i = 0; i < 32; ++i) sums[i] = {{1, 2, 3, static_cast<int>(i)}};  // added to
    emulator::launch("test", {1, 1, 1}, {32, 1, 1}, 0, [&] { multiply(threadIdx.x, sums[threadIdx.x]); });
    for (unsigned row = 0; row < 16; ++row) {
      for (unsigned column = 0; column < 8; ++column) {
        const Place at = place_in_sums(row, column);
        const int before = at.number == 3 ? static_cast<int>(at.lane) : static_cast<int>(at.number) + 1;
        CHECK_EQ(sums[at.lane].of[at.number], before + matrices.sum(row, column));
      }
    }
  });
}

}  // namespace

TEST(mma_s8_multiplies_the_matrices_of_the_table) {
  std::mt19937 random(1);
  const Matrices matrices(32, random);
  std::vector<Rows> rows(32);
  std::vector<Columns> columns(32);
  for (unsigned k = 0; k < 32; ++k) {
    for (unsigned row = 0; row < 16; ++row) put(rows, place_in_rows(row, k), matrices.a[row * 32 + k]);
    for (unsigned column = 0; column < 8; ++column) {
      put(columns, place_in_columns(k, column), matrices.b[k * 8 + column]);
    }
  }
  check_product(matrices, [&](unsigned lane, Sums& sums) { mma_s8(sums, rows[lane], columns[lane]); });
}

TEST(mma_sparse_s8_multiplies_the_matrices_of_the_table) {
  std::mt19937 random(2);
  Matrices matrices(64, random);
  std::vector<Rows> rows(32);
  std::vector<LongColumns> columns(32);
  std::vector<unsigned> places(32, 0);
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned four = 0; four < 16; ++four) {
      const unsigned first = random() % 3;
      const unsigned second = first + 1 + random() % (3 - first);
      places[lane_of_places(row, four)] |= (first | second << 2) << four % 8 * 4;
      std::int8_t* const inputs = &matrices.a[row * 64 + four * 4];
      for (unsigned i = 0; i < 4; ++i) inputs[i] = i == first || i == second ? inputs[i] : std::int8_t{0};
      put(rows, place_in_rows(row, four * 2), inputs[first]);
      put(rows, place_in_rows(row, four * 2 + 1), inputs[second]);
    }
  }
  for (unsigned k = 0; k < 64; ++k) {
    for (unsigned column = 0; column < 8; ++column) {
      put(columns, place_in_columns(k, column), matrices.b[k * 8 + column]);
    }
  }
  check_product(matrices,
                [&](unsigned lane, Sums& sums) { mma_sparse_s8(sums, rows[lane], columns[lane], places[lane]); });
  // Places that are not in order are an error of the kernel.
  places[7] = 0;
  CHECK(emulator::error_of(32, 0, [&] {
          Sums sums = {};
          mma_sparse_s8(sums, rows[threadIdx.x], columns[threadIdx.x], places[threadIdx.x]);
        }).find("not in order") != std::string::npos);
}

TEST(load_matrices_gives_each_lane_its_bytes) {
  alignas(16) unsigned char memory[32 * 16];
  for (unsigned i = 0; i < sizeof(memory); ++i) memory[i] = static_cast<unsigned char>(i * 7);
  emulator::for_each_schedule([&] {
    emulator::launch("test", {1, 1, 1}, {32, 1, 1}, 0, [&] {
      const unsigned lane = threadIdx.x;
      const unsigned row = lane * 5 % 32;  // rows may lie anywhere
      const Rows loaded = load_matrices(memory + row * 16);
      for (unsigned matrix = 0; matrix < 4; ++matrix) {
        const unsigned from = (matrix * 8 + lane / 4) * 5 % 32;
        unsigned expected = 0;
        std::memcpy(&expected, memory + from * 16 + lane % 4 * 4, 4);
        CHECK_EQ(loaded.of[matrix], expected);
      }
    });
  });
  CHECK(emulator::error_of(32, 0, [&] { load_matrices(memory + 4); }).find("aligned") != std::string::npos);
}
