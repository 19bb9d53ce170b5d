// The traits that a packed format declares. Each format is a traits struct in a file beside this one, from which
// csrc/torch registers the format's operators:
//
//     using Weights                    what its kernels take: pointers to the buffers, and N and K
//     kFormat, kName                   its number, and the name in its operators' names: pack_NAME, NAME_linear
//     kBuffers                         a tuple of its buffers beside `sums`, in the order of the operators' arguments
//     kReadsAnything                   whether any bytes may be unpacked: then unpack_NAME takes no sums
//     sizes(N, K)                      how many elements each buffer has, or kMeasured
//     pack(weights, N, K, …, sums)     packs int8 [N][K] into the buffers; false where the weight does not fit
//     (kMisfit) unpack(packed, weights)          the exact inverse; expects is_sound() is_sound(packed[, measured])
//     whether kernels may read the buffers and get what was packed: they fit each other
//                                      and the sums, and hold no weight beyond N and K
//
// A format has two more where the size of a buffer depends on the weight:
//
//     measure(weights, N, K)           how many elements a weight needs that is to be packed
//     measured(packed)                 how many elements a packed weight has, by what its other buffers say
//
// A format that no kernel on the CPU runs says in kNotOnCpu what its user may do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool::kernels {

// The formats, by the number that a layer's `format` buffer holds: no number may change.
enum class Format : std::uint8_t { dense, bitmap, block4, sparse24 };

inline constexpr std::int64_t kMeasured = -1;

// One buffer of a format. Its tensor has elements of uint8 where Value is int8 or a mask of 64 bits, else of int32.
template <typename Weights, typename ValueType>
struct Buffer {
  using Value = ValueType;
  const char* name;
  const Value* Weights::*member;
  std::size_t gpu_alignment = 16;  // bytes; kernels load 16 at once
};

}  // namespace mempool::kernels
