#include "backend/shared_ledger.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <filesystem>
#include <iterator>
#include <new>
#include <system_error>
#include <utility>

#include "common/errors.h"
#include "common/expects.h"
#include "common/text.h"

namespace mempool {
namespace {

constexpr std::uint32_t kKind = 1;
constexpr std::uint32_t kVersion = 3;
constexpr off_t kLocks = off_t{1} << 40;  // locks on slots lie far behind the file's end
constexpr off_t kMembers = kLocks - 1;    // shared by all who have the ledger, those without a slot yet included

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

enum class State : std::uint32_t { free, live, ended };

// When a process started, in ticks since the system did. 0 where it has ended, or /proc does not say. It allocates
// nothing.
std::uint64_t start_time_of(pid_t pid) noexcept {
  char text[1024];
  std::snprintf(text, sizeof text, "/proc/%d/stat", static_cast<int>(pid));
  const int file = open(text, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return 0;
  text[length] = 0;
  const char* field = std::strrchr(text, ')');  // the name of the program, field 2, may hold blanks
  if (field == nullptr || field[1] == 0) return 0;
  if (std::strchr("ZXx", field[2]) != nullptr) return 0;  // it waits for its parent
  for (int i = 2; i < 22 && field != nullptr; ++i) field = std::strchr(field + 1, ' ');
  return field != nullptr ? std::strtoull(field, nullptr, 10) : 0;
}

}  // namespace

// Its process writes it, and whoever sweeps it after that has ended.
struct alignas(64) SharedLedger::Slot {
  std::atomic<State> state{State::free};
  std::int32_t pid = 0;
  std::uint64_t start_time = 0;
  char name[48] = {};
  std::atomic<std::uint64_t> held[kMostDevices] = {};
  std::atomic<std::uint64_t> peak[kMostDevices] = {};
  std::atomic<std::uint64_t> resident[kMostDevices] = {};

  // Its process has lost its lock, but lives: it has closed all descriptors, as daemons do.
  bool is_running() const noexcept { return start_time != 0 && start_time_of(pid) == start_time; }
};

struct SharedLedger::Layout {
  SharedRegion::Header header{};
  pthread_mutex_t mutex{};  // robust, and shared among processes
  struct Device {
    char key[48] = {};
    std::atomic<std::uint64_t> limit{kNoLimit};
    std::atomic<std::uint64_t> first_limit{kNoLimit};
    std::atomic<bool> is_limited{false};  // somebody has set the limit, be it to none
    std::atomic<std::uint64_t> peak{0};
    std::atomic<std::uint64_t> outside{0};
    std::atomic<std::int64_t> looked_ms{INT64_MIN / 2};  // when somebody took the turn to look at it

    std::size_t most_held() const noexcept {
      const std::uint64_t most = limit.load();
      return most == kNoLimit ? most : most - std::min(most, outside.load());
    }
  } devices[kMostDevices];
  Slot slots[kMostProcesses];
  LedgerRows ended{};               // the counters of all processes that have ended
  LedgerRows rows[kMostProcesses];  // of each slot, and not in it: sums over the slots touch few pages

  LedgerRows& rows_of(const Slot& slot) noexcept { return rows[&slot - slots]; }
};

// Holds the mutex. Where its last owner died inside, nothing is half done: each change under it is one store.
class SharedLedger::Guard {
 public:
  explicit Guard(Layout& layout) noexcept : mutex_(layout.mutex) {
    if (pthread_mutex_lock(&mutex_) == EOWNERDEAD) pthread_mutex_consistent(&mutex_);
  }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
  ~Guard() { pthread_mutex_unlock(&mutex_); }

