// The sets of kernels, each in a file that is compiled for its instruction set. What these files share lies in the .inl
// files, all of it in anonymous namespaces: of an inline function with external linkage the linker could keep the copy
// that was compiled with AVX-512, for the whole process.
#pragma once

#include "kernels/kernels.h"

namespace mempool::kernels {

extern const KernelSet kReferenceKernels;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
extern const KernelSet kAvx512VnniKernels;
extern const KernelSet kAvx512AmxKernels;
extern const KernelSet kNeonKernels;
extern const KernelSet kNeonDotKernels;
extern const KernelSet kNeonI8mmKernels;

}  // namespace mempool::kernels
