#include "backend/cuda_export.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "backend/cuda_device.h"
#include "backend/cuda_driver.h"
#include "common/expects.h"
#include "core/allocator/found_block.h"

namespace mempool {
namespace {

using Key = std::pair<int, std::uint64_t>;  // a device and the token of its handle

struct Exports {
  struct Open {
    int descriptor = -1;
    int blocks = 0;  // shared blocks that lie in the handle
  };
  std::mutex mutex;
  std::map<Key, Open> handles;
  std::map<const void*, std::vector<Key>> blocks;

  void drop(const Key& key) {
    const auto found = handles.find(key);
    if (found == handles.end() || --found->second.blocks > 0) return;
    close(found->second.descriptor);
    handles.erase(found);
  }
};

// A forked child closes its copies of the descriptors: it does not need them, and they would keep the memory alive.
Exports& exports() {
  static Exports* const all = [] {
    pthread_atfork([] { exports().mutex.lock(); }, [] { exports().mutex.unlock(); },
                   [] {
                     for (const auto& [key, open] : exports().handles) close(open.descriptor);
                     exports().handles.clear();
                     exports().blocks.clear();
                     exports().mutex.unlock();
                   });
    return new Exports;  // immortal
  }();
  return *all;
}

void end_export(CachingAllocator&, void* block) noexcept {
  if (CudaDriver::is_forked()) return;
  Exports& all = exports();
  const std::lock_guard guard(all.mutex);
  const auto found = all.blocks.find(block);
  if (found == all.blocks.end()) return;
  for (const Key& key : found->second) all.drop(key);
  all.blocks.erase(found);
}

// Expects that the mutex is held. False: the driver gives no descriptor; nothing has changed then.
bool open_all(Exports& all, int ordinal, const std::vector<Handle>& handles, std::vector<Key>& keys) {
  MEMPOOL_EXPECTS(keys.empty());
  keys.reserve(handles.size());
  for (const Handle& handle : handles) {
    const Key key{ordinal, handle.token};
    Exports::Open& open = all.handles[key];
    if (open.blocks == 0) open.descriptor = cuda_export_handle(ordinal, handle);
    ++open.blocks;
    keys.push_back(key);
    if (open.descriptor >= 0) {
      fcntl(open.descriptor, F_SETFD, FD_CLOEXEC);
      continue;
    }
    for (const Key& each : keys) all.drop(each);
    return false;
  }
  return true;
}

}  // namespace

ExportedBlock cuda_export(int ordinal, void* block) {
  CachingAllocator* const device = cuda_device_if_made(ordinal);
  if (device == nullptr || owner_of(block) != device) return {};
  Exports& all = exports();
  device->set_unpin_hook(end_export);
  const std::vector<Handle> handles = device->pin_handles(block);
  if (handles.empty()) return {};
  ExportedBlock out{handles.front().address, {}};
  bool is_open = false;
  try {
    out.pieces.reserve(handles.size());
    const std::lock_guard guard(all.mutex);
    const auto [entry, is_new] = all.blocks.try_emplace(block);
    is_open = !is_new || open_all(all, ordinal, handles, entry->second);
    if (!is_open) all.blocks.erase(entry);
    for (const Handle& handle : handles) {
      if (is_open) out.pieces.push_back({all.handles.at({ordinal, handle.token}).descriptor, handle.bytes});
    }
  } catch (...) {
    device->unpin(block);
    throw;
  }
  if (!is_open) device->unpin(block);
  return out;
}

}  // namespace mempool
