// _core.Pool, a handle on an account, and what charges blocks to it: _core.PoolEntry and _core.PoolScope.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "core/allocator/caching_allocator.h"

namespace mempool::bindings {

// Keeps the account alive for Python; the record itself goes with the last block.
class Pool {
 public:
  Pool(CachingAllocator& device, Account* account, std::shared_ptr<Pool> parent)
      : device_(device), account_(account), parent_(std::move(parent)) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() { device_.pools().drop(*account_); }

  Account read() const { return device_.accounts().read(*account_); }
  CachingAllocator& device() const { return device_; }
  Account& account() const { return *account_; }

 private:
  CachingAllocator& device_;
  Account* const account_;
  const std::shared_ptr<Pool> parent_;
};

// Precondition: Pool is known to Python.
void add_pool_scope(pybind11::module_& m);

}  // namespace mempool::bindings
