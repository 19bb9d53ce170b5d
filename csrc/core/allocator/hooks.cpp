#include "core/allocator/hooks.h"

#include <atomic>

namespace mempool {
namespace {

constinit std::atomic<const Hooks*> g_hooks{nullptr};

}  // namespace

void set_hooks(const Hooks* hooks) noexcept { g_hooks.store(hooks, std::memory_order_release); }

const Hooks* installed_hooks() noexcept { return g_hooks.load(std::memory_order_acquire); }

std::uint32_t capture_stack() {
  const Hooks* const hooks = installed_hooks();
  return hooks != nullptr && hooks->capture_stack != nullptr ? hooks->capture_stack() : 0;
}

}  // namespace mempool
