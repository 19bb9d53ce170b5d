// The table of options: each key is parsed, printed and, where it is misspelt, suggested.
#include "check.h"
#include "common/errors.h"
#include "common/options.h"

using mempool::ConfigError;
using mempool::Options;
using mempool::parse_conf;

TEST(conf_sets_every_kind_of_option) {
  Options options;
  parse_conf(options, "limit:50%, thread_cache_bytes:0 ,huge_pages:false,,history_events:12", 1000);
  CHECK_EQ(options.limit, 500u);
  CHECK_EQ(options.thread_cache_bytes, 0u);
  CHECK_EQ(options.huge_pages, false);
  CHECK_EQ(options.history_events, 12u);
  CHECK_EQ(options.soft_limit, mempool::kNoLimit);
}

TEST(an_unknown_key_names_the_nearest) {
  Options options;
  try {
    parse_conf(options, "sofy_limit:1GiB", 0);
    CHECK(false);
  } catch (const ConfigError& error) {
    const std::string what = error.what();
    CHECK(what.find("'sofy_limit'") != std::string::npos);
    CHECK(what.find("'soft_limit'") != std::string::npos);
  }
}

TEST(a_wrong_part_changes_nothing) {
  Options options;
  for (const char* conf : {"limit:1GiB,limitt:2", "limit:1GiB,huge_pages:maybe", "limit:1GiB,history_events:1x",
                           "limit:1GiB,soft_limit", "limit:1GiB,soft_limit:0"}) {
    CHECK_THROWS(ConfigError, parse_conf(options, conf, 0));
    CHECK_EQ(options.limit, mempool::kNoLimit);
  }
}

TEST(the_table_lists_what_can_be_set) {
  for (const mempool::OptionInfo& info : mempool::option_table()) {
    Options options;
    const char* value = info.type == "bool" ? "true" : "7";
    set_option(options, info.key, value, 0);
    CHECK(!info.help.empty());
  }
  CHECK_EQ(mempool::option_table().size(), 10u);
}

TEST(values_are_what_was_set) {
  using mempool::OptionValue;
  Options options;
  CHECK(mempool::option_values(options).size() == mempool::option_table().size());
  CHECK(mempool::option_values(options)[0] == OptionValue{});  // limit
  parse_conf(options, "limit:1KiB,stitch:false,decay_ms:never,history_events:9,reserve:2KiB,growth:double", 0);
  const std::vector<OptionValue> values = mempool::option_values(options);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::string_view key = mempool::option_table()[i].key;
    if (key == "limit") CHECK(values[i] == OptionValue(std::uint64_t{1024}));
    if (key == "stitch") CHECK(values[i] == OptionValue(false));
    if (key == "decay_ms") CHECK(values[i] == OptionValue{});
    if (key == "history_events") CHECK(values[i] == OptionValue(std::uint64_t{9}));
    if (key == "reserve") CHECK(values[i] == OptionValue(std::uint64_t{2048}));
    if (key == "growth") CHECK(values[i] == OptionValue(std::string("double")));
  }
  parse_conf(options, "growth:1KiB", 0);
  CHECK(mempool::option_values(options)[5] == OptionValue(std::uint64_t{1024}));
  parse_conf(options, "growth:as_needed", 0);
  CHECK(mempool::option_values(options)[5] == OptionValue(std::string("as_needed")));
  CHECK_THROWS(mempool::ConfigError, parse_conf(options, "growth:triple", 0));
}
