#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "check.h"
#include "core/free_index.h"

using mempool::FreeIndex;
using mempool::Span;

// The treap against an ordered set, through random inserts, erases and searches.
TEST(free_index_equals_an_ordered_set) {
  std::mt19937 random(7);
  FreeIndex index;
  std::set<std::pair<std::size_t, std::uintptr_t>> model;
  std::vector<std::unique_ptr<Span>> spans;
  std::uintptr_t next = 1 << 20;
  for (int step = 0; step < 20000; ++step) {
    if (spans.empty() || random() % 5 < 3) {
      auto span = std::make_unique<Span>();
      span->start = next;
      span->bytes = (1 + random() % 40) * mempool::kPageBytes;
      next += span->bytes;
      index.insert(span.get());
      model.emplace(span->bytes, span->start);
      spans.push_back(std::move(span));
    } else {
      const std::size_t victim = random() % spans.size();
      index.erase(spans[victim].get());
      model.erase({spans[victim]->bytes, spans[victim]->start});
      std::swap(spans[victim], spans.back());
      spans.pop_back();
    }
    const std::size_t wanted = (1 + random() % 45) * mempool::kPageBytes;
    const Span* const found = index.best_fit(wanted);
    const auto expected = model.lower_bound({wanted, 0});
    CHECK_EQ(found == nullptr, expected == model.end());
    if (found != nullptr) {
      CHECK_EQ(found->start, expected->second);
      const Span* const after = index.after(*found);
      const auto next_expected = std::next(expected);
      CHECK_EQ(after == nullptr, next_expected == model.end());
      if (after != nullptr) CHECK_EQ(after->start, next_expected->second);
      const Span* const before = index.before(*found);
      CHECK_EQ(before == nullptr, expected == model.begin());
      if (before != nullptr) CHECK_EQ(before->start, std::prev(expected)->second);
    }
    CHECK_EQ(index.count(), model.size());
    CHECK_EQ(index.largest() == nullptr, model.empty());
    if (!model.empty()) CHECK_EQ(index.largest()->start, model.rbegin()->second);
  }
}
