// The emulator finds errors that would corrupt results on a GPU: races, missing barriers, accesses out of bounds.
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/cuda/ptx.h"
#include "schedules.h"

using namespace emulator;
using namespace mempool::kernels::cuda;

namespace {

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(every_thread_of_every_block_runs_once) {
  for_each_schedule([] {
    std::vector<int> seen(2 * 3 * 2 * 64, 0);
    launch("test", {2, 3, 2}, {32, 2, 1}, 0, [&] {
      const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      ++seen[block * 64 + threadIdx.y * blockDim.x + threadIdx.x];
    });
    for (const int times : seen) CHECK_EQ(times, 1);
  });
}

TEST(a_barrier_holds_all_threads_back) {
  for_each_schedule([] {
    CHECK_EQ(error_of(128, 128 * 4,
                      [] {
                        int* const shared = reinterpret_cast<int*>(dynamic_shared());
                        shared[threadIdx.x] = static_cast<int>(threadIdx.x);
                        __syncthreads();
                        CHECK_EQ(shared[127 - threadIdx.x], 127 - static_cast<int>(threadIdx.x));
                      }),
             "");
  });
}

TEST(without_a_barrier_some_thread_reads_garbage) {
  for_each_schedule([] {
    int wrong = 0;
    launch("test", {1, 1, 1}, {64, 1, 1}, 64 * 4, [&] {
      int* const shared = reinterpret_cast<int*>(dynamic_shared());
      shared[threadIdx.x] = 1;
      wrong += shared[63 - threadIdx.x] != 1 ? 1 : 0;
    });
    CHECK(wrong > 0);
  });
}

TEST(barriers_that_not_all_reach_are_reported) {
  for_each_schedule([] {
    const std::string one = error_of(64, 0, [] {
      if (threadIdx.x != 5) __syncthreads();
    });
    CHECK(contains(one, "deadlock") && contains(one, "1 ended") && contains(one, "63 wait at"));
    const std::string two = error_of(64, 0, [] {
      if (threadIdx.x < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    });
    CHECK(contains(two, "divergent barrier of a block"));
    const std::string shuffles = error_of(32, 0, [] {
      const int lane = static_cast<int>(threadIdx.x);
      if (lane < 16) {
        __shfl_xor_sync(0xFFFFFFFFU, lane, 1);
      } else {
        __shfl_xor_sync(0xFFFFFFFFU, lane, 1);
      }
    });
    CHECK(contains(shuffles, "divergent operation of a warp"));
    CHECK(contains(error_of(32, 0, [] { __syncwarp(0xFFFFU); }), "only whole warps"));
  });
  CHECK(contains(error_of(33, 0, [] {}), "whole warps"));
  // And after all that it still works.
  CHECK_EQ(error_of(64, 0, [] { __syncthreads(); }), "");
}

TEST(shuffles_give_what_the_other_lane_gave) {
  for_each_schedule([] {
    launch("test", {1, 1, 1}, {96, 1, 1}, 0, [] {
      const int lane = static_cast<int>(threadIdx.x % 32);
      for (int i = 0; i < 5; ++i) {  // many in a row: lanes are at different ones
        CHECK_EQ(__shfl_xor_sync(kAllLanes, lane * 10 + i, 7), (lane ^ 7) * 10 + i);
        CHECK_EQ(__shfl_up_sync(kAllLanes, lane, 3U), lane < 3 ? lane : lane - 3);
        CHECK_EQ(__shfl_sync(kAllLanes, lane + i, 9), 9 + i);
      }
    });
  });
}

TEST(asynchronous_copies_land_when_they_are_waited_for) {
  alignas(16) unsigned char source[48];
  for (unsigned i = 0; i < 48; ++i) source[i] = static_cast<unsigned char>(i + 1);
  set_schedule({});
  launch("test", {1, 1, 1}, {32, 1, 1}, 32 * 48, [&] {
    unsigned char* const mine = dynamic_shared() + threadIdx.x * 48;
    for (int i = 0; i < 3; ++i) {
      copy_async(mine + i * 16, source + i * 16, i != 1);
      mempool::kernels::cuda::commit_copies();
    }
    CHECK(mine[0] != 1);
    mempool::kernels::cuda::wait_for_copies<1>();
    CHECK_EQ(int{mine[0]}, 1);
    CHECK_EQ(int{mine[15]}, 16);
    CHECK_EQ(int{mine[16]}, 0);  // asked for as zeros
    CHECK(mine[32] != 33);
    mempool::kernels::cuda::wait_for_copies<0>();
    CHECK_EQ(int{mine[32]}, 33);
  });
  CHECK(contains(error_of(32, 64, [&] { copy_async(dynamic_shared() + 4, source, true); }), "not aligned"));
  CHECK(contains(error_of(32, 64, [&] { copy_async(dynamic_shared(), source + 1, true); }), "not aligned"));
  CHECK(contains(error_of(32, 64, [&] { load_once(source + 4); }), "not aligned"));
}

TEST(shared_memory_is_fresh_for_each_block) {
  std::set<int> seen;
  launch("test", {4, 1, 1}, {32, 1, 1}, 4, [&] {
    seen.insert(dynamic_shared()[0]);
    __syncthreads();
    dynamic_shared()[0] = 7;
  });
  CHECK(seen == std::set<int>{0xA5});
}
