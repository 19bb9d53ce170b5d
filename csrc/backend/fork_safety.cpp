#include "backend/fork_safety.h"

#include <pthread.h>

#include <array>
#include <new>

#include "backend/decay_thread.h"
#include "backend/outside_watch.h"
#include "common/expects.h"
#include "common/fork_generation.h"

namespace mempool {
namespace {

// By slot, so that all forks lock them in the same order. Guarded by device_making().
std::array<CachingAllocator*, kMaxAllocators> g_allocators{};
SharedLedger* g_ledger = nullptr;  // guarded likewise

template <typename Action>
void for_each_allocator(Action action) {
  for (CachingAllocator* const allocator : g_allocators) {
    if (allocator != nullptr) action(*allocator);
  }
}

// Takes the locks in their order (core/allocator/device_parts.h): those of one kind of every allocator, then those of
// the next kind.
void before_fork() {
  device_making().lock();
  if (g_ledger != nullptr) g_ledger->before_fork();
  for_each_allocator([](CachingAllocator& allocator) { allocator.prepare_fork(); });
  ThreadRegistry::instance().mutex.lock();
  for_each_allocator([](CachingAllocator& allocator) { allocator.lock_for_fork(); });
}

void unlock(bool in_child) {
  for_each_allocator([in_child](CachingAllocator& allocator) { allocator.after_fork(in_child); });
  ThreadRegistry::instance().mutex.unlock();
  device_making().unlock();
}

void after_fork_in_parent() {
  if (g_ledger != nullptr) g_ledger->after_fork_in_parent();
  unlock(false);
}

void after_fork_in_child() {
  forget_decay_thread();
  restart_outside_watch();
  fork_generation().fetch_add(1);
  if (g_ledger != nullptr) g_ledger->after_fork_in_child();  // before anything is given back here
  unlock(true);
  ThreadRegistry::Slots slots{};
  for_each_allocator([&slots](CachingAllocator& allocator) { slots[allocator.slot()] = true; });
  ThreadRegistry::instance().adopt_orphans(slots);
}

void register_handlers() {
  static bool is_registered = false;
  if (!is_registered && pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
    throw std::bad_alloc();
  }
  is_registered = true;
}

}  // namespace

std::mutex& device_making() {
  static std::mutex* const making = new std::mutex;  // immortal
  return *making;
}

void survive_fork(CachingAllocator& allocator) {
  MEMPOOL_EXPECTS(g_allocators[allocator.slot()] == nullptr);
  register_handlers();
  g_allocators[allocator.slot()] = &allocator;
}

void survive_fork(SharedLedger& ledger) {
  MEMPOOL_EXPECTS(g_ledger == nullptr);
  register_handlers();
  g_ledger = &ledger;
}

}  // namespace mempool
