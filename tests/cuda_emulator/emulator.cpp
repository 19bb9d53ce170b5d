// The scheduler of the emulator: fibers, barriers, asynchronous copies.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
inline void __sanitizer_start_switch_fiber(void**, const void*, std::size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*) {}
#endif

namespace emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = std::size_t{256} << 10;
constexpr unsigned char kGarbage = 0xA5;
constexpr std::size_t kResident = 3;  // blocks at a time

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
  void land() const {
    unsigned char content[kCopyBytes] = {};
    std::memcpy(content, from, bytes);
    std::memcpy(to, content, sizeof(content));
  }
};

enum class State : std::uint8_t { ready, waits, done };

struct Block;

struct Fiber {
  ucontext_t context = {};
  void* fake_stack = nullptr;
  char* stack = nullptr;
  Block* block = nullptr;
  Index index;
  unsigned number = 0;
  State state = State::ready;
  Site site = {"", 0};  // where it waits
  unsigned exchanges = 0;
  std::vector<Copy> copies;
  std::deque<std::vector<Copy>> groups;
};

struct Barrier {
  unsigned arrived = 0;
  Site site = {"", 0};
};

struct Warp {
  Barrier barrier;
  // Two of them, in turn: a lane can be one exchange ahead of another that has still to read.
  alignas(16) unsigned char operands[2][kWarp][kOperandBytes];
};

struct Block {
  Index index;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<unsigned char> shared;  // of just the size that was asked for: sanitizers watch its end
};

struct Machine {
  Schedule schedule;
  std::mt19937 random;
  std::vector<char*> stacks;
  Index grid, block_size;
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  std::vector<Block> resident;
  Fiber* current = nullptr;
  ucontext_t scheduler = {};
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_bytes = 0;
  std::string error;
  std::exception_ptr thrown;
};
Machine machine;

std::string text(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

// Back to the scheduler, until that comes here again.
void leave(bool for_ever) {
  Fiber& self = *machine.current;
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &self.fake_stack, machine.scheduler_stack,
                                 machine.scheduler_bytes);
  swapcontext(&self.context, &machine.scheduler);
  __sanitizer_finish_switch_fiber(self.fake_stack, &machine.scheduler_stack, &machine.scheduler_bytes);
}

[[noreturn]] void leave_for_ever() {
  machine.current->state = State::done;
  while (true) leave(true);
}

void run_fiber() {
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_bytes);
  try {
    (*machine.body)();
  } catch (...) {
    machine.thrown = std::current_exception();
  }
  leave_for_ever();
}

void enter(Fiber& fiber) {
  machine.current = &fiber;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fiber.stack, kStackBytes);
  swapcontext(&machine.scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  machine.current = nullptr;
  if (machine.thrown) std::rethrow_exception(std::exchange(machine.thrown, nullptr));
  if (!machine.error.empty()) throw Error(std::string("kernel ") + machine.kernel + ": " + machine.error);
}

std::vector<unsigned> in_order(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0U);
  if (machine.schedule.order == Order::reversed) std::reverse(order.begin(), order.end());
  if (machine.schedule.order == Order::random) std::shuffle(order.begin(), order.end(), machine.random);
  return order;
}

void report(const Site& site, const std::string& message) { machine.error = text(site) + ": " + message; }

void report_divergence(const char* kind, const Site& other, const Site& site) {
  report(site, std::string("divergent ") + kind + ": other threads wait at " + text(other));
}

// Waits for `count` threads at one place. The last one lets the others go.
void arrive(Block& block, Barrier& barrier, unsigned first, unsigned count, const char* kind, const Site& site) {
  Fiber& self = *machine.current;
  if (barrier.arrived == 0) {
    barrier.site = site;
  } else if (barrier.site.line != site.line || std::strcmp(barrier.site.file, site.file) != 0) {
    report_divergence(kind, barrier.site, site);
    leave_for_ever();
  }
  if (++barrier.arrived < count) {
    self.state = State::waits;
    self.site = site;
    leave(false);
    return;
  }
  barrier.arrived = 0;
  for (unsigned i = first; i < first + count; ++i) block.fibers[i].state = State::ready;
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, unsigned> places;
  for (const Block& block : machine.resident) {
    for (const Fiber& fiber : block.fibers) {
      ++places[fiber.state == State::done ? "ended" : "wait at " + text(fiber.site)];
    }
  }
  std::string message = std::string("kernel ") + machine.kernel + ": deadlock, of its threads";
  for (const auto& [place, count] : places) message += " " + std::to_string(count) + " " + place + ";";
  throw Error(message);
}

// As far as the lanes of a warp come without other warps.
bool advance(Block& block, unsigned warp) {
  bool any = false;
  for (bool again = true; again;) {
    again = false;
    for (const unsigned lane : in_order(kWarp)) {
      Fiber& fiber = block.fibers[warp * kWarp + lane];
      if (fiber.state != State::ready) continue;
      enter(fiber);
      any = again = true;
    }
  }
  return any;
}

