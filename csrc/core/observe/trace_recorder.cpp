#include "core/observe/trace_recorder.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <new>
#include <utility>

#include "core/allocator/policy.h"

namespace mempool {
namespace {

std::int64_t now_ns() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Small numbers for threads, in the order of their first event.
unsigned thread_number() {
  static std::atomic<unsigned> next{0};
  thread_local const unsigned own = next.fetch_add(1);
  return own;
}

}  // namespace

bool TraceRecorder::start(const std::string& path) {
  const std::lock_guard guard(mutex_);
  if (file_ != nullptr) {
    errno = EBUSY;
    return false;
  }
  buffer_.reserve(kRecorderBufferBytes + 256);
  file_ = std::fopen(path.c_str(), "we");
  if (file_ == nullptr) return false;
  std::setvbuf(file_, nullptr, _IONBF, 0);
  buffer_ = "seq,op,id,bytes,stream,time_ns,thread,pool\n";
  live_.clear();
  streams_ = {0};
  next_id_ = 0;
  result_ = {};
  start_ns_ = now_ns();
  enabled_.store(true, std::memory_order_relaxed);
  return true;
}

TraceRecorder::Result TraceRecorder::stop() {
  const std::lock_guard guard(mutex_);
  if (file_ == nullptr) return {};
  enabled_.store(false, std::memory_order_relaxed);
  flush();
  if (std::fclose(std::exchange(file_, nullptr)) != 0 && result_.error == 0) result_.error = errno;
  live_ = {};
  buffer_ = {};
  return result_;
}

void TraceRecorder::abandon() noexcept {
  enabled_.store(false, std::memory_order_relaxed);
  file_ = nullptr;  // the descriptor stays: closing it here could not fail the parent, but nothing would be gained
  live_.clear();
  buffer_.clear();
}

void TraceRecorder::mark(std::uint64_t number) noexcept {
  const std::lock_guard guard(mutex_);
  if (enabled()) write("step", number, nullptr, 0, 0);
}

void TraceRecorder::on_alloc(const ObservedBlock& block) noexcept {
  const std::lock_guard guard(mutex_);
  if (!enabled()) return;
  try {
    live_.insert_or_assign(block.address, next_id_);
  } catch (const std::bad_alloc&) {
    if (result_.error == 0) result_.error = ENOMEM;
    return;
  }
  write("alloc", next_id_++, &block.size.asked, block.account, block.stream);
}

void TraceRecorder::on_use(const void* address, StreamId stream) noexcept {
  const std::lock_guard guard(mutex_);
  const auto found = live_.find(address);
  if (enabled() && found != live_.end()) write("record_stream", found->second, nullptr, 0, stream);
}

void TraceRecorder::on_free(const void* address) noexcept {
  const std::lock_guard guard(mutex_);
  const auto found = live_.find(address);
  if (!enabled() || found == live_.end()) return;
  write("free", found->second, nullptr, 0, 0);
  live_.erase(found);
}

std::size_t TraceRecorder::number_of(StreamId stream) noexcept {
  const auto found = std::find(streams_.begin(), streams_.end(), stream);
  const auto number = static_cast<std::size_t>(found - streams_.begin());
  if (found != streams_.end()) return number;
  try {
    streams_.push_back(stream);
  } catch (const std::bad_alloc&) {
    if (result_.error == 0) result_.error = ENOMEM;
  }
  return number;
}

void TraceRecorder::write(const char* op, std::uint64_t id, const std::size_t* bytes, std::uint32_t account,
                          StreamId stream) noexcept {
  if (result_.error != 0) return;
  std::array<char, 24> size{};
  if (bytes != nullptr) std::snprintf(size.data(), size.size(), "%zu", *bytes);
  std::array<char, 192> line{};
  const int length =
      std::snprintf(line.data(), line.size(), "%" PRIu64 ",%s,%" PRIu64 ",%s,%zu,%" PRId64 ",%u,%u\n", result_.events++,
                    op, id, size.data(), number_of(stream), now_ns() - start_ns_, thread_number(), account);
  buffer_.append(line.data(), static_cast<std::size_t>(length));  // within what start() reserved
  if (buffer_.size() >= kRecorderBufferBytes) flush();
}

void TraceRecorder::flush() noexcept {
  if (result_.error == 0 && std::fwrite(buffer_.data(), 1, buffer_.size(), file_) != buffer_.size()) {
    result_.error = errno != 0 ? errno : EIO;
  }
  buffer_.clear();
}

}  // namespace mempool
