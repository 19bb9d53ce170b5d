// Blocks of 256 threads that are on a multiprocessor at once, by the tokens that a block takes: of the kernels of few
// tokens, whose registers grow with them. The compiler is held to it (__launch_bounds__), and the number of blocks that
// divide a panel is chosen by it.
#pragma once

namespace mempool::kernels::cuda {

inline constexpr int dot_product_blocks(int tokens) { return tokens <= 2 ? 4 : tokens <= 4 ? 3 : 2; }
inline constexpr int sparse24_blocks(int tokens) { return tokens <= 8 ? 5 : tokens <= 16 ? 4 : 3; }
inline constexpr int kGemmBlocks = 2;

}  // namespace mempool::kernels::cuda
