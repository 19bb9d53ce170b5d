// The sets of kernels, each compiled for its instruction set. What these files share is in headers without linkage
// (everything in them is in an anonymous namespace): an inline function with external linkage, compiled with AVX-512,
// could become the one that the whole process runs.
#pragma once

#include "kernels/kernels.h"

namespace mempool::kernels {

extern const KernelSet kReferenceKernels;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
extern const KernelSet kAvx512VnniKernels;
extern const KernelSet kAvx512AmxKernels;

}  // namespace mempool::kernels
