// The runtime's calls for streams, events, captures and graphs.
#include <algorithm>
#include <utility>

#include "calls.h"
#include "devices.h"
#include "streams.h"

using namespace standin;

namespace {

using EventPointer = std::shared_ptr<Event>;

EventPointer& event_of(cudaEvent_t handle) { return *reinterpret_cast<EventPointer*>(handle); }
Graph& graph_of(cudaGraph_t handle) { return *reinterpret_cast<Graph*>(handle); }
// What was instantiated is a graph of its own.
Graph& graph_of(cudaGraphExec_t handle) { return *reinterpret_cast<Graph*>(handle); }
cudaGraphNode_t handle_of(Node* node) { return reinterpret_cast<cudaGraphNode_t>(node); }

void release(UserObject* object, unsigned count) {
  object->references -= std::min(count, object->references);
  if (object->references > 0) return;
  object->destroy(object->pointer);
  delete object;
}

// Runs `action` on the stream of a handle.
template <typename Action>
cudaError_t with(cudaStream_t handle, Action action) {
  Stream* const stream = Streams::instance().find(handle);
  return remember(stream != nullptr ? action(*stream) : cudaErrorInvalidResourceHandle);
}

cudaError_t create_event(cudaEvent_t* event, unsigned flags) {
  auto made = std::make_shared<Event>();
  made->has_time = (flags & cudaEventDisableTiming) == 0;
  made->device = current_device();
  *event = reinterpret_cast<cudaEvent_t>(new EventPointer(std::move(made)));
  return cudaSuccess;
}

cudaError_t create_stream(cudaStream_t* stream, unsigned flags, int priority) {
  *stream = reinterpret_cast<cudaStream_t>(Streams::instance().create(current_device(), flags, priority));
  return cudaSuccess;
}

cudaError_t host_function(cudaStream_t handle, std::function<void()> work) {
  return with(handle,
              [&](Stream& stream) { return Streams::instance().enqueue(stream, Node::Kind::host, std::move(work)); });
}

}  // namespace

