// Memory of this process that others may map: each handle of a block as a file descriptor, which is open as long as a
// block in it is shared.
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

// Shares the live block with whoever gets the descriptors, until it is freed. A block may be shared many times. No
// pieces: it is no block of the device's, or the driver gives no descriptor (`errno` may say why). Throws
// std::bad_alloc.
ExportedBlock cuda_export(int ordinal, void* block);

}  // namespace mempool