void prepare(Fiber& fiber, Block& block, unsigned number, char* stack) {
  const Index& size = machine.block_size;
  fiber.block = &block;
  fiber.number = number;
  fiber.index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
  fiber.stack = stack;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
}

char* stack_of(std::size_t number) {
  while (machine.stacks.size() <= number) {
    void* const stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw Error("no memory for the stack of a thread");
    machine.stacks.push_back(static_cast<char*>(stack));
  }
  return machine.stacks[number];
}

void prepare(Block& block, std::size_t place, unsigned number, unsigned threads, std::size_t shared_bytes) {
  const Index& grid = machine.grid;
  block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  block.fibers.resize(threads);
  block.warps.resize(threads / kWarp);
  block.shared.assign(shared_bytes, kGarbage);
  for (unsigned i = 0; i < threads; ++i) prepare(block.fibers[i], block, i, stack_of(place * threads + i));
}

bool is_done(const Block& block) {
  return std::all_of(block.fibers.begin(), block.fibers.end(),
                     [](const Fiber& fiber) { return fiber.state == State::done; });
}

// One warp after the other, or at random: then some come far ahead.
void run_resident() {
  const auto warps = static_cast<unsigned>(machine.resident.front().warps.size());
  const auto all = static_cast<unsigned>(machine.resident.size()) * warps;
  while (!std::all_of(machine.resident.begin(), machine.resident.end(), is_done)) {
    bool any = false;
    for (const unsigned warp : in_order(all)) {
      any |= advance(machine.resident[warp / warps], warp % warps);
      if (any && machine.schedule.order == Order::random) break;
    }
    if (!any) report_deadlock();
  }
}

}  // namespace

void set_schedule(const Schedule& schedule) {
  machine.schedule = schedule;
  machine.random.seed(schedule.seed);
}

void launch(const char* kernel, const Index& grid, const Index& block, std::size_t shared_bytes,
            const std::function<void()>& body) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || threads % kWarp != 0)
    throw Error("a block is of whole warps, 1024 threads at most");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) throw Error("no such grid");
  if (shared_bytes > 227 * 1024) throw Error("a block has at most 227 KiB of shared memory");
  machine.kernel = kernel;
  machine.grid = grid;
  machine.block_size = block;
  machine.body = &body;
  machine.error.clear();
  const std::vector<unsigned> order = in_order(grid.x * grid.y * grid.z);
  for (std::size_t first = 0; first < order.size(); first += kResident) {
    const std::size_t count = std::min(kResident, order.size() - first);
    std::vector<Block>(count).swap(machine.resident);
    for (std::size_t i = 0; i < count; ++i) {
      prepare(machine.resident[i], i, order[first + i], threads, shared_bytes);
    }
    run_resident();
  }
}

const Index& thread_index() { return machine.current->index; }
const Index& block_index() { return machine.current->block->index; }
const Index& block_size() { return machine.block_size; }
const Index& grid_size() { return machine.grid; }
unsigned char* dynamic_shared() { return machine.current->block->shared.data(); }
unsigned lane() { return machine.current->number % kWarp; }

void block_barrier(const Site& site) {
  Block& block = *machine.current->block;
  arrive(block, block.barrier, 0, static_cast<unsigned>(block.fibers.size()), "barrier of a block", site);
}

void warp_barrier(unsigned mask, const Site& site) {
  if (mask != 0xFFFFFFFFU) fail(site, "only whole warps are emulated");
  const unsigned warp = machine.current->number / kWarp;
  Block& block = *machine.current->block;
  arrive(block, block.warps[warp].barrier, warp * kWarp, kWarp, "operation of a warp", site);
}

const unsigned char* exchange(unsigned mask, const void* operand, std::size_t bytes, const Site& site) {
  Fiber& self = *machine.current;
  auto& operands = self.block->warps[self.number / kWarp].operands[self.exchanges++ % 2];
  std::memcpy(operands[lane()], operand, bytes);
  warp_barrier(mask, site);
  return operands[0];
}

void copy_async(void* to, const void* from, std::size_t bytes) {
  const Site site = {"an asynchronous copy", 0};
  if (bytes > kCopyBytes) fail(site, "more than 16 bytes");
  if (reinterpret_cast<std::uintptr_t>(to) % kCopyBytes != 0) fail(site, "its destination is not aligned");
  if (bytes > 0 && reinterpret_cast<std::uintptr_t>(from) % kCopyBytes != 0) fail(site, "its source is not aligned");
  const Copy copy = {to, from, bytes};
  if (machine.schedule.order == Order::random && machine.random() % 2 == 0) return copy.land();
  machine.current->copies.push_back(copy);
}

void commit_copies() {
  Fiber& self = *machine.current;
  self.groups.push_back(std::exchange(self.copies, {}));
}

void wait_for_copies(std::size_t left) {
  Fiber& self = *machine.current;
  for (; self.groups.size() > left; self.groups.pop_front()) {
    for (const Copy& copy : self.groups.front()) copy.land();
  }
}

void fail(const Site& site, const char* message) {
  report(site, message);
  leave_for_ever();
}

}  // namespace emulator
