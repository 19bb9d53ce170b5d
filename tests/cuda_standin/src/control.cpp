// What a test can ask and set. Python's side is ../control.py.
#include <cstring>

#include "address_space.h"
#include "calls.h"
#include "devices.h"
#include "streams.h"

using namespace standin;

namespace {

std::uint64_t g_violations = 0;

// A byte that depends on its place and the seed, so that a shifted or foreign range does not look right.
unsigned char pattern(std::size_t place, std::uint64_t seed) {
  return static_cast<unsigned char>((place * 31 + seed * 2654435761u) >> 3);
}

}  // namespace

extern "C" {

void standin_reset_calls() {
  const Guard guard(lock());
  Calls::instance().reset();
}
std::uint64_t standin_count(const char* name) {
  const Guard guard(lock());
  return Calls::instance().kind(name).count;
}
// Every kind that was called, as "name count\n"; returns the length that is needed.
std::size_t standin_counts(char* text, std::size_t length) {
  const Guard guard(lock());
  std::string all;
  for (const auto& [name, kind] : Calls::instance().kinds()) {
    if (kind.count > 0) all += name + " " + std::to_string(kind.count) + "\n";
  }
  if (length > 0) std::strncpy(text, all.c_str(), length);
  return all.size() + 1;
}
// The `nth` call of that kind from now on fails with `error`; 0: none.
void standin_fail(const char* name, std::uint64_t nth, int error) {
  const Guard guard(lock());
  CallKind& kind = Calls::instance().kind(name);
  kind.fail_in = nth;
  kind.error = error;
}
void standin_set_latency(const char* name, std::uint64_t nanoseconds) {
  const Guard guard(lock());
  Calls::instance().kind(name).latency_ns = nanoseconds;
}
std::uint64_t standin_charged_ns() {
  const Guard guard(lock());
  return Calls::instance().charged_ns();
}
void standin_set_logged(int logged) {
  const Guard guard(lock());
  Calls::instance().set_logged(logged != 0);
}
// Takes the log, a call a line; returns the length that is needed and leaves the log alone while `length` is less.
std::size_t standin_take_log(char* text, std::size_t length) {
  const Guard guard(lock());
  std::string all;
  for (const std::string& line : Calls::instance().lines()) all += line + "\n";
  if (length > all.size()) {
    std::strcpy(text, all.c_str());
    Calls::instance().lines().clear();
  }
  return all.size() + 1;
}

void standin_set_device_count(int count) {
  const Guard guard(lock());
  Devices::instance().set_count(count < kMostDevices ? count : kMostDevices);
}
void standin_set_manages_virtual_memory(int manages) {
  const Guard guard(lock());
  Devices::instance().set_manages_virtual_memory(manages != 0);
}
void standin_set_capacity(int device, std::size_t bytes) {
  const Guard guard(lock());
  Devices::instance().memory(device).capacity = bytes;
}
std::size_t standin_used(int device) {
  const Guard guard(lock());
  return Devices::instance().memory(device).used();
}
std::size_t standin_peak(int device) {
  const Guard guard(lock());
  return Devices::instance().memory(device).peak;
}
void standin_reset_peak(int device) {
  const Guard guard(lock());
  Memory& memory = Devices::instance().memory(device);
  memory.peak = memory.used();
}
std::size_t standin_pinned() {
  const Guard guard(lock());
  return AddressSpace::instance().pinned_bytes();
}
// Handles, mappings and reservations of virtual memory, and streams, that were not given back.
void standin_live(std::size_t found[4]) {
  const Guard guard(lock());
  const AddressSpace& space = AddressSpace::instance();
  found[0] = space.live_handles();
  found[1] = space.live_mappings();
  found[2] = space.live_reservations();
  found[3] = Streams::instance().live();
}

// ---- streams; each returns 0, or an error of the runtime ----

int standin_hold(cudaStream_t handle, int held) {
  const Guard guard(lock());
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  Streams::instance().hold(*stream, held != 0);
  return cudaSuccess;
}
// Runs up to `operations` operations of a held stream; returns how many ran.
std::size_t standin_step(cudaStream_t handle, std::size_t operations) {
  const Guard guard(lock());
  Stream* const stream = Streams::instance().find(handle);
  return stream != nullptr ? Streams::instance().step(*stream, operations) : 0;
}
std::size_t standin_pending(cudaStream_t handle) {
  const Guard guard(lock());
  Stream* const stream = Streams::instance().find(handle);
  return stream != nullptr ? stream->queue.size() : 0;
}
// A kernel that, when its turn comes, fills the range with a pattern.
int standin_write_later(cudaStream_t handle, unsigned char* address, std::size_t bytes, std::uint64_t seed) {
  const Guard guard(lock());
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return Streams::instance().enqueue(*stream, Node::Kind::kernel, [=] {
    for (std::size_t i = 0; i < bytes; ++i) address[i] = pattern(i, seed);
  });
}
// A kernel that, when its turn comes, looks whether the pattern is still there. If not, that is one violation: somebody
// was given the memory too early.
int standin_check_later(cudaStream_t handle, const unsigned char* address, std::size_t bytes, std::uint64_t seed) {
  const Guard guard(lock());
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return Streams::instance().enqueue(*stream, Node::Kind::kernel, [=] {
    for (std::size_t i = 0; i < bytes; ++i) {
      if (address[i] == pattern(i, seed)) continue;
      ++g_violations;
      return;
    }
  });
}
std::uint64_t standin_violations() {
  const Guard guard(lock());
  return g_violations;
}

}  // extern "C"
