#include "torch/cuda_switch.h"

#include <c10/core/Allocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include "common/errors.h"
#include "common/options.h"
#include "torch/cuda_capture.h"
#include "torch/cuda_fronts.h"

namespace mempool::torch_cuda {
namespace {

// All of it immortal: tensors may outlive static destruction.
struct Parts {
  Parts(const std::string& conf, TorchAllocator& before)
      : earlier(before), ours(conf, earlier), mempool_serves(ours, earlier), earlier_serves(ours, earlier) {}
  Earlier earlier;
  CudaAllocator ours;
  MempoolServes mempool_serves;
  EarlierServes earlier_serves;
};

constexpr const char* kEnable = "enable(\"cuda\")";

std::atomic<Parts*> g_parts{nullptr};
std::mutex g_unheard_mutex;
std::optional<std::string> g_unheard;  // settings that torch was given while mempool did not serve

// A thread that has read the object before goes on with it: either object takes any call.
void put(Front& front) {
  cca::allocator.store(&front);
  c10::SetAllocator(c10::DeviceType::CUDA, &front, /*priority=*/255);  // what torch.accelerator asks is another place
}

// torch has one place for its CUDA allocator, and others may put theirs there, too.
void check_in_place(const Parts& parts) {
  const TorchAllocator* const there = cca::get();
  if (there == &parts.mempool_serves || there == &parts.earlier_serves) return;
  if (there == &parts.earlier.get()) return;  // the first switch has failed
  throw PoolStateError(
      "mempool: another allocator (" + cca::get()->name() +
      ") has taken mempool's place in torch since mempool was enabled for CUDA. A switch would drop it, "
      "and with it what it knows of its blocks. Put it in place before mempool.");
}

// Captures that mempool has not seen begin, and threads that a private pool serves.
void check_before_first(Earlier& earlier) {
  if (const int device = captured_device(earlier.get()); device >= 0) refuse_in_capture(device, kEnable);
  if (earlier.is_routing()) {
    throw PoolStateError(
        "mempool: this thread is in torch.cuda.use_mem_pool, of a pool that torch's own allocator has made. Call "
        "mempool.enable(\"cuda\") outside of it.");
  }
}

// Empties the cache of the earlier allocator, and takes over the limits that it was given. What it holds counts.
void take_over(Parts& parts) {
  if (!parts.earlier.has_served()) return;
  parts.earlier.try_empty_cache();
  parts.ours.enable(parts.earlier->isEnabled());
  for (int i = 0; i < parts.ours.device_count(); ++i) {
    double fraction = 1;
    try {
      fraction = parts.earlier->getMemoryFraction(static_cast<c10::DeviceIndex>(i));
    } catch (const c10::Error&) {  // it has none
    }
    if (fraction >= 1 && parts.earlier.held_bytes(i) == 0) continue;
    Ledger& ledger = parts.ours.device_at(i).core.ledger();
    if (fraction < 1) ledger.force_limit(std::min(ledger.limit(), limit_of_fraction(i, fraction)));
  }
}

std::string note_on_history(Earlier& earlier) {
  try {
    if (!earlier->isHistoryEnabled()) return "";
  } catch (const c10::Error&) {  // it has none
    return "";
  }
  return "torch was recording its memory history, and mempool cannot take over how: call "
         "torch.cuda.memory._record_memory_history() again. Observers of out-of-memory errors and trackers of "
         "allocations that were attached before hear of what torch's own allocator does only: attach them again.";
}

void hear(const std::string& text, const SettingsListener& listener) {
  if (is_mempool_serving()) return listener(text);
  const std::lock_guard guard(g_unheard_mutex);
  g_unheard = text;
}

// Once: torch's settings, then what it has in place with them.
Parts& install(const std::string& conf, const SettingsListener& on_settings) {
  const std::string settings = read_settings(*cca::get());
  auto made = std::make_unique<Parts>(conf, *cca::get());
  if (made->earlier.has_served()) {
    check_before_first(made->earlier);
    made->ours.init(c10::cuda::device_count());
  }
  if (!settings.empty()) on_settings(settings);
  Parts& parts = *made.release();
  set_installed(parts.ours);
  follow_settings([on_settings](const std::string& text) { hear(text, on_settings); });
  g_parts.store(&parts);
  return parts;
}

void hear_what_was_missed(const SettingsListener& listener) {
  std::optional<std::string> unheard;
  {
    const std::lock_guard guard(g_unheard_mutex);
    unheard.swap(g_unheard);
  }
  if (unheard.has_value()) listener(*unheard);
}

}  // namespace

bool is_mempool_serving() noexcept {
  const Parts* const parts = g_parts.load();
  return parts != nullptr && cca::get() == &parts->mempool_serves;
}

std::string serve_from_mempool(const std::string& conf, const SettingsListener& on_settings) {
  if (is_mempool_serving()) return "";
  Options checked;
  parse_conf(checked, conf, 1 << 20);
  Parts* const known = g_parts.load();
  if (known != nullptr) check_in_place(*known);
  int device = 0;
  if (known != nullptr && known->ours.is_capturing(device)) refuse_in_capture(device, kEnable);
  if (known != nullptr) known->ours.set_conf(conf);
  Parts& parts = known != nullptr ? *known : install(conf, on_settings);
  take_over(parts);
  put(parts.mempool_serves);
  parts.ours.recount();  // what other threads have asked for until then
  hear_what_was_missed(on_settings);
  return known == nullptr && parts.earlier.has_served() ? note_on_history(parts.earlier) : "";
}

void serve_from_earlier() {
  if (!is_mempool_serving()) return;
  Parts& parts = *g_parts.load();
  int device = 0;
  if (parts.ours.is_capturing(device)) refuse_in_capture(device, "disable(\"cuda\")");
  if (parts.earlier.begin_serving(parts.ours.device_count())) {
    try {
      parts.ours.tell_observers(parts.earlier.get());
    } catch (const c10::Error&) {  // it has no such functions
    }
    parts.ours.adopt_devices();
  }
  put(parts.earlier_serves);
  parts.ours.emptyCache({0, 0});
}

std::size_t earlier_bytes(int device) {
  const Parts* const parts = g_parts.load();
  Earlier now(parts != nullptr ? parts->earlier.get() : *cca::get());
  now.try_empty_cache();
  return now.held_bytes(device);
}

}  // namespace mempool::torch_cuda
