// Runs the queues of streams, records events, and captures and replays graphs.
#include "streams.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "devices.h"

namespace standin {
namespace {

thread_local cudaStreamCaptureMode t_mode = cudaStreamCaptureModeGlobal;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Streams& Streams::instance() {
  static Streams* const streams = new Streams;
  return *streams;
}

Stream* Streams::find(cudaStream_t handle) {
  if (reinterpret_cast<std::uintptr_t>(handle) > 2) {
    auto* const stream = reinterpret_cast<Stream*>(handle);
    return live_.count(stream) != 0 && !stream->is_destroyed ? stream : nullptr;
  }
  while (defaults_.size() < kMostDevices) {
    defaults_.push_back(std::make_unique<Stream>());
    defaults_.back()->device = static_cast<int>(defaults_.size()) - 1;
  }
  return defaults_[static_cast<std::size_t>(current_device())].get();
}

Stream* Streams::create(int device, unsigned flags, int priority) {
  auto stream = std::make_unique<Stream>();
  stream->device = device;
  stream->flags = flags;
  stream->priority = priority;
  stream->number = next_stream_++;
  live_.insert(stream.get());
  return stream.release();
}

// Returns at once; the stream's work still happens, as the driver promises, and until then no other stream gets its
// handle.
void Streams::destroy(Stream* stream) {
  stream->is_destroyed = true;
  bury();
}

void Streams::bury() {
  std::erase_if(live_, [](Stream* stream) {
    if (!stream->is_destroyed || !stream->queue.empty()) return false;
    delete stream;
    return true;
  });
}

std::size_t Streams::live() const {
  return static_cast<std::size_t>(
      std::count_if(live_.begin(), live_.end(), [](const Stream* stream) { return !stream->is_destroyed; }));
}

// ---- running ----

bool Streams::run_front(Stream& stream, bool even_if_held) {
  if (stream.queue.empty() || (stream.is_held && !even_if_held)) return false;
  Operation& front = stream.queue.front();
  if (front.kind == Operation::Kind::wait && front.event->happened < front.generation) return false;
  Operation operation = std::move(front);
  stream.queue.pop_front();
  --waiting_;
  if (operation.kind == Operation::Kind::work) operation.work();
  if (operation.kind == Operation::Kind::record) {
    operation.event->happened = operation.generation;
    operation.event->seconds = now();
  }
  return true;
}

void Streams::run_all() {
  for (bool progress = true; progress && waiting_ > 0;) {
    progress = false;
    for (const auto& stream : defaults_) {
      while (run_front(*stream, false)) progress = true;
    }
    const std::vector<Stream*> now_live(live_.begin(), live_.end());  // work may create and destroy streams
    for (Stream* stream : now_live) {
      while (live_.count(stream) != 0 && run_front(*stream, false)) progress = true;
    }
  }
}

void Streams::push(Stream& stream, Operation operation) {
  stream.queue.push_back(std::move(operation));
  ++waiting_;
  while (run_front(stream, false)) {
  }
  if (waiting_ > 0) run_all();
}

void Streams::run_until_happened(Event& event, std::uint64_t generation) {
  const auto run = [&](Stream& stream) {
    const auto records = [&](const Operation& operation) {
      return operation.kind == Operation::Kind::record && operation.event.get() == &event &&
             operation.generation <= generation;
    };
    while (event.happened < generation && std::any_of(stream.queue.begin(), stream.queue.end(), records)) {
      if (run_front(stream, true)) continue;
      const Operation& front = stream.queue.front();
      const std::shared_ptr<Event> first = front.event;
      run_until_happened(*first, front.generation);
    }
  };
  for (const auto& stream : defaults_) run(*stream);
  const std::vector<Stream*> now_live(live_.begin(), live_.end());
  for (Stream* stream : now_live) {
    if (live_.count(stream) != 0) run(*stream);
  }
  if (waiting_ > 0) run_all();
}

void Streams::synchronize(Stream& stream) {
  while (!stream.queue.empty()) {
    if (run_front(stream, true)) continue;
    const std::shared_ptr<Event> event = stream.queue.front().event;
    run_until_happened(*event, stream.queue.front().generation);
  }
  if (waiting_ > 0) run_all();
}

void Streams::synchronize(Event& event) {
  run_until_happened(event, event.recorded);
  bury();
}

void Streams::synchronize_device(int device) {
  for (const auto& stream : defaults_) {
    if (stream->device == device) synchronize(*stream);
  }
  const std::vector<Stream*> now_live(live_.begin(), live_.end());
  for (Stream* stream : now_live) {
    if (live_.count(stream) != 0 && stream->device == device) synchronize(*stream);
  }
  bury();
}

void Streams::hold(Stream& stream, bool held) {
  stream.is_held = held;
  if (!held && waiting_ > 0) run_all();
  bury();
}

std::size_t Streams::step(Stream& stream, std::size_t operations) {
  std::size_t done = 0;
  while (done < operations && run_front(stream, true)) ++done;
  if (waiting_ > 0) run_all();
  bury();
  return done;
}

// ---- operations ----

Node* Streams::add_node(Stream& stream, Node::Kind kind, std::function<void()> work) {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->work = std::move(work);
  node->dependencies = stream.captured_last;
  Node* const added = node.get();
  stream.capture->graph->nodes.push_back(std::move(node));
  stream.captured_last = {added};
  return added;
}

cudaError_t Streams::enqueue(Stream& stream, Node::Kind kind, std::function<void()> work) {
  if (stream.capture != nullptr) {
    if (!stream.capture->is_valid) return cudaErrorStreamCaptureInvalidated;
    add_node(stream, kind, std::move(work));
    return cudaSuccess;
  }
  if (work == nullptr && stream.queue.empty()) return cudaSuccess;  // a kernel that does nothing, and nothing before it
  push(stream, {Operation::Kind::work, work != nullptr ? std::move(work) : [] {}, nullptr, 0});
  return cudaSuccess;
}

cudaError_t Streams::record(Stream& stream, const std::shared_ptr<Event>& event) {
  if (stream.capture != nullptr) {
    if (!stream.capture->is_valid) return cudaErrorStreamCaptureInvalidated;
    event->capture = stream.capture;
    event->captured_after = stream.captured_last;
    return cudaSuccess;
  }
  event->capture = nullptr;
  push(stream, {Operation::Kind::record, nullptr, event, ++event->recorded});
  return cudaSuccess;
}

cudaError_t Streams::wait(Stream& stream, const std::shared_ptr<Event>& event) {
  if (event->capture != nullptr && event->capture->is_valid && captures_.count(event->capture) != 0) {
    if (stream.capture != nullptr && stream.capture != event->capture) {
      stream.capture->is_valid = event->capture->is_valid = false;
      return cudaErrorStreamCaptureMerge;
    }
    if (stream.capture == nullptr) {  // the fork: this stream joins the capture
      stream.capture = event->capture;
      stream.capture->streams.insert(&stream);
      stream.captured_last.clear();
    }
    for (Node* node : event->captured_after) {
      if (std::find(stream.captured_last.begin(), stream.captured_last.end(), node) == stream.captured_last.end()) {
        stream.captured_last.push_back(node);
      }
    }
    return cudaSuccess;
  }
  if (stream.capture != nullptr) {
    if (event->recorded == 0) return cudaSuccess;
    stream.capture->is_valid = false;  // work outside of the capture cannot be waited for in it
    return cudaErrorStreamCaptureIsolation;
  }
  if (event->happened >= event->recorded && stream.queue.empty()) return cudaSuccess;
  push(stream, {Operation::Kind::wait, nullptr, event, event->recorded});
  return cudaSuccess;
}

// ---- capture ----

cudaError_t Streams::begin_capture(Stream& stream, cudaStreamCaptureMode mode, Graph* into) {
  if (stream.capture != nullptr) return cudaErrorIllegalState;
  if (live_.count(&stream) == 0) return cudaErrorStreamCaptureUnsupported;  // the default stream
  auto capture = std::make_shared<Capture>();
  capture->id = next_capture_++;
  capture->owns_graph = into == nullptr;
  capture->graph = into != nullptr ? into : new Graph;
  capture->mode = mode;
  capture->origin = &stream;
  capture->thread = std::this_thread::get_id();
  capture->streams.insert(&stream);
  stream.capture = capture;
  stream.captured_last.clear();
  captures_.insert(capture);
  return cudaSuccess;
}

cudaError_t Streams::end_capture(Stream& stream, Graph** graph) {
  const std::shared_ptr<Capture> capture = stream.capture;
  *graph = nullptr;
  if (capture == nullptr) return cudaErrorIllegalState;
  if (capture->origin != &stream) {
    capture->is_valid = false;
    return cudaErrorStreamCaptureUnmatched;
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  // Every branch must have come back: its last nodes are among those that the origin's last ones depend on.
  std::set<const Node*> reached;
  std::vector<const Node*> open(stream.captured_last.begin(), stream.captured_last.end());
  while (!open.empty()) {
    const Node* const node = open.back();
    open.pop_back();
    if (!reached.insert(node).second) continue;
    open.insert(open.end(), node->dependencies.begin(), node->dependencies.end());
  }
  bool is_joined = true;
  for (Stream* each : capture->streams) {
    for (const Node* node : each->captured_last) is_joined = is_joined && reached.count(node) != 0;
    each->capture = nullptr;
    each->captured_last.clear();
  }
  captures_.erase(capture);
  if (!capture->is_valid || !is_joined) {
    if (capture->owns_graph) delete capture->graph;
    return capture->is_valid ? cudaErrorStreamCaptureUnjoined : cudaErrorStreamCaptureInvalidated;
  }
  *graph = capture->graph;
  return cudaSuccess;
}

void Streams::launch(Stream& stream, const Graph& graph) {
  std::vector<std::function<void()>> work;
  for (const auto& node : graph.nodes) {
    if (node->work != nullptr) work.push_back(node->work);
  }
  push(stream, {Operation::Kind::work,
                [work = std::move(work)] {
                  for (const auto& each : work) each();
                },
                nullptr, 0});
}

cudaError_t Streams::check_allowed() {
  if (t_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  bool is_allowed = true;
  for (const std::shared_ptr<Capture>& capture : captures_) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    const bool is_mine = capture->thread == std::this_thread::get_id();
    const bool is_everybodys = capture->mode == cudaStreamCaptureModeGlobal && t_mode == cudaStreamCaptureModeGlobal;
    if (!is_mine && !is_everybodys) continue;
    capture->is_valid = false;
    is_allowed = false;
  }
  return is_allowed ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaStreamCaptureMode Streams::exchange_mode(cudaStreamCaptureMode mode) { return std::exchange(t_mode, mode); }

}  // namespace standin