extern "C" {

// ---- streams ----

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  STANDIN_RUNTIME(cudaStreamCreate)
  return create_stream(stream, cudaStreamDefault, 0);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  STANDIN_RUNTIME(cudaStreamCreateWithFlags)
  return create_stream(stream, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  STANDIN_RUNTIME(cudaStreamCreateWithPriority)
  return create_stream(stream, flags, priority);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  STANDIN_RUNTIME(cudaStreamDestroy)
  return with(handle, [](Stream& stream) {
    Streams::instance().destroy(&stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  STANDIN_RUNTIME(cudaStreamGetPriority)
  return with(handle, [&](Stream& stream) {
    *priority = stream.priority;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  STANDIN_RUNTIME(cudaStreamQuery)
  return with(handle, [](Stream& stream) { return stream.queue.empty() ? cudaSuccess : cudaErrorNotReady; });
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  STANDIN_RUNTIME(cudaStreamSynchronize)
  STANDIN_LOG("cudaStreamSynchronize(%p)", static_cast<void*>(handle));
  return with(handle, [](Stream& stream) {
    if (const cudaError_t refused = Streams::instance().check_allowed()) return refused;
    Streams::instance().synchronize(stream);
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceSynchronize() {
  STANDIN_RUNTIME(cudaDeviceSynchronize)
  STANDIN_LOG("cudaDeviceSynchronize()");
  if (const cudaError_t refused = Streams::instance().check_allowed()) return remember(refused);
  Streams::instance().synchronize_device(current_device());
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  STANDIN_RUNTIME(cudaLaunchHostFunc)
  return host_function(stream, [=] { function(data); });
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned) {
  STANDIN_RUNTIME(cudaStreamAddCallback)
  return host_function(stream, [=] { function(stream, cudaSuccess, data); });
}

// ---- events ----

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  STANDIN_RUNTIME(cudaEventCreate)
  return create_event(event, cudaEventDefault);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  STANDIN_RUNTIME(cudaEventCreateWithFlags)
  return create_event(event, flags);
}
// Of another process nothing is known: its events have always happened.
cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* handle, cudaEvent_t) {
  STANDIN_RUNTIME(cudaIpcGetEventHandle)
  *handle = {};
  return cudaSuccess;
}
cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event, cudaIpcEventHandle_t) {
  STANDIN_RUNTIME(cudaIpcOpenEventHandle)
  return create_event(event, cudaEventDisableTiming);
}
// Operations that are enqueued keep what they need of it.
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  STANDIN_RUNTIME(cudaEventDestroy)
  delete &event_of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  STANDIN_RUNTIME(cudaEventRecord)
  return with(handle, [&](Stream& stream) { return Streams::instance().record(stream, event_of(event)); });
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned) {
  STANDIN_RUNTIME(cudaEventRecordWithFlags)
  return with(handle, [&](Stream& stream) { return Streams::instance().record(stream, event_of(event)); });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  STANDIN_RUNTIME(cudaStreamWaitEvent)
  return with(handle, [&](Stream& stream) { return Streams::instance().wait(stream, event_of(event)); });
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  STANDIN_RUNTIME(cudaEventQuery)
  if (const cudaError_t refused = Streams::instance().check_allowed()) return remember(refused);
  const Event& event = *event_of(handle);
  if (event.capture != nullptr) return remember(cudaErrorCapturedEvent);
  return event.happened >= event.recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  STANDIN_RUNTIME(cudaEventSynchronize)
  STANDIN_LOG("cudaEventSynchronize(%p)", static_cast<void*>(handle));
  if (const cudaError_t refused = Streams::instance().check_allowed()) return remember(refused);
  const EventPointer event = event_of(handle);
  if (event->capture != nullptr) return remember(cudaErrorCapturedEvent);
  Streams::instance().synchronize(*event);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  STANDIN_RUNTIME(cudaEventElapsedTime)
  const Event& from = *event_of(start);
  const Event& to = *event_of(stop);
  if (!from.has_time || !to.has_time || from.recorded == 0 || to.recorded == 0) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  if (from.happened < from.recorded || to.happened < to.recorded) return cudaErrorNotReady;
  *milliseconds = static_cast<float>((to.seconds - from.seconds) * 1e3);
  return cudaSuccess;
}

// ---- capture ----

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  STANDIN_RUNTIME(cudaStreamBeginCapture)
  STANDIN_LOG("cudaStreamBeginCapture(%p, %d)", static_cast<void*>(handle), static_cast<int>(mode));
  return with(handle, [&](Stream& stream) { return Streams::instance().begin_capture(stream, mode, nullptr); });
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t handle, cudaGraph_t graph, const cudaGraphNode_t*,
                                          const cudaGraphEdgeData*, std::size_t, cudaStreamCaptureMode mode) {
  STANDIN_RUNTIME(cudaStreamBeginCaptureToGraph)
  return with(handle,
              [&](Stream& stream) { return Streams::instance().begin_capture(stream, mode, &graph_of(graph)); });
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  STANDIN_RUNTIME(cudaStreamEndCapture)
  return with(handle, [&](Stream& stream) {
    Graph* made = nullptr;
    const cudaError_t error = Streams::instance().end_capture(stream, &made);
    *graph = reinterpret_cast<cudaGraph_t>(made);
    STANDIN_LOG("cudaStreamEndCapture(%p) = %d", static_cast<void*>(handle), error);
    return error;
  });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  STANDIN_RUNTIME(cudaStreamIsCapturing)
  return with(handle, [&](Stream& stream) {
    *status = stream.capture == nullptr  ? cudaStreamCaptureStatusNone
              : stream.capture->is_valid ? cudaStreamCaptureStatusActive
                                         : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, std::size_t* count) {
  STANDIN_RUNTIME(cudaStreamGetCaptureInfo)
  return with(handle, [&](Stream& stream) {
    const Capture* const capture = stream.capture.get();
    *status = capture == nullptr  ? cudaStreamCaptureStatusNone
              : capture->is_valid ? cudaStreamCaptureStatusActive
                                  : cudaStreamCaptureStatusInvalidated;
    if (edges != nullptr) *edges = nullptr;
    if (*status != cudaStreamCaptureStatusActive) return cudaSuccess;
    if (id != nullptr) *id = capture->id;
    if (graph != nullptr) *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
    if (dependencies != nullptr) {
      *dependencies = reinterpret_cast<const cudaGraphNode_t*>(stream.captured_last.data());
    }
    if (count != nullptr) *count = stream.captured_last.size();
    return cudaSuccess;
  });
}
cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t handle, cudaGraphNode_t* nodes, const cudaGraphEdgeData*,
                                                std::size_t count, unsigned flags) {
  STANDIN_RUNTIME(cudaStreamUpdateCaptureDependencies)
  return with(handle, [&](Stream& stream) {
    if (stream.capture == nullptr) return cudaErrorIllegalState;
    if (flags == cudaStreamSetCaptureDependencies) stream.captured_last.clear();
    for (std::size_t i = 0; i < count; ++i) stream.captured_last.push_back(reinterpret_cast<Node*>(nodes[i]));
    return cudaSuccess;
  });
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  STANDIN_RUNTIME(cudaThreadExchangeStreamCaptureMode)
  *mode = Streams::instance().exchange_mode(*mode);
  return cudaSuccess;
}

// ---- graphs ----

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t* nodes, std::size_t* count) {
  STANDIN_RUNTIME(cudaGraphGetNodes)
  const Graph& graph = graph_of(handle);
  for (std::size_t i = 0; nodes != nullptr && i < std::min(*count, graph.nodes.size()); ++i) {
    nodes[i] = handle_of(graph.nodes[i].get());
  }
  *count = graph.nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* found, cudaGraphEdgeData*,
                                         std::size_t* count) {
  STANDIN_RUNTIME(cudaGraphNodeGetDependencies)
  const std::vector<Node*>& dependencies = reinterpret_cast<Node*>(node)->dependencies;
  for (std::size_t i = 0; found != nullptr && i < std::min(*count, dependencies.size()); ++i) {
    found[i] = handle_of(dependencies[i]);
  }
  *count = dependencies.size();
  return cudaSuccess;
}
cudaError_t cudaGraphAddNode(cudaGraphNode_t* made, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                             const cudaGraphEdgeData*, std::size_t count, cudaGraphNodeParams*) {
  STANDIN_RUNTIME(cudaGraphAddNode)
  auto node = std::make_unique<Node>();
  for (std::size_t i = 0; i < count; ++i) node->dependencies.push_back(reinterpret_cast<Node*>(dependencies[i]));
  *made = handle_of(node.get());
  graph_of(graph).nodes.push_back(std::move(node));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  STANDIN_RUNTIME(cudaGraphInstantiateWithFlags)
  auto copy = std::make_unique<Graph>();
  for (const auto& node : graph_of(graph).nodes) {
    copy->nodes.push_back(std::make_unique<Node>());
    copy->nodes.back()->kind = node->kind;
    copy->nodes.back()->work = node->work;
  }
  *made = reinterpret_cast<cudaGraphExec_t>(copy.release());
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  STANDIN_RUNTIME(cudaGraphInstantiate)
  return cudaGraphInstantiateWithFlags(made, graph, 0);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t handle) {
  STANDIN_RUNTIME(cudaGraphLaunch)
  return with(handle, [&](Stream& stream) {
    Streams::instance().launch(stream, graph_of(graph));
    return cudaSuccess;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
  STANDIN_RUNTIME(cudaGraphDestroy)
  Graph* const graph = &graph_of(handle);
  for (UserObject* object : graph->objects) release(object, 1);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  STANDIN_RUNTIME(cudaGraphExecDestroy)
  delete &graph_of(graph);
  return cudaSuccess;
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy, unsigned references,
                                 unsigned) {
  STANDIN_RUNTIME(cudaUserObjectCreate)
  *object = reinterpret_cast<cudaUserObject_t>(new UserObject{pointer, destroy, references});
  return cudaSuccess;
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  STANDIN_RUNTIME(cudaUserObjectRelease)
  release(reinterpret_cast<UserObject*>(object), count);
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t handle, unsigned count, unsigned flags) {
  STANDIN_RUNTIME(cudaGraphRetainUserObject)
  auto* const object = reinterpret_cast<UserObject*>(handle);
  if ((flags & cudaGraphUserObjectMove) == 0) object->references += count;
  for (unsigned i = 0; i < count; ++i) graph_of(graph).objects.push_back(object);
  return cudaSuccess;
}

}  // extern "C"
