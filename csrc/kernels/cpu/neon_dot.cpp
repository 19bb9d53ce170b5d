// The kernels for NEON with dot products (FEAT_DotProd): one instruction adds four exact products of signed bytes for
// each of four outputs.
#include <arm_neon.h>

#include "kernels/cpu/bitmap.inl"
#include "kernels/cpu/block4.inl"
#include "kernels/cpu/dense.inl"
#include "kernels/cpu/neon.inl"
#include "kernels/cpu/quantize.inl"
#include "kernels/cpu/sets.h"

namespace mempool::kernels {
namespace {

struct NeonDot : SignedNeon<NeonDot> {
  static Sum dot(Sum sum, Inputs inputs, Weights weights) { return vdotq_s32(sum, inputs, weights); }
};

}  // namespace

const KernelSet kNeonDotKernels = {&quantize<float>, &quantize<std::uint16_t>, &dense<NeonDot>, &bitmap<NeonDot>,
                                   &interleave,      &block4<NeonDot>};

}  // namespace mempool::kernels
