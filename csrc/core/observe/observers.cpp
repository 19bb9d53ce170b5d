#include "core/observe/observers.h"

namespace mempool {

void Observers::start_history(std::size_t most_events) {
  const std::lock_guard guard(switching_);
  history_.start(most_events);
  update();
}

void Observers::stop_history() {
  const std::lock_guard guard(switching_);
  history_.stop();
  update();
}

bool Observers::start_recording(const std::string& path) {
  const std::lock_guard guard(switching_);
  const bool started = recorder_.start(path);
  update();
  return started;
}

TraceRecorder::Result Observers::stop_recording() {
  const std::lock_guard guard(switching_);
  const TraceRecorder::Result result = recorder_.stop();
  update();
  return result;
}

void Observers::listen(BlockListener* listener) {
  const std::lock_guard guard(switching_);
  listener_.store(listener, std::memory_order_release);
  update();
}

void Observers::on_alloc(const ObservedBlock& block, std::uint32_t (*capture_stack)()) noexcept {
  if (recorder_.enabled()) recorder_.on_alloc(block);
  if (history_.enabled()) history_.on_alloc(block, capture_stack());
  if (BlockListener* const listener = listener_.load(std::memory_order_acquire)) listener->on_alloc(block);
}

void Observers::on_use(const void* address, StreamId stream) noexcept {
  if (recorder_.enabled()) recorder_.on_use(address, stream);
}

void Observers::on_free(const ObservedBlock& block, bool waits) noexcept {
  history_.on_free(block.address, waits);
  recorder_.on_free(block.address);
  if (BlockListener* const listener = listener_.load(std::memory_order_acquire)) listener->on_free(block, waits);
}

void Observers::on_completed(const ObservedBlock& block) noexcept {
  history_.on_completed(block.address);
  if (BlockListener* const listener = listener_.load(std::memory_order_acquire)) listener->on_completed(block);
}

void Observers::lock_for_fork() {
  history_.lock_for_fork().lock();
  recorder_.lock_for_fork().lock();
}

void Observers::after_fork(bool in_child) noexcept {
  if (in_child) {
    recorder_.abandon();
    update();
  }
  recorder_.lock_for_fork().unlock();
  history_.lock_for_fork().unlock();
  switching_.unlock();
}

}  // namespace mempool
