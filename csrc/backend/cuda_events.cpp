#include "backend/cuda_events.h"

#include <new>

namespace mempool {
namespace {

constexpr unsigned kDisableTiming = 2;  // CU_EVENT_DISABLE_TIMING
constexpr int kOutOfMemory = 2;         // CUDA_ERROR_OUT_OF_MEMORY
constexpr int kNotReady = 600;          // CUDA_ERROR_NOT_READY
constexpr int kFirstOfCapture = 900;    // CUDA_ERROR_STREAM_CAPTURE_…
constexpr int kLastOfCapture = 908;
constexpr int kCaptureNone = 0;  // CU_STREAM_CAPTURE_STATUS_NONE
// CU_STREAM_PER_THREAD: the handle stands for another stream in each thread, so no thread can record an event for all.
constexpr StreamId kPerThread = 2;

bool is_of_capture(CudaDriver::Result result) { return result >= kFirstOfCapture && result <= kLastOfCapture; }

void* pointer_of(std::uint64_t number) { return reinterpret_cast<void*>(number); }  // NOLINT(performance-no-int-to-ptr)

}  // namespace

CudaEvents::~CudaEvents() {
  for (void* event : unused_) driver_.event_destroy(event);
}

StreamEvents::Recorded CudaEvents::record(StreamId stream, Event& out) noexcept {
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered()) return Recorded::unavailable;
  if (stream == kPerThread) return Recorded::never;
  int capture = kCaptureNone;
  CudaDriver::Result result = driver_.is_capturing(pointer_of(stream), &capture);
  if (result != CudaDriver::kSuccess) return of_error(result);
  if (capture != kCaptureNone) return Recorded::captured;
  void* event = nullptr;
  {
    const std::lock_guard guard(mutex_);
    if (!unused_.empty()) {
      event = unused_.back();
      unused_.pop_back();
    }
  }
  if (event == nullptr) {
    result = driver_.event_create(&event, kDisableTiming);
    if (result != CudaDriver::kSuccess) return of_error(result);
  }
  out = reinterpret_cast<Event>(event);
  result = driver_.event_record(event, pointer_of(stream));
  if (result == CudaDriver::kSuccess) return Recorded::yes;
  discard(out);
  return of_error(result);
}

// Drivers report different errors for a stream that was destroyed. Whichever it is, the caller can wait for the whole
// device, and that call reports a device that has failed.
StreamEvents::Recorded CudaEvents::of_error(int result) noexcept {
  if (is_of_capture(result)) return Recorded::captured;
  return result == kOutOfMemory ? Recorded::unavailable : Recorded::never;
}

StreamEvents::Progress CudaEvents::progress_of(int result) noexcept {
  if (result == CudaDriver::kSuccess) return Progress::done;
  if (result == kNotReady) return Progress::pending;
  if (is_of_capture(result)) return Progress::lost;
  failure_.store(result, std::memory_order_relaxed);
  return Progress::failed;
}

StreamEvents::Progress CudaEvents::query(Event event) noexcept {
  const CudaScope scope(driver_, context_);
  return scope.is_entered() ? progress_of(driver_.event_query(pointer_of(event))) : Progress::pending;
}

StreamEvents::Progress CudaEvents::wait(Event event) noexcept {
  const CudaScope scope(driver_, context_);
  return scope.is_entered() ? progress_of(driver_.event_synchronize(pointer_of(event))) : Progress::failed;
}

StreamEvents::Obstacle CudaEvents::wait_for_device() noexcept {
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered()) return Obstacle::unavailable;
  const Progress progress = progress_of(driver_.context_synchronize());
  if (progress == Progress::done) return Obstacle::none;
  return progress == Progress::lost ? Obstacle::capture : Obstacle::failure;
}

std::string CudaEvents::failure() noexcept {
  const int result = failure_.load(std::memory_order_relaxed);
  if (result == CudaDriver::kSuccess) return {};
  try {
    return "the CUDA driver reports error " + std::to_string(result) + " for work that was asked for";
  } catch (const std::bad_alloc&) {
    return "CUDA error";
  }
}

void CudaEvents::discard(Event event) noexcept {
  if (CudaDriver::is_forked()) return;  // a thread of the parent may hold the mutex
  const std::lock_guard guard(mutex_);
  try {
    unused_.push_back(pointer_of(event));
  } catch (const std::bad_alloc&) {
    driver_.event_destroy(pointer_of(event));
  }
}

}  // namespace mempool
