// The functions of csrc/kernels/cuda/ptx.h for the CPU. Each lane gives its registers, waits for the others of its
// warp, and computes its own part of the result.
#pragma once

#include "emulator.h"
#include "kernels/cuda/ptx.h"

namespace mempool::kernels::cuda {

inline std::int8_t byte_of(unsigned word, unsigned i) { return static_cast<std::int8_t>(word >> 8 * i & 0xFFU); }

inline void mma_s8(Sums& sums, const Rows& rows, const Columns& columns, emulator::Site site = emulator::Site::here()) {
  struct Operand {
    Rows rows;
    Columns columns;
  };
  const emulator::Lanes<Operand> lanes(kAllLanes, {rows, columns}, site);
  const unsigned lane = emulator::lane();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + (i >= 2 ? 8 : 0);
    const unsigned column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 32; ++k) {
      const unsigned owner = k % 16 / 4;
      const unsigned a = lanes[row % 8 * 4 + owner].rows.of[(row >= 8 ? 1 : 0) + (k >= 16 ? 2 : 0)];
      const unsigned b = lanes[column * 4 + owner].columns.of[k / 16];
      sums.of[i] += byte_of(a, k % 4) * byte_of(b, k % 4);
    }
  }
}

inline void mma_sparse_s8(Sums& sums, const Rows& rows, const LongColumns& columns, unsigned places,
                          emulator::Site site = emulator::Site::here()) {
  struct Operand {
    Rows rows;
    LongColumns columns;
    unsigned places;
  };
  const emulator::Lanes<Operand> lanes(kAllLanes, {rows, columns, places}, site);
  const unsigned lane = emulator::lane();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + (i >= 2 ? 8 : 0);
    const unsigned column = lane % 4 * 2 + i % 2;
    for (unsigned four = 0; four < 16; ++four) {
      const unsigned nibble = lanes[row % 8 * 4 + four / 8 * 2 + row / 8].places >> four % 8 * 4 & 0xFU;
      if ((nibble & 3U) >= nibble >> 2) emulator::fail(site, "the places of a four are not in order");
      for (unsigned j = 0; j < 2; ++j) {
        const unsigned kept = four * 2 + j;  // byte of the row as it is held
        const unsigned a = lanes[row % 8 * 4 + kept % 16 / 4].rows.of[(row >= 8 ? 1 : 0) + (kept >= 16 ? 2 : 0)];
        const unsigned k = four * 4 + (nibble >> 2 * j & 3U);
        const unsigned b = lanes[column * 4 + k % 16 / 4].columns.of[k / 16];
        sums.of[i] += byte_of(a, kept % 4) * byte_of(b, k % 4);
      }
    }
  }
}

inline Rows load_matrices(const void* row, emulator::Site site = emulator::Site::here()) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) emulator::fail(site, "a row of a matrix is not aligned");
  const emulator::Lanes<const void*> lanes(kAllLanes, row, site);
  Rows loaded;
  for (unsigned i = 0; i < 4; ++i) {
    const auto* const from = static_cast<const unsigned char*>(lanes[i * 8 + emulator::lane() / 4]);
    std::memcpy(&loaded.of[i], from + emulator::lane() % 4 * 4, sizeof(loaded.of[i]));
  }
  // No lane may write what another has still to read: on a GPU all of it is one instruction.
  emulator::warp_barrier(kAllLanes, site);
  return loaded;
}

inline void copy_async(void* to, const void* from, bool exists) { emulator::copy_async(to, from, exists ? 16 : 0); }
inline void commit_copies() { emulator::commit_copies(); }
template <int left>
void wait_for_copies() {
  emulator::wait_for_copies(left);
}

inline int4 load_once(const void* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    emulator::fail(emulator::Site::here(), "a load of 16 bytes is not aligned");
  }
  int4 loaded;
  std::memcpy(&loaded, from, sizeof(loaded));
  return loaded;
}

}  // namespace mempool::kernels::cuda
