// Which kernel runs what. The table is reasoned, not measured: no GPU was at hand (README.md here has the model).
// `mempool doctor --gpu` measures it, beside the vendor's libraries.
//
// Those are in no row. torch._int_mm and torch's semi-structured weights want the weight row by row; they would need a
// second copy of every weight, or a pass over it at each call. Where the report of a GPU says that this is worth it for
// large batches, it belongs here.
#include <algorithm>

#include "kernels/cuda/linear.h"

namespace mempool::kernels::cuda {
namespace {

struct Choice {
  Format format;
  std::int64_t most_tokens;
  Kernel kernel;
};

constexpr std::int64_t kAny = INT64_MAX;
constexpr Choice kChoices[] = {
    // Up to 64 tokens a block of the GEMM would multiply more padding than tokens, on too few multiprocessors.
    {Format::dense, 64, Kernel::decode},
    {Format::dense, kAny, Kernel::gemm},
    // Nothing makes these dense but for the multiplication itself.
    {Format::bitmap, kAny, Kernel::decode},
    {Format::block4, kAny, Kernel::decode},
    {Format::sparse24, 64, Kernel::decode},
    {Format::sparse24, kAny, Kernel::gemm},
};

}  // namespace

Kernel kernel_for(Format format, std::int64_t tokens) noexcept {
  for (const Choice& choice : kChoices) {
    if (choice.format == format && tokens <= choice.most_tokens) return choice.kernel;
  }
  return Kernel::gemm;
}

int splits_for(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept {
  // Enough loads under way for memory's full rate. A block of a bitmap counts all masks before its own, so fewer there.
  const std::int64_t of_processor = format == Format::bitmap ? 2 : 4;
  const std::int64_t most = format == Format::bitmap ? 8 : 64;
  constexpr std::int64_t kLeastInputs = 512;  // of a block: less is not worth the sums that it adds
  const std::int64_t blocks = panels_of(outputs) * ((tokens + 15) / 16);
  const std::int64_t wanted = (of_processor * processors + blocks - 1) / std::max<std::int64_t>(1, blocks);
  return static_cast<int>(std::clamp<std::int64_t>(std::min(wanted, inputs / kLeastInputs), 1, most));
}

}  // namespace mempool::kernels::cuda
