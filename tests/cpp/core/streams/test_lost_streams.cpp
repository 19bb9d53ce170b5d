// Streams that are destroyed while their work goes on, events that say nothing, and devices that fail: memory is never
// used again before it is known that its work is done, and comes back once it is.
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::block_in_use;
using fixtures::device_with_streams;
using fixtures::FakeDevice;
using fixtures::kMiB;
using fixtures::waiting;
using fixtures::waiting_block;

namespace {

// A block that stream 7 uses, freed while that is busy.
void free_one_in_use(const FakeDevice& device, std::size_t bytes) {
  void* const block = block_in_use(device, bytes);
  device.memory->destroy_stream(7);
  device.allocator->deallocate(block);
}

}  // namespace

TEST(what_a_destroyed_stream_used_comes_back_when_the_device_was_at_rest) {
  for (const std::size_t bytes : {std::size_t{100}, 100 * std::size_t{1024}, 5 * kMiB}) {
    const FakeDevice device = device_with_streams();
    free_one_in_use(device, bytes);
    device.allocator->trim(0, false);
    CHECK_EQ(waiting(device), 1);  // no thread has waited, so nothing is known
    CHECK_EQ(device.memory->waits(), 0u);
    device.allocator->trim(0);
    CHECK_EQ(waiting(device), 0);
    CHECK_EQ(device.memory->waits(), 1u);
    device.check_empty();
  }
}

TEST(out_of_memory_waits_for_a_destroyed_stream) {
  const FakeDevice device = device_with_streams(12 * kMiB);
  free_one_in_use(device, 10 * kMiB);
  void* const after = device.allocator->allocate(10 * kMiB);
  CHECK_EQ(device.memory->waits(), 1u);
  device.allocator->deallocate(after);
  device.check_empty();
}

TEST(decay_takes_back_what_a_destroyed_stream_used) {
  const FakeDevice device = device_with_streams(SIZE_MAX, {.decay_ms = 100});
  free_one_in_use(device, 5 * kMiB);
  for (std::int64_t now_ms = 0; now_ms < 1000; now_ms += 10) device.allocator->decay(now_ms);
  CHECK_EQ(waiting(device), 0);
  CHECK_EQ(device.memory->waits(), 1u);
  CHECK_EQ(device.allocator->ledger().held(), 0u);
  const std::uint64_t records = device.memory->calls(FakeMemory::Call::record);
  device.allocator->decay(2000);
  CHECK_EQ(device.memory->calls(FakeMemory::Call::record), records);  // it is asked for no more
  device.check_empty();
}

TEST(an_event_from_before_the_end_of_a_stream_still_says_when_it_is_done) {
  const FakeDevice device = device_with_streams();
  waiting_block(device, 5 * kMiB);  // records
  device.memory->destroy_stream(7);
  device.allocator->trim(kNoLimit, false);
  CHECK_EQ(waiting(device), 1);
  device.memory->finish(7);
  device.allocator->trim(kNoLimit, false);
  CHECK_EQ(waiting(device), 0);
  CHECK_EQ(device.memory->waits(), 0u);
  device.check_empty();
}

// A driver gives a handle out again when the work of its stream is done.
TEST(a_new_stream_of_the_same_handle_goes_on_where_the_old_one_ended) {
  const FakeDevice device = device_with_streams();
  free_one_in_use(device, 5 * kMiB);
  device.memory->finish(7);
  device.memory->create_stream(7);
  device.memory->work(7);
  device.allocator->trim(kNoLimit, false);
  CHECK_EQ(waiting(device), 1);  // late, never early
  device.memory->finish(7);
  device.allocator->trim(kNoLimit, false);
  CHECK_EQ(waiting(device), 0);
  CHECK_EQ(device.memory->waits(), 0u);
  device.check_empty();
}

TEST(memory_of_a_destroyed_stream_serves_others_after_a_wait) {
  const FakeDevice device = device_with_streams(12 * kMiB);
  void* const block = device.allocator->allocate(12 * kMiB, 7);
  device.memory->work(7);
  device.memory->destroy_stream(7);
  device.allocator->deallocate(block);
  void* const other = device.allocator->allocate(12 * kMiB, 2);
  CHECK_EQ(device.memory->waits(), 1u);
  device.allocator->deallocate(other);
  device.check_empty();
}

TEST(an_event_that_was_captured_is_no_answer) {
  const FakeDevice device = device_with_streams(12 * kMiB);
  waiting_block(device, 10 * kMiB);  // records
  device.memory->capture_events();
  // A wait for the event returns at once; the work is not done.
  void* const after = device.allocator->allocate(10 * kMiB);
  CHECK_EQ(device.memory->waits(), 1u);  // for another event
  device.allocator->deallocate(after);
  device.check_empty();
}

TEST(a_failed_device_hands_out_nothing_that_was_in_use_and_says_so) {
  const FakeDevice device = device_with_streams(12 * kMiB);
  waiting_block(device, 10 * kMiB);  // records
  device.memory->fail_device(true);
  try {
    device.allocator->allocate(10 * kMiB);
    CHECK(false);
  } catch (const OutOfMemory& error) {
    CHECK_EQ(error.info().device_failure, "the fake device has failed");
    CHECK(std::string(error.what()).find("the fake device has failed") != std::string::npos);
  }
  device.allocator->trim(0);
  CHECK_EQ(waiting(device), 1);
  CHECK_EQ(device.allocator->stats().active.all.bytes.current, static_cast<std::int64_t>(10 * kMiB));
  CHECK(device.allocator->ledger().held() >= 10 * kMiB);
  CHECK_EQ(device.allocator->check_invariants(), "");
  device.memory->fail_device(false);
  device.allocator->trim(0);
  CHECK_EQ(waiting(device), 0);
  device.check_empty();
}
