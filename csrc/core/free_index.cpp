#include "core/free_index.h"

#include <utility>

namespace mempool {
namespace {

std::uint64_t priority(const Span& span) {
  std::uint64_t x = span.start / kPageBytes;
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  return x;
}

bool precedes(const Span& a, const Span& b) { return a.bytes != b.bytes ? a.bytes < b.bytes : a.start < b.start; }

// Divides the subtree into what stands before `pivot` and what stands behind it.
void split(Span* node, const Span& pivot, Span** low, Span** high) {
  while (node != nullptr) {
    if (precedes(*node, pivot)) {
      *low = node;
      low = &node->right;
      node = node->right;
    } else {
      *high = node;
      high = &node->left;
      node = node->left;
    }
  }
  *low = nullptr;
  *high = nullptr;
}

// Joins two subtrees, all of `low` before all of `high`.
Span* join(Span* low, Span* high) {
  Span* root = nullptr;
  Span** link = &root;
  while (low != nullptr && high != nullptr) {
    if (priority(*low) >= priority(*high)) {
      *link = low;
      link = &low->right;
      low = low->right;
    } else {
      *link = high;
      link = &high->left;
      high = high->left;
    }
  }
  *link = low != nullptr ? low : high;
  return root;
}

}  // namespace

void FreeIndex::insert(Span* span) noexcept {
  Span** link = &root_;
  const std::uint64_t rank = priority(*span);
  while (*link != nullptr && priority(**link) >= rank) {
    link = precedes(*span, **link) ? &(*link)->left : &(*link)->right;
  }
  split(*link, *span, &span->left, &span->right);
  *link = span;
  ++count_;
  bytes_ += span->bytes;
}

void FreeIndex::erase(Span* span) noexcept {
  Span** link = &root_;
  while (*link != span) link = precedes(*span, **link) ? &(*link)->left : &(*link)->right;
  *link = join(span->left, span->right);
  span->left = span->right = nullptr;
  --count_;
  bytes_ -= span->bytes;
}

Span* FreeIndex::best_fit(std::size_t bytes) const noexcept {
  Span* found = nullptr;
  for (Span* node = root_; node != nullptr;) {
    if (node->bytes >= bytes) {
      found = node;
      node = node->left;
    } else {
      node = node->right;
    }
  }
  return found;
}

Span* FreeIndex::after(const Span& span) const noexcept {
  Span* found = nullptr;
  for (Span* node = root_; node != nullptr;) {
    if (precedes(span, *node)) {
      found = node;
      node = node->left;
    } else {
      node = node->right;
    }
  }
  return found;
}

Span* FreeIndex::before(const Span& span) const noexcept {
  Span* found = nullptr;
  for (Span* node = root_; node != nullptr;) {
    if (precedes(*node, span)) {
      found = node;
      node = node->right;
    } else {
      node = node->left;
    }
  }
  return found;
}

Span* FreeIndex::largest() const noexcept {
  Span* node = root_;
  while (node != nullptr && node->right != nullptr) node = node->right;
  return node;
}

}  // namespace mempool
