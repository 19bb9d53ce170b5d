// Every figure against a naive model that counts the same things one after the other.
#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "core/allocator/found_block.h"
#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

struct Counted {
  std::size_t rounded;
  std::size_t requested;
};

// Live and active blocks, counted by what the caller does and is told.
struct Model {
  ByPool<BlockStats> live;
  ByPool<BlockStats> active;
  std::map<void*, Counted> waiting;

  template <typename Action>
  static void on(ByPool<BlockStats>& pools, std::size_t rounded, Action action) {
    action(pools.all);
    action(pools.of(rounded <= kMediumMax));
  }
  static void add(ByPool<BlockStats>& pools, Counted block) {
    on(pools, block.rounded, [&](BlockStats& stats) { stats.add({block.rounded, block.requested}); });
  }
  static void subtract(ByPool<BlockStats>& pools, Counted block) {
    on(pools, block.rounded, [&](BlockStats& stats) { stats.subtract({block.rounded, block.requested}); });
  }
  void reset(void (*action)(Stat&)) {
    for (ByPool<BlockStats>* pools : {&live, &active}) {
      for (BlockStats* blocks : {&pools->all, &pools->small, &pools->large}) {
        for (Stat* stat : {&blocks->count, &blocks->bytes, &blocks->requested}) action(*stat);
      }
    }
  }
};

// Tells a model when blocks that waited do so no longer.
class Completions final : public BlockListener {
 public:
  explicit Completions(Model& model) : model_(model) {}
  void on_alloc(const ObservedBlock&) noexcept override {}
  void on_free(const ObservedBlock&, bool) noexcept override {}
  void on_completed(const ObservedBlock& block) noexcept override {
    const auto found = model_.waiting.find(block.address);
    Model::subtract(model_.active, found->second);
    model_.waiting.erase(found);
  }

 private:
  Model& model_;
};

std::string different(const Stat& a, const Stat& b, const std::string& name) {
  const auto text = [](const Stat& s) {
    return std::to_string(s.current) + " " + std::to_string(s.peak) + " " + std::to_string(s.allocated) + " " +
           std::to_string(s.freed);
  };
  return text(a) == text(b) ? std::string{} : name + ": " + text(a) + " against " + text(b) + "\n";
}

std::string different(const ByPool<BlockStats>& a, const ByPool<BlockStats>& b, const std::string& name) {
  const auto of = [&](const BlockStats& x, const BlockStats& y, const char* pool) {
    return different(x.count, y.count, name + pool + ".count") + different(x.bytes, y.bytes, name + pool + ".bytes") +
           different(x.requested, y.requested, name + pool + ".requested");
  };
  return of(a.all, b.all, ".all") + of(a.small, b.small, ".small") + of(a.large, b.large, ".large");
}

// What snapshots say is live, and live or waiting.
std::pair<std::int64_t, std::int64_t> bytes_in_snapshot(CachingAllocator& allocator) {
  std::int64_t live = 0;
  std::int64_t active = 0;
  for (const SnapshotBlock& block : allocator.snapshot().blocks) {
    live += block.live ? static_cast<std::int64_t>(block.bytes) : 0;
    active += block.live || block.waiting ? static_cast<std::int64_t>(block.bytes) : 0;
  }
  return {live, active};
}

std::size_t some_size(std::mt19937& random) {
  const std::size_t low = std::size_t{1} << (random() % 23);
  return low + random() % low;
}

// Highest values, as seen after each operation.
struct Watched {
  ByPool<Stat> seen;
  void look(const ByPool<Stat>& now) {
    for (const auto pool : {&ByPool<Stat>::all, &ByPool<Stat>::small, &ByPool<Stat>::large}) {
      (seen.*pool).peak = std::max((seen.*pool).peak, (now.*pool).current);
    }
  }
  std::string compare(const ByPool<Stat>& now, const std::string& name) const {
    std::string out;
    for (const auto pool : {&ByPool<Stat>::all, &ByPool<Stat>::small, &ByPool<Stat>::large}) {
      const Stat& stat = now.*pool;
      if (stat.peak != (seen.*pool).peak) out += name + ": peak " + std::to_string(stat.peak) + "\n";
      if (stat.current != stat.allocated - stat.freed) out += name + ": sums\n";
    }
    return out;
  }
};

}  // namespace

