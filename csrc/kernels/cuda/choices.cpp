// Which kernel runs what. The table is reasoned, not measured: no GPU was at hand (README.md here has the model).
// `mempool doctor --gpu` measures it, beside the vendor's libraries.
//
// Those are in no row: by the model no shape is faster through torch's functions (README.md, "The vendor's libraries").
// Where the report of a GPU says otherwise, it belongs here.
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
    // At 16 tokens __dp4a takes nearly as long as memory, and then again for each 16; tensor cores do not notice.
    {Format::dense, 16, Kernel::decode},
    {Format::dense, kAny, Kernel::gemm},
    // The GEMM multiplies dense panels, so these are expanded first, some at a time: once, and not for each 16 tokens.
    {Format::bitmap, 32, Kernel::decode},
    {Format::bitmap, kAny, Kernel::gemm},
    {Format::block4, 32, Kernel::decode},
    {Format::block4, kAny, Kernel::gemm},
    // Tensor cores both: the first reads a weight once for 32 tokens, and multiplies no more padding than that.
    {Format::sparse24, 64, Kernel::decode},
    {Format::sparse24, kAny, Kernel::gemm},
};

// Of the kernels of few tokens: blocks that are on a multiprocessor at once, and tokens that a block takes.
struct Decode {
  int of_processor;
  std::int64_t tokens;
};
Decode decode_of(Format format, std::int64_t tokens) {
  if (format == Format::sparse24) {
    const int taken = static_cast<int>(std::min<std::int64_t>(tokens, 32));
    return {sparse24_blocks(taken), taken};
  }
  const int taken = static_cast<int>(std::min<std::int64_t>(tokens, 16));
  return {dot_product_blocks(taken), taken};
}

// Of a block: fewer are not worth the sums that it adds.
constexpr std::int64_t kLeastInputs = 512;
constexpr std::int64_t kTile = 128;  // of a GEMM: tokens of a block, and outputs, which are two panels

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
  // Whole rounds of blocks on all multiprocessors: what is left of the last one, they wait.
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
  const std::int64_t room = kGemmBlocks * processors / tiles;  // no second round of blocks
  return static_cast<int>(std::clamp<std::int64_t>(std::min(room, inputs / kLeastInputs), 1, kMost));
}

int panels_at_once(std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept {
  // Blocks of the GEMM for every multiprocessor, two on each, as long as what is expanded stays in the second cache.
  constexpr std::int64_t kMostBytes = 32 << 20;
  const std::int64_t pairs = std::max<std::int64_t>(1, over(panels_of(outputs), 2));
  const std::int64_t most = kMostBytes / (2 * kPanel * padded_inputs(inputs));
  const std::int64_t wanted = over(kGemmBlocks * processors, over(tokens, kTile));
  const std::int64_t parts = over(pairs, std::clamp<std::int64_t>(wanted, 1, most));
  return static_cast<int>(2 * over(pairs, parts));  // parts of about the same size
}

}  // namespace mempool::kernels::cuda
