#include "backend/cuda_events.h"

#include <new>

namespace mempool {
namespace {

constexpr unsigned kDisableTiming = 2;  // CU_EVENT_DISABLE_TIMING
constexpr int kNotReady = 600;          // CUDA_ERROR_NOT_READY
constexpr int kInvalidHandle = 400;     // CUDA_ERROR_INVALID_HANDLE
constexpr int kContextDestroyed = 709;  // CUDA_ERROR_CONTEXT_IS_DESTROYED
constexpr int kFirstOfCapture = 900;    // CUDA_ERROR_STREAM_CAPTURE_…
constexpr int kLastOfCapture = 908;
constexpr int kCaptureNone = 0;  // CU_STREAM_CAPTURE_STATUS_NONE

void* pointer_of(std::uint64_t number) { return reinterpret_cast<void*>(number); }  // NOLINT(performance-no-int-to-ptr)

}  // namespace

CudaEvents::~CudaEvents() {
  for (void* event : unused_) driver_.event_destroy(event);
}

bool CudaEvents::record(StreamId stream, Event& out) noexcept {
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered()) return false;
  int capture = kCaptureNone;
  if (driver_.is_capturing(pointer_of(stream), &capture) != CudaDriver::kSuccess || capture != kCaptureNone)
    return false;
  void* event = nullptr;
  {
    const std::lock_guard guard(mutex_);
    if (!unused_.empty()) {
      event = unused_.back();
      unused_.pop_back();
    }
  }
  if (event == nullptr && driver_.event_create(&event, kDisableTiming) != CudaDriver::kSuccess) return false;
  out = reinterpret_cast<Event>(event);
  if (driver_.event_record(event, pointer_of(stream)) == CudaDriver::kSuccess) return true;
  discard(out);
  return false;
}

// A device that has failed does nothing any more.
StreamEvents::Progress CudaEvents::query(Event event) noexcept {
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered()) return Progress::pending;
  const CudaDriver::Result result = driver_.event_query(pointer_of(event));
  if (result == kNotReady) return Progress::pending;
  return result >= kFirstOfCapture && result <= kLastOfCapture ? Progress::lost : Progress::done;
}

void CudaEvents::wait(Event event) noexcept {
  const CudaScope scope(driver_, context_);
  driver_.event_synchronize(pointer_of(event));
}

bool CudaEvents::wait_for_device() noexcept {
  const CudaScope scope(driver_, context_);
  return scope.is_entered() && driver_.context_synchronize() == CudaDriver::kSuccess;
}

void CudaEvents::discard(Event event) noexcept {
  const std::lock_guard guard(mutex_);
  try {
    unused_.push_back(pointer_of(event));
  } catch (const std::bad_alloc&) {
    driver_.event_destroy(pointer_of(event));
  }
}

}  // namespace mempool
