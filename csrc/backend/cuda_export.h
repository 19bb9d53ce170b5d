// Sharing CUDA memory with other processes: each handle of a block as a file descriptor that they can map, which stays
// open as long as a block in it is shared.
#pragma once

#include <cstddef>
#include <vector>

namespace mempool {

struct ExportedBlock {
  struct Piece {
    int descriptor = -1;
    std::size_t bytes = 0;
  };
  void* base = nullptr;  // where the first piece begins
  std::vector<Piece> pieces;
};

// Shares the live block with the processes that get the descriptors, until it is freed. A block may be shared many
// times. No pieces: the address is no block of the device, or the driver gives no descriptor (`errno` may say why).
// Throws std::bad_alloc.
ExportedBlock cuda_export(int ordinal, void* block);

}  // namespace mempool