TEST(a_block_that_waits_counts_once) {
  const FakeDevice device({}, {.personality = FakeMemory::Personality::device, .has_streams = true});
  CachingAllocator& allocator = *device.allocator;
  void* const block = allocator.allocate(5 * kMiB);
  allocator.add_use(block, 7);
  device.memory->work(7);
  allocator.deallocate(block);
  const BlockStats waits = allocator.stats().active.all;
  CHECK_EQ(waits.bytes.current, static_cast<std::int64_t>(5 * kMiB));
  CHECK_EQ(waits.bytes.peak, static_cast<std::int64_t>(5 * kMiB));
  CHECK_EQ(waits.count.peak, 1);
  // Blocks that come and go beside it count in the peak, though no statistics were read meanwhile.
  allocator.deallocate(allocator.allocate(3 * kMiB));
  allocator.reset_sums();
  device.memory->finish(7);
  allocator.trim(kNoLimit);
  const BlockStats after = allocator.stats().active.all;
  CHECK_EQ(after.bytes.current, 0);
  CHECK_EQ(after.bytes.peak, static_cast<std::int64_t>(8 * kMiB));
  CHECK_EQ(after.bytes.freed, static_cast<std::int64_t>(5 * kMiB));
  CHECK_EQ(after.count.freed, 1);
  device.check_empty();
}

TEST(figures_of_blocks_are_those_of_a_naive_model) {
  for (unsigned seed = 0; seed < 12; ++seed) {
    const FakeDevice device({},
                            {.personality = FakeMemory::Personality::device, .accessible = false, .has_streams = true});
    CachingAllocator& allocator = *device.allocator;
    std::vector<std::pair<void*, Counted>> blocks;
    Model model;
    Completions completions(model);
    allocator.observers().listen(&completions);
    Account* const pool = allocator.pools().open("pool", nullptr, false, kNoLimit, kNoLimit);
    Account* const isolated = allocator.pools().open("isolated", nullptr, true, kNoLimit, kNoLimit);
    std::mt19937 random(seed);
    for (int step = 0; step < 1500; ++step) {
      const unsigned roll = random() % 100;
      if (roll < 48) {
        fixtures::set_current_pool(allocator, roll < 8 ? pool : roll < 16 ? isolated : nullptr);
        const std::size_t bytes = some_size(random);
        void* const block = allocator.allocate(bytes, random() % 3);
        blocks.push_back({block, {block_bytes(block), bytes}});
        Model::add(model.live, blocks.back().second);
        Model::add(model.active, blocks.back().second);
      } else if (roll < 88 && !blocks.empty()) {
        std::swap(blocks[random() % blocks.size()], blocks.back());
        const auto [block, counted] = blocks.back();
        blocks.pop_back();
        if (random() % 3 == 0) {
          const StreamId stream = random() % 5;
          device.memory->work(stream);
          allocator.add_use(block, stream);
        }
        const bool waits = fixtures::is_used_elsewhere(block);
        Model::subtract(model.live, counted);
        if (waits) {
          model.waiting[block] = counted;
        } else {
          Model::subtract(model.active, counted);
        }
        allocator.deallocate(block);
      } else if (roll < 92) {
        device.memory->finish(random() % 5, 1 + random() % 4);
      } else if (roll < 94) {
        allocator.trim(random() % 2 == 0 ? kNoLimit : 0, random() % 2 == 0);
      } else if (roll == 94) {
        allocator.reset_peaks();
        model.reset(Stat::reset_peak);
      } else if (roll == 95) {
        allocator.reset_sums();
        model.reset(Stat::reset_sum);
      } else {
        const DeviceStats stats = allocator.stats();
        CHECK_EQ(different(stats.blocks, model.live, "live") + different(stats.active, model.active, "active"), "");
        CHECK(bytes_in_snapshot(allocator) ==
              std::make_pair(stats.blocks.all.bytes.current, stats.active.all.bytes.current));
      }
    }
    fixtures::set_current_pool(allocator, nullptr);
    for (const auto& [block, counted] : blocks) allocator.deallocate(block);
    for (StreamId stream = 0; stream < 5; ++stream) device.memory->finish(stream);
    allocator.observers().listen(nullptr);
    allocator.trim(0);
    allocator.pools().drop(*pool);
    allocator.pools().drop(*isolated);
    device.check_empty();
  }
}

