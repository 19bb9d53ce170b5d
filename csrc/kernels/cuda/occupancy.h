// The occupancy of the kernels: how many blocks of 256 threads are resident on a multiprocessor. That of the decode
// kernels depends on the tokens of a block, whose sums take registers. __launch_bounds__ holds the compiler to these
// numbers, and split-K is chosen by them.
#pragma once

namespace mempool::kernels::cuda {

inline constexpr int dot_product_blocks(int tokens) { return tokens <= 2 ? 4 : tokens <= 4 ? 3 : 2; }
inline constexpr int sparse24_blocks(int tokens) { return tokens <= 8 ? 5 : tokens <= 16 ? 4 : 3; }
inline constexpr int kGemmBlocks = 2;

}  // namespace mempool::kernels::cuda
