// Streams, events, captures and graphs.
//
// A stream is a queue of operations. What is enqueued runs at once if nothing stands before it; it waits when the
// stream is held, or behind a wait for an event that has not happened. Whoever synchronizes lets time pass: the queue
// is run down, held or not, and so are the streams that it waits for. Nothing here runs in the background, so that a
// test sees the same order each time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <vector>

namespace standin {

// What an event stands for: its latest record, numbered from 1, and how many of them have happened.
struct Event {
  std::uint64_t recorded = 0;
  std::uint64_t happened = 0;
  double seconds = 0;  // when the latest happened
  bool has_time = true;
  int device = 0;
  std::shared_ptr<struct Capture> capture;  // recorded in one: no query, no wait from outside
  std::vector<struct Node*> captured_after;
};

struct Operation {
  enum class Kind : std::uint8_t { work, record, wait } kind = Kind::work;
  std::function<void()> work;
  std::shared_ptr<Event> event;
  std::uint64_t generation = 0;
};

struct Node {
  enum class Kind : std::uint8_t { copy, fill, kernel, host, empty } kind = Kind::empty;
  std::function<void()> work;
  std::vector<Node*> dependencies;
};

struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;  // each after those that it depends on
  std::vector<struct UserObject*> objects;   // destroyed with the graph
};

struct UserObject {
  void* pointer = nullptr;
  void (*destroy)(void*) = nullptr;
  unsigned references = 0;
};

struct Capture {
  std::uint64_t id = 0;
  Graph* graph = nullptr;
  bool owns_graph = true;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool is_valid = true;
  struct Stream* origin = nullptr;
  std::thread::id thread;
  std::set<struct Stream*> streams;
};

struct Stream {
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  std::uint64_t number = 0;
  bool is_held = false;
  bool is_destroyed = false;  // its handle is invalid; its work goes on
  std::deque<Operation> queue;
  std::shared_ptr<Capture> capture;
  std::vector<Node*> captured_last;
};

class Streams {
 public:
  static Streams& instance();

  // The object behind a handle; the device's default stream for 0, 1 and 2. nullptr: there is none (any more).
  Stream* find(cudaStream_t handle);
  Stream* create(int device, unsigned flags, int priority);
  void destroy(Stream* stream);
  std::size_t live() const;

  // Work in a stream; in one that captures it becomes a node.
  cudaError_t enqueue(Stream& stream, Node::Kind kind, std::function<void()> work);
  cudaError_t record(Stream& stream, const std::shared_ptr<Event>& event);
  cudaError_t wait(Stream& stream, const std::shared_ptr<Event>& event);
  void synchronize(Stream& stream);
  void synchronize(Event& event);
  void synchronize_device(int device);

  // For tests: a held stream runs nothing but what step() lets through.
  void hold(Stream& stream, bool held);
  std::size_t step(Stream& stream, std::size_t operations);

  cudaError_t begin_capture(Stream& stream, cudaStreamCaptureMode mode, Graph* into);
  cudaError_t end_capture(Stream& stream, Graph** graph);
  void launch(Stream& stream, const Graph& graph);
  // For calls that a capture forbids. The error, and the captures that it spoils are invalid from now on.
  cudaError_t check_allowed();
  cudaStreamCaptureMode exchange_mode(cudaStreamCaptureMode mode);

 private:
  bool run_front(Stream& stream, bool even_if_held);
  void run_all();  // what can run in streams that waited
  void bury();     // the destroyed streams whose work is done; their handles may be given out again
  void run_until_happened(Event& event, std::uint64_t generation);
  void push(Stream& stream, Operation operation);
  Node* add_node(Stream& stream, Node::Kind kind, std::function<void()> work);

  std::vector<std::unique_ptr<Stream>> defaults_;
  std::set<Stream*> live_;
  std::size_t waiting_ = 0;  // operations in all queues
  std::uint64_t next_stream_ = 1;
  std::uint64_t next_capture_ = 1;
  std::set<std::shared_ptr<Capture>> captures_;
};

}  // namespace standin
