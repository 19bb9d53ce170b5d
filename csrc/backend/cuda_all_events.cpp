#include "backend/cuda_all_events.h"

#include <algorithm>
#include <new>

namespace mempool {

CudaAllEvents::~CudaAllEvents() {
  for (const auto& device : devices_) delete device.load();
}

CudaEvents* CudaAllEvents::events_of(std::uint64_t number) noexcept {
  const std::size_t ordinal = static_cast<std::size_t>(number >> kDeviceShift) - 1;
  if (ordinal >= devices_.size()) return nullptr;
  std::atomic<CudaEvents*>& entry = devices_[ordinal];
  if (CudaEvents* const made = entry.load(std::memory_order_acquire)) return made;
  if (CudaDriver::is_forked()) return nullptr;  // a thread of the parent may hold the mutex
  const CudaDriver* const driver = CudaDriver::instance();
  if (driver == nullptr) return nullptr;
  const std::lock_guard guard(making_);
  if (CudaEvents* const made = entry.load()) return made;
  int device = 0;
  void* context = nullptr;
  if (driver->device_get(&device, static_cast<int>(ordinal)) != CudaDriver::kSuccess ||
      driver->context_retain(&context, device) != CudaDriver::kSuccess) {
    return nullptr;
  }
  auto* const made = new (std::nothrow) CudaEvents(*driver, context);
  entry.store(made, std::memory_order_release);
  return made;
}

StreamEvents::Recorded CudaAllEvents::record(StreamId stream, Event& out) noexcept {
  out = 0;
  if (stream == 0) return Recorded::yes;
  CudaEvents* const events = events_of(stream);
  if (events == nullptr) return Recorded::unavailable;
  const Recorded recorded = events->record(stream & kHandle, out);
  if (recorded == Recorded::yes) out |= device_bits(stream);
  return recorded;
}

StreamEvents::Progress CudaAllEvents::query(Event event) noexcept {
  if (event == 0) return Progress::done;
  CudaEvents* const events = events_of(event);
  return events != nullptr ? events->query(event & kHandle) : Progress::pending;
}

StreamEvents::Progress CudaAllEvents::wait(Event event) noexcept {
  if (event == 0) return Progress::done;
  CudaEvents* const events = events_of(event);
  return events != nullptr ? events->wait(event & kHandle) : Progress::failed;
}

StreamEvents::Obstacle CudaAllEvents::wait_for_device() noexcept {
  Obstacle worst = Obstacle::none;
  for (const auto& device : devices_) {
    if (CudaEvents* const events = device.load()) worst = std::max(worst, events->wait_for_device());
  }
  return worst;
}

std::string CudaAllEvents::failure() noexcept {
  for (const auto& device : devices_) {
    CudaEvents* const events = device.load();
    if (events == nullptr) continue;
    if (std::string failure = events->failure(); !failure.empty()) return failure;
  }
  return {};
}

void CudaAllEvents::discard(Event event) noexcept {
  if (CudaEvents* const events = event != 0 ? events_of(event) : nullptr) events->discard(event & kHandle);
}

}  // namespace mempool
