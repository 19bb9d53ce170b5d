// The class behind _core.Pool, a handle on an account, and the classes that charge a thread's blocks to it:
// _core.PoolEntry and _core.PoolScope.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "core/allocator/caching_allocator.h"

namespace mempool::bindings {

// Keeps the account alive for Python; the account itself ends with its last block.
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

// Adds the classes PoolEntry and PoolScope to the module, after Pool.
void add_pool_scope(pybind11::module_& m);

}  // namespace mempool::bindings
