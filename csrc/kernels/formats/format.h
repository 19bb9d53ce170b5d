// What a packed format has to say of itself. Each is a traits struct in a file beside this one, from which csrc/torch
// registers its operators:
//
//     using Weights                    what its kernels take: pointers to the buffers, and N and K
//     kFormat, kName                   its number, and its name in those of its operators: pack_NAME, NAME_linear
//     kBuffers                         a tuple of the buffers that it has beside `sums`, in the order of arguments
//     kReadsAnything                   whether any bytes may be unpacked: then that operator takes no sums
//     sizes(N, K)                      how many elements each buffer has, or kMeasured
//     pack(weights, N, K, …, sums)     from int8 [N][K] to the buffers; false where the weight does not fit (kMisfit)
//     unpack(packed, weights)          the exact inverse, of what is sound
//     is_sound(packed[, measured])     whether kernels may read it and get what was packed: the buffers fit each other
//                                      and the sums, and nothing is beyond N and K
//
// Where the size of a buffer depends on the weight:
//
//     measure(weights, N, K)           how many elements of it a weight needs that is to be packed
//     measured(packed)                 how many it has, by what the other buffers say
//
// A format that no kernel on the CPU takes says in kNotOnCpu what its user may do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool::kernels {

// By their number in the `format` buffer of a layer: none may change.
enum class Format : std::uint8_t { dense, bitmap, block4, sparse24 };

inline constexpr std::int64_t kMeasured = -1;

// In a tensor elements are uint8 where Value is int8 or a mask of 64 bits, else int32.
template <typename Weights, typename ValueType>
struct Buffer {
  using Value = ValueType;
  const char* name;
  const Value* Weights::*member;
  std::size_t gpu_alignment = 16;  // bytes: those of one load
};

}  // namespace mempool::kernels
