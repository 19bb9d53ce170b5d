// Kernels read nothing behind their buffers: what some instructions read, sanitizers do not see. Each buffer ends where
// a page begins that cannot be read.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "kernels/packed.h"

using namespace mempool::kernels;

namespace {

class Guarded {
 public:
  Guarded(const void* from, std::size_t bytes) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    const std::size_t pages = (bytes + page_ - 1) / page_ * page_;
    mapped_ = pages + page_;
    start_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(start_ != MAP_FAILED);
    char* const end = static_cast<char*>(start_) + pages;
    CHECK(mprotect(end, page_, PROT_NONE) == 0);
    at_ = end - bytes;
    std::memcpy(at_, from, bytes);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(start_, mapped_); }

  template <typename Value>
  const Value* as() const {
    return reinterpret_cast<const Value*>(at_);
  }

 private:
  std::size_t page_;
  std::size_t mapped_ = 0;
  void* start_ = nullptr;
  char* at_ = nullptr;
};

template <typename Value>
Guarded guarded(const std::vector<Value>& values) {
  return Guarded(values.data(), values.size() * sizeof(Value));
}

// For numbers of tokens that end in every kind of tile, and inputs that end within one.
template <typename Action>
void for_each_problem(Action action) {
  std::mt19937 random(1);
  for (const std::int64_t count : {1, 7, 13, 17, 32, 45}) {
    for (const std::int64_t inputs : {3, 63, 64, 130, 1090}) {
      action(Problem(count, 100, inputs, random, false, 0.4));
    }
  }
}

}  // namespace

TEST(dense_kernels_stay_within_their_buffers) {
  for_each_problem([](const Problem& problem) {
    const Guarded panels = guarded(problem.panels);
    const Guarded tokens = guarded(problem.values);
    for_each_set([&](const KernelSet& set) {
      DenseWeights weights = problem.dense();
      weights.panels = panels.as<std::int8_t>();
      std::vector<std::int32_t> out(Problem::size(problem.count * problem.outputs));
      set.dense(weights, {tokens.as<std::uint8_t>(), problem.token_scales.data(), problem.count},
                {out.data(), nullptr, OutputType::accumulators}, 0, panels_of(problem.outputs));
      problem.check_sums(out);
    });
  });
}

TEST(bitmap_kernels_stay_within_their_buffers) {
  for_each_problem([](const Problem& problem) {
    const PackedBitmap packed(problem);
    const Guarded far_masks = guarded(packed.masks);
    const Guarded far_values = guarded(packed.values);
    const Guarded tokens = guarded(problem.values);
    for_each_set([&](const KernelSet& set) {
      std::vector<std::int32_t> out(Problem::size(problem.count * problem.outputs));
      BitmapWeights weights = packed.weights();
      weights.masks = far_masks.as<std::uint64_t>();
      weights.values = far_values.as<std::int8_t>();
      set.bitmap(weights, {tokens.as<std::uint8_t>(), problem.token_scales.data(), problem.count},
                 {out.data(), nullptr, OutputType::accumulators}, 0, panels_of(problem.outputs));
      problem.check_sums(out);
    });
  });
}

TEST(block_kernels_stay_within_their_buffers) {
  for_each_problem([](const Problem& problem) {
    const PackedBlocks packed(problem);
    const Guarded far_masks = guarded(packed.masks);
    const Guarded far_values = guarded(packed.values);
    for_each_set([&](const KernelSet& set) {
      std::vector<std::uint8_t> interleaved(Problem::size(interleaved_bytes(problem.count, problem.inputs)));
      set.interleave(problem.tokens(), problem.inputs, 0, problem.count, interleaved.data());
      const Guarded tokens = guarded(interleaved);
      std::vector<std::int32_t> out(Problem::size(problem.count * problem.outputs));
      BlockWeights weights = packed.weights();
      weights.masks = far_masks.as<std::uint64_t>();
      weights.values = far_values.as<std::int8_t>();
      set.block4(weights, {tokens.as<std::uint8_t>(), problem.token_scales.data(), problem.count},
                 {out.data(), nullptr, OutputType::accumulators}, 0, panels_of(problem.outputs));
      problem.check_sums(out);
    });
  });
}
