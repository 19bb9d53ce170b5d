// The kernels for NEON as every aarch64 has it, without an instruction for dot products: products of bytes are widened
// to 16 bits, in which a sum of two fits, as a token is never -128; then pairs are added into 32 bits.
#include "kernels/cpu/neon.inl"

#include <arm_neon.h>

#include "kernels/cpu/bitmap.inl"
#include "kernels/cpu/block4.inl"
#include "kernels/cpu/dense.inl"
#include "kernels/cpu/quantize.inl"
#include "kernels/cpu/sets.h"

namespace mempool::kernels {
namespace {

struct Neon : SignedNeon<Neon> {
  static constexpr int kRows = 3;  // widened products take registers, too
  static Sum dot(Sum sum, Inputs inputs, Weights weights) {
    const int16x8_t low = vmull_s8(vget_low_s8(inputs), vget_low_s8(weights));
    const int16x8_t high = vmull_high_s8(inputs, weights);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
  }
};

}  // namespace

const KernelSet kNeonKernels = {&quantize<float>, &quantize<std::uint16_t>, &dense<Neon>, &bitmap<Neon>, &interleave,
                                &block4<Neon>};

}  // namespace mempool::kernels
