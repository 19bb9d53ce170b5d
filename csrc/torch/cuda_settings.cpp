#include "torch/cuda_settings.h"

#include <c10/core/AllocatorConfig.h>
#include <c10/util/Exception.h>
#include <c10/util/env.h>

#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "common/errors.h"
#include "torch/cuda_allocator.h"

namespace mempool::torch_cuda {
namespace {

using c10::CachingAllocator::AcceleratorAllocatorConfig;

std::mutex g_mutex;
MemoryFraction g_fraction;

// Expects a text that torch has taken. torch's own record is a static of an inline function: this module would read one
// of its own, which hears of nothing at run time.
std::optional<double> fraction_in(const std::string& text) {
  const c10::CachingAllocator::ConfigTokenizer tokens(text);
  std::optional<double> found;
  for (std::size_t i = 0; i + 2 < tokens.size(); ++i) {
    if (tokens[i] == "per_process_memory_fraction") found = tokens.toDouble(i + 2);
  }
  return found;
}

// As torch reads it for CUDA.
std::optional<std::string> settings_of_environment() {
  std::optional<std::string> text = c10::utils::get_env("PYTORCH_CUDA_ALLOC_CONF");
  return text.has_value() ? text : c10::utils::get_env("PYTORCH_ALLOC_CONF");
}

// What torch's own allocator was given last; empty: nothing, or another allocator is in place.
std::string settings_at_run_time(c10::cuda::CUDACachingAllocator::CUDAAllocator& torchs) {
  if (torchs.name() != "native") return "";
  return torchs.snapshot({0, 0}, false).config_metadata.last_allocator_settings;
}

void set_fraction(const MemoryFraction& fraction) {
  const std::lock_guard guard(g_mutex);
  g_fraction = fraction;
}

}  // namespace

std::string read_settings(c10::cuda::CUDACachingAllocator::CUDAAllocator& torchs) {
  const std::optional<std::string> text = settings_of_environment();
  try {
    AcceleratorAllocatorConfig::instance();
    if (text.has_value()) AcceleratorAllocatorConfig::callDeviceConfigParserHook(*text);
    const std::string at_run_time = settings_at_run_time(torchs);
    set_fraction({fraction_in(at_run_time.empty() ? text.value_or("") : at_run_time).value_or(1.0), false});
    return at_run_time == text ? "" : at_run_time;
  } catch (const c10::Error& error) {
    throw ConfigError(std::string("PYTORCH_ALLOC_CONF: torch does not take it: ") + error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw ConfigError(std::string("PYTORCH_ALLOC_CONF: torch does not take it: ") + error.what());
  }
}

MemoryFraction memory_fraction() {
  const std::lock_guard guard(g_mutex);
  return g_fraction;
}

void follow_settings(SettingsListener listener) {
  // torch calls one function with each text that it has parsed: that of its own allocator goes first.
  auto& hook = AcceleratorAllocatorConfig::getConfigParserHook();
  hook = [before = std::move(hook), listener = std::move(listener)](const std::string& text) {
    if (before) before(text);
    if (const std::optional<double> fraction = fraction_in(text)) {
      set_fraction({*fraction, true});
      installed()->set_memory_fractions(*fraction);
    }
    listener(text);
  };
}

}  // namespace mempool::torch_cuda