 private:
  pthread_mutex_t& mutex_;
};

namespace {

constexpr std::time_t kLeastAge = 60;  // seconds

SharedRegion::Header header_of(std::size_t bytes) {
  SharedRegion::Header header;
  header.kind = kKind;
  header.version = kVersion;
  header.bytes = bytes;
  return header;
}

}  // namespace

SharedLedger::SharedLedger(const std::string& folder, const std::string& name, const std::string& process)
    : region_(folder, name, header_of(sizeof(Layout)),
              [](void* memory) {
                auto* const layout = static_cast<Layout*>(memory);
                const SharedRegion::Header header = layout->header;
                new (layout) Layout;
                layout->header = header;
                pthread_mutexattr_t attributes;
                pthread_mutexattr_init(&attributes);
                pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
                pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
                pthread_mutex_init(&layout->mutex, &attributes);
                pthread_mutexattr_destroy(&attributes);
              }),
      process_(process) {
  region_.share_byte(kMembers);
  const Guard guard(layout());
  sweep();
  if (is_alone()) {
    // All who knew its limit have ended, perhaps without a chance to take the name away.
    for (Layout::Device& device : layout().devices) {
      device.key[0] = 0;
      device.limit.store(kNoLimit);
      device.first_limit.store(kNoLimit);
      device.is_limited.store(false);
      device.peak.store(0);
      device.outside.store(0);
      device.looked_ms.store(INT64_MIN / 2);
    }
    for (Slot& slot : layout().slots) slot.state.store(State::free);
    layout().ended = {};
  }
  if (!take_slot()) {
    throw ConfigError("The shared ledger " + region_.path() + " has " + std::to_string(kMostProcesses) +
                      " processes already: it has room for no more.");
  }
}

std::unique_ptr<SharedLedger> SharedLedger::join(const std::string& folder, const std::string& name,
                                                 const std::string& process) {
  for (;;) {
    std::unique_ptr<SharedLedger> ledger(new SharedLedger(folder, name, process));
    // Its last user may have taken the name away before this one had a slot: others would find another ledger.
    if (ledger->region_.is_named()) return ledger;
  }
}

SharedLedger::~SharedLedger() {
  Slot* const own = own_.exchange(nullptr);
  if (own == nullptr) return;
  const Guard guard(layout());
  end(*own);
  unlink_if_alone();
}

void SharedLedger::prepare_exit() noexcept {
  const Guard guard(layout());
  unlink_if_alone();
}

void SharedLedger::unlink_if_alone() noexcept {
  sweep();
  if (is_alone()) region_.unlink();
}

bool SharedLedger::is_alone() const noexcept {
  return !region_.is_locked(kMembers) &&
         std::none_of(std::begin(layout().slots), std::end(layout().slots),
                      [this](const Slot& slot) { return &slot != own_.load() && slot.state.load() == State::live; });
}

// A program may have closed all descriptors since: what they had locked is locked again.
void SharedLedger::ensure_open() noexcept {
  if (region_.is_open() || !region_.replace_file(open_as_member())) return;
  if (Slot* const own = own_.load()) region_.lock_byte(place_of(*own));
}

// A descriptor for this process or a child, which is a member by it. -1: there is none.
int SharedLedger::open_as_member() const noexcept {
  const int file = region_.open_anew();
  if (file >= 0) SharedRegion::share_byte(file, kMembers);
  return file;
}

// Where the lock on a slot is.
std::int64_t SharedLedger::place_of(const Slot& slot) const noexcept { return kLocks + (&slot - layout().slots); }

void SharedLedger::remove_ended(const std::string& folder) noexcept {
  std::error_code error;
  for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::filesystem::path& path = at->path();
    struct stat found {};
    if (lstat(path.c_str(), &found) != 0 || !S_ISREG(found.st_mode)) continue;
    if (std::time(nullptr) - found.st_mtime < kLeastAge) continue;  // another process may be making it
    try {
      SharedRegion region(folder, path.filename(), header_of(sizeof(Layout)), nullptr);
      Layout& layout = *static_cast<Layout*>(region.memory());
      const Guard guard(layout);
      bool is_used = region.is_locked(kMembers);
      for (const Slot& slot : layout.slots) {
        is_used = is_used || region.is_locked(kLocks + (&slot - layout.slots)) ||
                  (slot.state.load() == State::live && slot.is_running());
      }
      if (!is_used) region.unlink();
    } catch (const std::exception&) {  // of another version, or gone
    }
  }
}

bool SharedLedger::take_slot() noexcept {
  ensure_open();
  const auto pid = static_cast<std::int32_t>(getpid());
  const std::uint64_t start_time = start_time_of(pid);
  for (Slot& slot : layout().slots) {  // of this very process, before it replaced its program by exec
    const bool is_left = slot.state.load() == State::live && slot.pid == pid && slot.start_time == start_time;
    if (is_left && !region_.is_locked(place_of(slot))) end(slot);
  }
  for (const State wanted : {State::free, State::ended}) {
    for (Slot& slot : layout().slots) {
      if (slot.state.load() != wanted || !region_.lock_byte(place_of(slot))) continue;
      slot.pid = pid;
      slot.start_time = start_time;
      copy_text(slot.name, process_);
      for (auto& held : slot.held) held.store(0);
      for (auto& peak : slot.peak) peak.store(0);
      for (auto& resident : slot.resident) resident.store(0);
      layout().rows_of(slot) = {};
      slot.state.store(State::live);
      own_.store(&slot);
      return true;
    }
  }
  return false;
}

void SharedLedger::end(Slot& slot) noexcept {
  layout().ended.add_counters(layout().rows_of(slot));
  layout().rows_of(slot) = {};
  for (auto& held : slot.held) held.store(0);
  slot.state.store(State::ended);
}

void SharedLedger::sweep() noexcept {
  ensure_open();
  touch();  // a process that holds nothing, or whose memory does not decay, has no thread that does
  for (Slot& slot : layout().slots) {
    if (&slot == own_.load() || slot.state.load() != State::live) continue;
    if (region_.is_locked(place_of(slot)) || slot.is_running()) continue;
    end(slot);
  }
}

std::size_t SharedLedger::sum(int device) const noexcept {
  std::size_t out = 0;
  for (const Slot& slot : layout().slots) {
    if (slot.state.load(std::memory_order_relaxed) == State::live) out += slot.held[device].load();
  }
  return out;
}

int SharedLedger::device(const std::string& key) noexcept {
  const Guard guard(layout());
  for (int i = 0; i < kMostDevices; ++i) {
    Layout::Device& device = layout().devices[i];
    if (device.key[0] == 0) copy_text(device.key, key);
    if (key.compare(0, sizeof device.key - 1, device.key) == 0) return i;
  }
  return -1;
}

std::vector<std::string> SharedLedger::keys() const {
  std::vector<std::string> out;
  const Guard guard(layout());
  for (const Layout::Device& device : layout().devices) {
    if (device.key[0] != 0) out.emplace_back(device.key);
  }
  return out;
}

bool SharedLedger::try_hold(int device, std::size_t bytes) noexcept {
  Layout::Device& of = layout().devices[device];
  const Guard guard(layout());
  if (own_.load() == nullptr && !take_slot()) return false;
  touch();
  const auto fits = [&] {
    const std::size_t held = sum(device);
    const std::size_t most = of.most_held();
    return held <= most && bytes <= most - held;
  };
  if (!fits()) {
    sweep();
    if (!fits()) return false;
  }
  Slot& own = *own_.load();
  const std::uint64_t held = own.held[device].fetch_add(bytes) + bytes;
  own.peak[device].store(std::max<std::uint64_t>(own.peak[device].load(), held));
  of.peak.store(std::max<std::uint64_t>(of.peak.load(), sum(device)));
  return true;
}

bool SharedLedger::has_place() noexcept {
  const Guard guard(layout());
  return own_.load() != nullptr || take_slot();
}

void SharedLedger::unhold(int device, std::size_t bytes) noexcept {
  Slot* const own = own_.load();
  if (own == nullptr) return;  // the ledger was left
  // Less is there where others took this process for dead and swept its slot.
  std::uint64_t held = own->held[device].load();
  while (!own->held[device].compare_exchange_weak(held, held - std::min<std::uint64_t>(held, bytes))) continue;
}

bool SharedLedger::set_limit(int device, std::size_t limit) noexcept {
  const Guard guard(layout());
  return set_limit_locked(device, limit);
}

bool SharedLedger::set_first_limit(int device, std::size_t limit) noexcept {
  const Guard guard(layout());
  Layout::Device& of = layout().devices[device];
  if (of.first_limit.load() != kNoLimit) return true;
  if (!of.is_limited.load() && !set_limit_locked(device, limit)) return false;
  of.first_limit.store(limit);
  return true;
}

std::size_t SharedLedger::first_limit(int device) const noexcept { return layout().devices[device].first_limit.load(); }

bool SharedLedger::set_limit_locked(int device, std::size_t limit) noexcept {
  sweep();
  if (sum(device) > limit) return false;
  layout().devices[device].limit.store(limit);
  layout().devices[device].is_limited.store(true);
  return true;
}

std::size_t SharedLedger::most_held(int device) const noexcept { return layout().devices[device].most_held(); }

std::size_t SharedLedger::limit(int device) const noexcept { return layout().devices[device].limit.load(); }

bool SharedLedger::take_turn(int device, std::int64_t now_ms, std::int64_t since_ms) noexcept {
  std::atomic<std::int64_t>& looked = layout().devices[device].looked_ms;
  std::int64_t last = looked.load();
  return last < since_ms && looked.compare_exchange_strong(last, now_ms);
}

void SharedLedger::set_outside(int device, std::size_t bytes) noexcept {
  layout().devices[device].outside.store(bytes);
}

std::size_t SharedLedger::outside(int device) const noexcept { return layout().devices[device].outside.load(); }

void SharedLedger::tell_resident(int device, std::size_t bytes) noexcept {
  if (Slot* const own = own_.load()) own->resident[device].store(bytes);
}

std::size_t SharedLedger::resident(int device) const noexcept {
  std::size_t out = 0;
  for (const Slot& slot : layout().slots) {
    if (slot.state.load(std::memory_order_relaxed) == State::live) out += slot.resident[device].load();
  }
  return out;
}

std::size_t SharedLedger::held(int device) noexcept {
  const Guard guard(layout());
  sweep();
  return sum(device);
}

std::size_t SharedLedger::peak(int device) const noexcept { return layout().devices[device].peak.load(); }

std::vector<SharedLedger::Process> SharedLedger::processes(int device) {
  std::vector<Process> out;
  out.reserve(kMostProcesses);
  const Guard guard(layout());
  sweep();
  for (const Slot& slot : layout().slots) {
    const State state = slot.state.load();
    if (state == State::free) continue;
    out.push_back({slot.pid, slot.start_time, slot.name, state == State::live, slot.held[device].load(),
                   slot.peak[device].load()});
  }
  return out;
}

void SharedLedger::tell_metrics(const std::vector<LedgerRows::OfDevice>& told) noexcept {
  const Guard guard(layout());
  if (own_.load() == nullptr && !take_slot()) return;
  layout().rows_of(*own_.load()).tell(told);
}

std::vector<SharedLedger::Worker> SharedLedger::read_metrics() {
  std::vector<std::pair<Worker, LedgerRows>> found;
  {
    const Guard guard(layout());
    sweep();
    found.emplace_back(Worker{}, layout().ended);
    for (const Slot& slot : layout().slots) {
      if (slot.state.load() != State::live) continue;
      found.emplace_back(Worker{static_cast<int>(&slot - layout().slots), slot.pid, slot.name}, layout().rows_of(slot));
    }
  }
  std::vector<Worker> out;
  for (auto& [worker, rows] : found) {
    worker.devices = rows.read();
    out.push_back(std::move(worker));
  }
  return out;
}

void SharedLedger::after_fork_in_child() noexcept {
  own_.store(nullptr);
  const int opened = std::exchange(childs_file_, -1);
  region_.replace_file(opened >= 0 ? opened : open_as_member());
}

void SharedLedger::before_fork() noexcept { childs_file_ = open_as_member(); }

void SharedLedger::after_fork_in_parent() noexcept {
  if (const int opened = std::exchange(childs_file_, -1); opened >= 0) close(opened);
}

}  // namespace mempool