// Nothing that is free, backed or shared for a moment within one operation shows in a peak.
TEST(figures_of_memory_have_the_peaks_that_were_there_between_operations) {
  for (FakeMemory::Settings settings : fixtures::personalities()) {
    settings.accessible = false;
    for (unsigned seed = 0; seed < 6; ++seed) {
      const FakeDevice device({.thread_cache_bytes = 0, .segment_bytes = 64 * kMiB}, settings);
      CachingAllocator& allocator = *device.allocator;
      std::mt19937 random(seed);
      std::vector<void*> blocks;
      Watched reserved;
      Watched segments;
      Watched free_bytes;
      Watched free_ranges;
      for (int step = 0; step < 1500; ++step) {
        const unsigned roll = random() % 100;
        if (roll < 52) {
          blocks.push_back(allocator.allocate(some_size(random)));
        } else if (roll < 98 && !blocks.empty()) {
          std::swap(blocks[random() % blocks.size()], blocks.back());
          allocator.deallocate(blocks.back());
          blocks.pop_back();
        } else {
          allocator.trim(random() % 2 == 0 ? 0 : allocator.ledger().held() / 2);
        }
        const DeviceStats stats = allocator.stats();
        CHECK_EQ(stats.reserved_bytes.all.current, static_cast<std::int64_t>(device.memory->committed_bytes()));
        reserved.look(stats.reserved_bytes);
        segments.look(stats.segments);
        free_bytes.look(stats.free_ranges.bytes);
        free_ranges.look(stats.free_ranges.count);
        CHECK_EQ(reserved.compare(stats.reserved_bytes, "reserved") + segments.compare(stats.segments, "segments") +
                     free_bytes.compare(stats.free_ranges.bytes, "free bytes") +
                     free_ranges.compare(stats.free_ranges.count, "free ranges"),
                 "");
      }
      for (void* const block : blocks) allocator.deallocate(block);
      device.check_empty();
    }
  }
}

TEST(a_pool_that_wakes_has_no_higher_peak_than_before) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("weights", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  const std::vector<void*> blocks{allocator.allocate(100), allocator.allocate(200000), allocator.allocate(3 * kMiB)};
  fixtures::set_current_pool(allocator, nullptr);
  const DeviceStats before = allocator.stats();
  for (int turn = 0; turn < 2; ++turn) {
    allocator.sleep_pool(*pool, true);
    allocator.wake_pool(*pool);
  }
  const DeviceStats after = allocator.stats();
  for (const auto part : {&ByPool<Stat>::all, &ByPool<Stat>::small, &ByPool<Stat>::large}) {
    CHECK_EQ((after.reserved_bytes.*part).current, (before.reserved_bytes.*part).current);
    CHECK_EQ((after.reserved_bytes.*part).peak, (before.reserved_bytes.*part).peak);
    CHECK_EQ((after.segments.*part).current, (before.segments.*part).current);
    CHECK_EQ((after.segments.*part).peak, (before.segments.*part).peak);
  }
  allocator.sleep_pool(*pool, true);
  for (void* const block : blocks) allocator.deallocate(block);
  allocator.pools().drop(*pool);
  CHECK_EQ(allocator.stats().segments.all.peak, before.segments.all.peak);
  device.check_empty();
}
