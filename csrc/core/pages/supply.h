// What a heap may do for a range that it does not have.
#pragma once

#include <span>

namespace mempool {

class PageHeap;

struct Supply {
  bool may_grow = false;                 // else it comes from what is free already, or not at all
  std::span<PageHeap* const> lenders{};  // other heaps, locked by the caller, whose free memory may move here
  bool may_commit = true;                // ask the backend for new memory; else only move what is free
  bool may_wait = false;                 // for work on other streams that still uses it; else only what is idle moves
  bool may_release = true;               // what is free and of no use: nothing of it is kept for the heap's family
};

}  // namespace mempool
