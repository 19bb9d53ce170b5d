// Runs CUDA kernels on the CPU, for tests: each thread of a block is a fiber, and one runs at a time, until it has to
// wait for others. What a kernel may not rely on is made as bad as it can be: shared memory begins with garbage,
// asynchronous copies land when they are waited for (or at once), warps run as far ahead of each other as barriers let
// them, a few blocks run beside each other, and blocks and lanes come in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>

namespace emulator {

// What a GPU would hang on, or answer with garbage: barriers that not all threads reach, lanes that disagree. What a
// kernel throws on the CPU comes through launch() as it is.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Order : std::uint8_t { forward, reversed, random };

struct Schedule {
  Order order = Order::forward;  // of blocks, of warps, and of lanes
  std::uint32_t seed = 0;        // of what is random: with `random` a copy lands at once or when it is waited for
};
void set_schedule(const Schedule& schedule);

struct Index {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

// All blocks of a kernel, one after the other. `body` calls the kernel. Throws Error.
void launch(const char* kernel, const Index& grid, const Index& block, std::size_t shared_bytes,
            const std::function<void()>& body);

// The rest is for what stands in for CUDA's own, and is called by a running kernel.

const Index& thread_index();
const Index& block_index();
const Index& block_size();
const Index& grid_size();
unsigned char* dynamic_shared();

struct Site {
  const char* file;
  int line;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

void block_barrier(const Site& site);
void warp_barrier(unsigned mask, const Site& site);

// The 32 operands of a warp's lanes, kOperandBytes apart, once all lanes have given theirs.
inline constexpr std::size_t kOperandBytes = 64;
const unsigned char* exchange(unsigned mask, const void* operand, std::size_t bytes, const Site& site);
template <typename Operand>
class Lanes {
 public:
  Lanes(unsigned mask, const Operand& mine, const Site& site) : all_(exchange(mask, &mine, sizeof(mine), site)) {
    static_assert(sizeof(Operand) <= kOperandBytes && alignof(Operand) <= kOperandBytes);
  }
  // Until the lane's next but one exchange.
  const Operand& operator[](unsigned lane) const {
    return *reinterpret_cast<const Operand*>(all_ + lane * kOperandBytes);
  }

 private:
  const unsigned char* all_;
};
unsigned lane();

// The first `bytes` of `kCopyBytes` come from `from`, the others are zero.
inline constexpr std::size_t kCopyBytes = 16;
void copy_async(void* to, const void* from, std::size_t bytes);
void commit_copies();
// Until all but the last `left` groups of this thread's copies have landed.
void wait_for_copies(std::size_t left);

// Ends the launch with an Error. The thread never comes back, so nothing of it is destroyed.
[[noreturn]] void fail(const Site& site, const char* message);

}  // namespace emulator
