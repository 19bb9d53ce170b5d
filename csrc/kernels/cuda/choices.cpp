// Chooses the kernel for a format and a number of tokens, and how many blocks divide the inputs. The table follows from
// a model, not from measurements: no GPU was at hand (README.md here has the model). `mempool doctor --gpu` measures
// it, beside the vendor's libraries.
//
// No row names one of these libraries: by the model no shape is faster through torch's functions (README.md, "The
// vendor's libraries"). If the report of a GPU says otherwise, it gets a row.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/occupancy.h"

namespace mempool::kernels::cuda {
namespace {

struct Choice {
  Format format;
  std::int64_t most_tokens;
  Kernel kernel;
};

constexpr std::int64_t kAny = INT64_MAX;
constexpr Choice kChoices[] = {
    // At 16 tokens __dp4a takes nearly as long as memory, and each further 16 take as long again. Tensor cores take
    // 128 in one pass.
    {Format::dense, 16, Kernel::decode},
    {Format::dense, kAny, Kernel::gemm},
    // The GEMM multiplies dense panels, so a sparse weight is expanded first, some panels at a time: once, while decode
    // expands it for each 16 tokens.
    {Format::bitmap, 32, Kernel::decode},
    {Format::bitmap, kAny, Kernel::gemm},
    {Format::block4, 32, Kernel::decode},
    {Format::block4, kAny, Kernel::gemm},
    // Both kernels use tensor cores. Decode reads a weight once for 32 tokens, and so multiplies less padding.
    {Format::sparse24, 64, Kernel::decode},
    {Format::sparse24, kAny, Kernel::gemm},
};

// The occupancy of a decode kernel.
struct Decode {
  int of_processor;     // blocks that are resident on a multiprocessor
  std::int64_t tokens;  // that a block multiplies
};
Decode decode_of(Format format, std::int64_t tokens) {
  if (format == Format::sparse24) {
    const int taken = static_cast<int>(std::min<std::int64_t>(tokens, 32));
    return {sparse24_blocks(taken), taken};
  }
  const int taken = static_cast<int>(std::min<std::int64_t>(tokens, 16));
  return {dot_product_blocks(taken), taken};
}

// The fewest inputs of a block under split-K: with fewer, adding the sums costs more than the split saves.
constexpr std::int64_t kLeastInputs = 512;
constexpr std::int64_t kTile = 128;  // a GEMM's tile: tokens by outputs, which are two panels

std::int64_t over(std::int64_t count, std::int64_t unit) { return (count + unit - 1) / unit; }

}  // namespace

Kernel kernel_for(Format format, std::int64_t tokens) noexcept {
  for (const Choice& choice : kChoices) {
    if (choice.format == format && tokens <= choice.most_tokens) return choice.kernel;
  }
  return Kernel::gemm;
}

int splits_for(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept {
  // A block of a bitmap counts all masks before its own.
  const std::int64_t most = std::min<std::int64_t>(inputs / kLeastInputs, format == Format::bitmap ? 8 : 64);
  // Blocks run in waves on all multiprocessors, and the last wave may leave some idle. A split is good enough when the
  // waves are full to this share.
  constexpr double kFull = 0.85;
  const Decode decode = decode_of(format, tokens);
  const std::int64_t blocks = panels_of(outputs) * over(tokens, decode.tokens);
  const double places = static_cast<double>(decode.of_processor) * processors;
  double best = 0;
  std::int64_t splits = 1;
  for (std::int64_t i = 1; i <= most; ++i) {
    const double rounds = static_cast<double>(blocks * i) / places;
    const double full = rounds / std::ceil(rounds);
    if (full > best) best = full, splits = i;
    if (best >= kFull) break;
  }
  return static_cast<int>(splits);
}

int gemm_splits_for(std::int64_t panels, std::int64_t inputs, std::int64_t tokens, int processors) noexcept {
  constexpr std::int64_t kMost = 32;
  const std::int64_t tiles = std::max<std::int64_t>(1, over(panels, 2) * over(tokens, kTile));
  const std::int64_t room = kGemmBlocks * processors / tiles;  // no second wave of blocks
  return static_cast<int>(std::clamp<std::int64_t>(std::min(room, inputs / kLeastInputs), 1, kMost));
}

int panels_at_once(std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept {
  // Enough panels for two blocks of the GEMM on every multiprocessor, as long as the expanded panels stay in the
  // second-level cache.
  constexpr std::int64_t kMostBytes = 32 << 20;
  const std::int64_t pairs = std::max<std::int64_t>(1, over(panels_of(outputs), 2));
  const std::int64_t most = kMostBytes / (2 * kPanel * padded_inputs(inputs));
  const std::int64_t wanted = over(kGemmBlocks * processors, over(tokens, kTile));
  const std::int64_t parts = over(pairs, std::clamp<std::int64_t>(wanted, 1, most));
  return static_cast<int>(2 * over(pairs, parts));  // parts of about the same size
}

}  // namespace mempool::kernels::cuda
