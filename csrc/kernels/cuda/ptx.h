// The PTX instructions that the kernels use, each behind a function. For the CPU they are emulated in
// tests/cuda_emulator/include/ptx_emulated.h, by the same tables of the PTX ISA ("Matrix Fragments for mma").
#pragma once

#include "kernels/cuda/device.h"

namespace mempool::kernels::cuda {

// A lane's fragment of the sums of mma_s8 and mma_sparse_s8, which are 16 rows by 8 columns: 0 and 1 are row lane / 4,
// columns lane % 4 * 2 and the next; 2 and 3 are eight rows below.
struct Sums {
  int of[4];
};
// A lane's fragment of 16 rows by 32 bytes: each word has four bytes. Words 0 and 2 are of row lane / 4, 1 and 3 of row
// lane / 4 + 8; words 0 and 1 begin at byte lane % 4 * 4, 2 and 3 are 16 bytes further on.
struct Rows {
  unsigned of[4];
};
// A lane's fragment of 8 columns by 32 bytes: each word has four bytes of column lane / 4, from byte lane % 4 * 4 on,
// and from 16 bytes further on.
struct Columns {
  unsigned of[2];
};
// A lane's fragment of 8 columns by 64 bytes, as that of 32 bytes.
struct LongColumns {
  unsigned of[4];
};

// A fragment from the 16 bytes of one load.
template <typename Registers>
__device__ __forceinline__ Registers registers_of(const int4& loaded) {
  return {{static_cast<unsigned>(loaded.x), static_cast<unsigned>(loaded.y), static_cast<unsigned>(loaded.z),
           static_cast<unsigned>(loaded.w)}};
}

}  // namespace mempool::kernels::cuda

#if defined(__CUDACC__)

namespace mempool::kernels::cuda {

// Adds int8 products over 32 bytes to the sums (sm_80).
__device__ __forceinline__ void mma_s8(Sums& sums, const Rows& rows, const Columns& columns) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(sums.of[0]), "+r"(sums.of[1]), "+r"(sums.of[2]), "+r"(sums.of[3])
               : "r"(rows.of[0]), "r"(rows.of[1]), "r"(rows.of[2]), "r"(rows.of[3]), "r"(columns.of[0]),
                 "r"(columns.of[1]));
}

// Adds int8 products over 64 inputs to the sums, where `rows` holds two of each four inputs. `places` has 4 bits for
// each four inputs: where the two are, the lower one first. Those of a lane are of row lane / 4, for odd lanes of eight
// rows below, and of 32 inputs from 32 * (lane / 2 % 2) on.
__device__ __forceinline__ void mma_sparse_s8(Sums& sums, const Rows& rows, const LongColumns& columns,
                                              unsigned places) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"
      : "+r"(sums.of[0]), "+r"(sums.of[1]), "+r"(sums.of[2]), "+r"(sums.of[3])
      : "r"(rows.of[0]), "r"(rows.of[1]), "r"(rows.of[2]), "r"(rows.of[3]), "r"(columns.of[0]), "r"(columns.of[1]),
        "r"(columns.of[2]), "r"(columns.of[3]), "r"(places));
}

// Loads four matrices of 8 rows by 16 bytes from shared memory. Lane i passes the address of row i % 8 of matrix i / 8,
// and gets of each matrix four bytes of row lane / 4, from byte lane % 4 * 4 on.
__device__ __forceinline__ Rows load_matrices(const void* row) {
  Rows loaded;
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(loaded.of[0]), "=r"(loaded.of[1]), "=r"(loaded.of[2]), "=r"(loaded.of[3])
               : "r"(address)
               : "memory");
  return loaded;
}

// Starts to copy 16 bytes to shared memory, zeros where `exists` is false. They may be read after wait_for_copies.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool exists) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last `left` groups of this thread's copies are complete.
template <int left>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// Loads 16 bytes that are read once, and that no thread writes while the kernel runs.
__device__ __forceinline__ int4 load_once(const void* from) {
  int4 loaded;
  asm volatile("ld.global.nc.L1::no_allocate.v4.s32 {%0,%1,%2,%3}, [%4];"
               : "=r"(loaded.x), "=r"(loaded.y), "=r"(loaded.z), "=r"(loaded.w)
               : "l"(from));
  return loaded;
}

}  // namespace mempool::kernels::cuda

#else
#include "ptx_emulated.h"
#endif
