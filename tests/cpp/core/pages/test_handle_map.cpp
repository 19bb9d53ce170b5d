// Handles by address: they are cut, joined and found.
#include "backend/fake_memory.h"
#include "check.h"
#include "core/pages/handle_map.h"

using mempool::FakeMemory;
using mempool::Handle;
using mempool::HandleMap;
using mempool::Refusal;

namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;

struct Fixture {
  explicit Fixture(FakeMemory::Personality personality = FakeMemory::Personality::host)
      : memory({.personality = personality, .accessible = false}) {
    base = reinterpret_cast<std::uintptr_t>(memory.reserve_addresses(64 * kGranule));
  }
  bool commit(std::size_t at, std::size_t granules) {
    return handles.commit(base + at * kGranule, granules * kGranule, why);
  }
  std::uintptr_t at(std::size_t granules) const { return base + granules * kGranule; }

  FakeMemory memory;
  HandleMap handles{memory};
  std::uintptr_t base = 0;
  Refusal why = Refusal::none;
};

std::string lengths(const HandleMap& handles) {
  std::string out;
  for (const auto& [start, handle] : handles.all()) {
    CHECK_EQ(start, reinterpret_cast<std::uintptr_t>(handle.address));
    out += std::to_string(handle.bytes / kGranule) + " ";
  }
  return out;
}

}  // namespace

TEST(a_commit_that_is_refused_leaves_no_handle) {
  Fixture f;
  f.memory.fail_call(1);
  CHECK(!f.commit(0, 2));
  CHECK(f.why == Refusal::backend);
  CHECK(!f.handles.contains(f.at(0)));
  CHECK(f.commit(0, 2));
  CHECK_EQ(f.handles.bytes_at(f.at(0)), 2 * kGranule);
  f.memory.fail_call(1);
  CHECK(!f.handles.decommit(f.at(0)));
  CHECK(f.handles.contains(f.at(0)));
  CHECK(f.handles.decommit(f.at(0)));
  CHECK(f.handles.empty());
  CHECK_EQ(f.memory.committed_bytes(), 0u);
}

TEST(memory_beyond_what_the_page_map_can_name_is_not_kept) {
  Fixture f;
  CHECK(!f.handles.commit(std::uintptr_t{1} << 48, kGranule, f.why));
  CHECK(f.why == Refusal::metadata);
  CHECK(f.handles.empty());
}

TEST(handles_are_found_by_what_they_overlap_and_what_they_lie_within) {
  Fixture f;
  for (const std::size_t at : {0, 4, 6}) CHECK(f.commit(at, 2));
  CHECK_EQ(f.handles.overlapping(f.at(1), f.at(5)).size(), 2u);
  CHECK_EQ(f.handles.overlapping(f.at(2), f.at(4)).size(), 0u);
  CHECK_EQ(f.handles.overlapping(f.at(5), f.at(5) + 1).size(), 1u);
  CHECK_EQ(f.handles.highest_within(f.at(0), f.at(7))->address, reinterpret_cast<void*>(f.at(4)));
  CHECK_EQ(f.handles.highest_within(f.at(0), f.at(8))->address, reinterpret_cast<void*>(f.at(6)));
  CHECK(f.handles.highest_within(f.at(1), f.at(5)) == nullptr);
  std::size_t count = 0;
  f.handles.for_each_within(f.at(1), f.at(8), [&](std::uintptr_t, std::size_t) { ++count; });
  CHECK_EQ(count, 2u);
}

TEST(a_range_becomes_one_handle_where_handles_can_be_cut) {
  Fixture f;
  for (const std::size_t at : {0, 2, 4}) CHECK(f.commit(at, 2));
  CHECK(f.handles.isolate(f.at(1), f.at(5), f.base));
  CHECK_EQ(lengths(f.handles), "1 4 1 ");
  CHECK(f.handles.join_with_previous(f.at(1), f.base));
  CHECK(!f.handles.join_with_previous(f.at(0), f.base));
  CHECK(!f.handles.join_with_previous(f.at(5), f.at(5)));  // it begins a reservation
  CHECK_EQ(lengths(f.handles), "5 1 ");
  f.memory.fail_call(1);
  CHECK(!f.handles.cut_at(f.at(2)));
  CHECK_EQ(lengths(f.handles), "5 1 ");
  CHECK(f.handles.cut_at(f.at(5)));  // a boundary already
  CHECK(f.handles.cut_at(f.at(9)));
  CHECK_EQ(f.memory.violation(), "");
}

TEST(handles_that_stay_whole_are_neither_cut_nor_joined) {
  Fixture f(FakeMemory::Personality::device);
  CHECK(f.commit(0, 2));
  CHECK(f.commit(2, 2));
  CHECK(!f.handles.cut_at(f.at(1)));
  CHECK(!f.handles.join_with_previous(f.at(2), f.base));
  CHECK(f.handles.isolate(f.at(0), f.at(4), f.base));
  CHECK_EQ(lengths(f.handles), "2 2 ");
  CHECK_EQ(f.memory.violation(), "");
}

TEST(a_moved_handle_belongs_to_who_adopts_it) {
  Fixture f;
  HandleMap other(f.memory);
  CHECK(f.commit(0, 2));
  f.memory.fail_call(1);
  CHECK(!f.handles.move(f.at(0), f.at(8)));
  CHECK(f.handles.move(f.at(0), f.at(8)));
  other.adopt(f.handles, f.at(0), f.at(8));
  CHECK(f.handles.empty());
  CHECK_EQ(lengths(other), "2 ");
  CHECK_EQ(other.bytes_at(f.at(8)), 2 * kGranule);
  CHECK(other.open_all());
  CHECK(other.decommit(f.at(8)));
  CHECK_EQ(f.memory.violation(), "");
}
