// The index of free spans finds the best fit, and holds exactly what was inserted.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "core/pages/free_index.h"

using mempool::FreeIndex;
using mempool::kPageBytes;
using mempool::Span;

namespace {

struct Walk {
  explicit Walk(std::size_t granule) : index(0, granule) {}

  void insert(std::size_t bytes) {
    auto span = std::make_unique<Span>();
    span->start = next;
    span->bytes = bytes;
    next += bytes + (random() % 3) * kPageBytes;
    index.insert(span.get());
    spans.push_back(std::move(span));
  }
  void erase_any() {
    const std::size_t victim = random() % spans.size();
    if (index.holds(*spans[victim])) index.erase(spans[victim].get());
    std::swap(spans[victim], spans.back());
    spans.pop_back();
  }
  std::size_t smallest_key_of_at_least(std::size_t bytes) const {
    std::size_t best = SIZE_MAX;
    for (const auto& span : spans) {
      if (const std::size_t key = index.key(*span); key >= bytes) best = std::min(best, key);
    }
    return best;
  }

  std::mt19937 random{7};
  FreeIndex index;
  std::vector<std::unique_ptr<Span>> spans;
  std::uintptr_t next = 1 << 20;
};

void check_sums(const Walk& walk) {
  std::size_t count = 0;
  std::size_t bytes = 0;
  std::size_t largest = 0;
  for (const auto& span : walk.spans) {
    const std::size_t key = walk.index.key(*span);
    CHECK_EQ(walk.index.holds(*span), key > 0);
    count += key > 0;
    bytes += key;
    largest = std::max(largest, key);
  }
  CHECK_EQ(walk.index.count(), count);
  CHECK_EQ(walk.index.bytes(), bytes);
  CHECK_EQ(walk.index.largest_key(), largest);
  std::size_t seen = 0;
  for (const Span* span = walk.index.first_of_highest(); span != nullptr; span = walk.index.next_down(span)) ++seen;
  CHECK_EQ(seen, count);
}

}  // namespace

// Against a search of everything. Where a bin holds one size the smallest that fits is found; above, one that is not a
// bin's width too large; and nothing only when nothing fits.
TEST(free_index_finds_the_best_fit) {
  for (const std::size_t granule : {std::size_t{0}, 16 * kPageBytes}) {
    Walk walk(granule);
    for (int step = 0; step < 4000; ++step) {
      if (walk.spans.empty() || walk.random() % 8 < 5) {
        const std::size_t order = walk.random() % 14;
        walk.insert(((std::size_t{1} << order) + walk.random() % (std::size_t{1} << order)) * kPageBytes);
      } else {
        walk.erase_any();
      }
      if (walk.spans.size() > 300) walk.erase_any();
      const std::size_t wanted = (1 + walk.random() % 9000) * kPageBytes;
      const Span* const found = walk.index.best_fit(wanted);
      const std::size_t best = walk.smallest_key_of_at_least(wanted);
      CHECK_EQ(found == nullptr, best == SIZE_MAX);
      if (found != nullptr && best <= 1024 * kPageBytes) CHECK_EQ(walk.index.key(*found), best);
      if (found != nullptr) CHECK(walk.index.key(*found) <= best + best / 32);
      if (step % 16 == 0) check_sums(walk);
    }
  }
}
