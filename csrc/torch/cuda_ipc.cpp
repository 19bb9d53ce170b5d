// Sharing with other processes of this machine: each handle of a range goes over as a file descriptor, which the other
// process takes out of this one (pidfd_getfd), imports and maps in the same order.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "backend/cuda_export.h"
#include "backend/cuda_import.h"
#include "core/allocator/found_block.h"
#include "torch/cuda_allocator.h"

namespace mempool::torch_cuda {
namespace {

constexpr char kMagic[8] = {'m', 'e', 'm', 'p', 'o', 'o', 'l', '1'};

// What goes over, followed by `handles` pairs of a descriptor and its bytes.
struct Header {
  char magic[8];
  std::int64_t process;
  std::int32_t device;
  std::int32_t handles;
};
struct Piece {
  std::int64_t descriptor;
  std::uint64_t bytes;
};

// Descriptors of ours, closed at the end.
class Descriptors {
 public:
  Descriptors() = default;
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;
  ~Descriptors() {
    for (const ImportedPiece& piece : pieces) close(piece.descriptor);
  }
  std::vector<ImportedPiece> pieces;
};

// The descriptor of another process, as one of ours. Throws c10::Error.
int take_descriptor(std::int64_t process, std::int64_t descriptor) {
  if (process == getpid()) {
    const int copied = fcntl(static_cast<int>(descriptor), F_DUPFD_CLOEXEC, 0);
    TORCH_CHECK(copied >= 0, "mempool: no descriptor is left for shared memory: ", strerror(errno));
    return copied;
  }
  const int other = static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(process), 0));
  TORCH_CHECK(other >= 0, "mempool: process ", process, ", which shares this memory, is gone: ", strerror(errno));
  const int taken = static_cast<int>(syscall(SYS_pidfd_getfd, other, static_cast<int>(descriptor), 0));
  const int error = errno;
  close(other);
  TORCH_CHECK(taken >= 0, "mempool: memory of process ", process, " cannot be opened: ", strerror(error),
              ". It must belong to the same user and be traceable (see /proc/sys/kernel/yama/ptrace_scope).");
  return taken;
}

}  // namespace

// The memory stays where it is until the block is freed. torch keeps it as long as a receiver has it.
cca::ShareableHandle CudaAllocator::shareIpcHandle(void* address) {
  CachingAllocator* const core = owner_of(address);
  TORCH_CHECK(core != nullptr, "invalid device pointer: ", address);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.process = getpid();
  header.device = number_of(core);
  TORCH_CHECK(header.device >= 0, "invalid device pointer: ", address);
  TORCH_CHECK(cuda_manages_virtual_memory(header.device), "mempool: device ", header.device,
              " cannot manage virtual memory, and what it has is not shared with other processes");
  TORCH_CHECK(!backed_range_of(address).family->has_own_memory(), "mempool: the memory at ", address,
              " comes from the allocator of a torch.cuda.MemPool, and is not shared with other processes");
  const ExportedBlock exported = cuda_export(header.device, address);
  TORCH_CHECK(!exported.pieces.empty(), "mempool: the memory at ", address, " of device ", header.device,
              " cannot be shared with other processes. If its pool sleeps, wake() it first; if no file descriptor is "
              "left, raise the limit (ulimit -n): each handle of memory takes one while it is shared");
  const auto base = reinterpret_cast<std::uintptr_t>(exported.base);
  std::vector<Piece> pieces;
  for (const ExportedBlock::Piece& piece : exported.pieces) pieces.push_back({piece.descriptor, piece.bytes});
  header.handles = static_cast<std::int32_t>(pieces.size());
  std::string text(reinterpret_cast<const char*>(&header), sizeof(header));
  text.append(reinterpret_cast<const char*>(pieces.data()), pieces.size() * sizeof(Piece));
  return {static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(address) - base), std::move(text)};
}

bool CudaAllocator::is_handle(const std::string& text) {
  return text.size() >= sizeof(Header) && std::memcmp(text.data(), kMagic, sizeof(kMagic)) == 0;
}

std::shared_ptr<void> CudaAllocator::getIpcDevPtr(std::string text) {
  Header header{};
  TORCH_CHECK(text.size() >= sizeof(header), "mempool: this is no handle of shared memory");
  std::memcpy(&header, text.data(), sizeof(header));
  TORCH_CHECK(std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0 && header.handles > 0 &&
                  text.size() == sizeof(header) + static_cast<std::size_t>(header.handles) * sizeof(Piece),
              "mempool: this is no handle of shared memory that mempool made; both processes must use it for CUDA");
  Descriptors taken;
  taken.pieces.reserve(static_cast<std::size_t>(header.handles));
  for (std::int32_t i = 0; i < header.handles; ++i) {
    Piece piece{};
    std::memcpy(&piece, text.data() + sizeof(header) + static_cast<std::size_t>(i) * sizeof(Piece), sizeof(piece));
    taken.pieces.push_back({take_descriptor(header.process, piece.descriptor), piece.bytes});
  }
  c10::DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  std::shared_ptr<void> mapped = cuda_import(device, taken.pieces);
  TORCH_CHECK(mapped != nullptr, "mempool: the driver does not map the shared memory");
  return mapped;
}

}  // namespace mempool::torch_cuda
