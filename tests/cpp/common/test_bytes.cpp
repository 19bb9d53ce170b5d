// Byte sizes as people write them are parsed, and printed.
#include "check.h"
#include "common/bytes.h"
#include "common/errors.h"

using mempool::ConfigError;
using mempool::format_bytes;
using mempool::parse_bytes;

TEST(sizes_with_units) {
  CHECK_EQ(parse_bytes("4096"), 4096u);
  CHECK_EQ(parse_bytes(" 4096 B "), 4096u);
  CHECK_EQ(parse_bytes("1.5GiB"), 3u << 29);
  CHECK_EQ(parse_bytes("512 mib"), 512u << 20);
  CHECK_EQ(parse_bytes("2k"), 2048u);
  CHECK_EQ(parse_bytes("2KB"), 2000u);
  CHECK_EQ(parse_bytes("1TB"), 1000000000000u);
  CHECK_EQ(parse_bytes("0.5 KiB"), 512u);
}

TEST(whole_bytes_are_exact_beyond_what_a_double_holds) { CHECK_EQ(parse_bytes("9007199254740993"), 9007199254740993u); }

TEST(percentages) {
  CHECK_EQ(parse_bytes("50%", 1000), 500u);
  CHECK_EQ(parse_bytes("12.5 %", 1000), 125u);
  CHECK_THROWS(ConfigError, parse_bytes("101%", 1000));
  CHECK_THROWS(ConfigError, parse_bytes("50%"));
  CHECK_THROWS(ConfigError, parse_bytes("0%", 1000));
}

TEST(bad_sizes) {
  for (const char* text : {"", "  ", "GiB", "12 GiBs", "-1", "-5MiB", "0", "0GiB", "1e400", "nan", "inf", "1.2.3",
                           "0x10", "12 34", "99999999999999999999", "16000000 TiB", "0.1"}) {
    CHECK_THROWS(ConfigError, parse_bytes(text, 1000));
  }
}

TEST(the_message_says_what_is_wrong) {
  try {
    parse_bytes("12 GiBs");
    CHECK(false);
  } catch (const ConfigError& error) {
    const std::string what = error.what();
    CHECK(what.find("12 GiBs") != std::string::npos);
    CHECK(what.find("'GiBs'") != std::string::npos);
  }
}

TEST(format) {
  CHECK_EQ(format_bytes(0), "0 B");
  CHECK_EQ(format_bytes(1023), "1023 B");
  CHECK_EQ(format_bytes(1536), "1.50 KiB");
  CHECK_EQ(format_bytes(std::size_t{3} << 30), "3.00 GiB");
  CHECK_EQ(format_bytes(mempool::kNoLimit), "unlimited");
}
