#include <skald/model/metadata.hpp>

#include <cmath>
#include <limits>

#include <skald/core/error.hpp>

#include "support/catch.hpp"

using namespace skald;

namespace {

Metadata sample() {
  Metadata m("sample.gguf");
  m.insert("u8", std::uint8_t{7}, 100);
  m.insert("i64", std::int64_t{-5}, 200);
  m.insert("u64", UINT64_MAX, 300);
  m.insert("f32", 0.5f, 400);
  m.insert("f64", 1e300, 500);
  m.insert("nan", std::numeric_limits<float>::quiet_NaN(), 600);
  m.insert("bool", true, 700);
  m.insert("text", std::string("hello"), 800);
  m.insert("ints", MetadataArray{std::vector<std::int16_t>{1, 2, 300}}, 900);
  m.insert("floats", MetadataArray{std::vector<float>{1.5f, -0.25f}}, 1000);
  m.insert("flags", MetadataArray{std::vector<bool>{true, false}}, 1100);
  m.insert("words", MetadataArray{StringArray(std::vector<std::string>{"a", "", "bc"})}, 1200);
  return m;
}

/// The context of the FormatError that `body` must throw, with its message checked for `words`.
template <class F>
ErrorContext refused(F&& body, const std::string& words) {
  try {
    body();
  } catch (const FormatError& error) {
    INFO(error.what());
    CHECK(error.message().find(words) != std::string::npos);
    return error.context();
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace

TEST_CASE("model.metadata: integers are read from any integer type whose value fits") {
  const auto m = sample();
  CHECK(m.get_u64("u8") == 7);
  CHECK(m.get_i64("u8") == 7);
  CHECK(m.get_u32("u8") == 7);
  CHECK(m.get_i64("i64") == -5);
  CHECK(m.get_u64("u64") == UINT64_MAX);
  CHECK(m.find_u64("absent") == std::nullopt);
  CHECK(m.find_u32("absent").value_or(9) == 9);
  CHECK(m.find_u32("u8") == 7u);
  CHECK(m.find_i64("i64") == -5);
  CHECK(!m.find_i64("absent"));
  refused([&] { (void)m.get_u64("i64"); }, "found -5, allowed is 0 to 18446744073709551615");
  refused([&] { (void)m.get_i64("u64"); }, "found 18446744073709551615");
  refused([&] { (void)m.get_u32("u64"); }, "allowed is 0 to 4294967295");
  refused([&] { (void)m.find_u32("u64"); }, "allowed is 0 to 4294967295");
  refused([&] { (void)m.get_u64("u8", 8, 10); }, "found 7, allowed is 8 to 10");
  refused([&] { (void)m.get_u64("f32"); }, "found f32, allowed is an integer");
  refused([&] { (void)m.get_u64("bool"); }, "found bool");
}

TEST_CASE("model.metadata: errors carry the file, the key and the offset of the value") {
  const auto m = sample();
  const auto wrong = refused([&] { (void)m.get_string("words"); }, "found array of string, allowed is string");
  CHECK(wrong.file == "sample.gguf");
  CHECK(wrong.key == "words");
  CHECK(wrong.offset == 1200u);
  const auto missing = refused([&] { (void)m.get_f32("absent"); }, "missing");
  CHECK(missing.file == "sample.gguf");
  CHECK(missing.key == "absent");
  CHECK(!missing.offset);
  CHECK(refused([&] { m.fail("text", "odd"); }, "odd").offset == 800u);
}

TEST_CASE("model.metadata: floats must be finite and fit") {
  const auto m = sample();
  CHECK(m.get_f32("f32") == 0.5f);
  CHECK(m.get_f64("f32") == 0.5);
  CHECK(m.get_f64("f64") == 1e300);
  CHECK(!m.find_f32("absent"));
  CHECK(m.find_f64("f64") == 1e300);
  CHECK(!m.find_f64("absent"));
  refused([&] { (void)m.get_f32("f64"); }, "does not fit f32");
  refused([&] { (void)m.get_f32("nan"); }, "finite");
  refused([&] { (void)m.get_f64("u8"); }, "found u8, allowed is f32 or f64");
}

TEST_CASE("model.metadata: bool, string and strings come from their own type only") {
  const auto m = sample();
  CHECK(m.get_bool("bool"));
  CHECK(m.find_bool("bool") == true);
  CHECK(m.find_bool("absent").value_or(true));
  CHECK(m.get_string("text") == "hello");
  CHECK(*m.find_string("text") == "hello");
  CHECK(m.find_string("absent") == nullptr);
  const auto& words = m.get_strings("words");
  CHECK(words.size() == 3);
  CHECK(words[0] == "a");
  CHECK(words[1].empty());
  CHECK(words[2] == "bc");
  CHECK(std::vector<std::string>(words.begin(), words.end()) == std::vector<std::string>{"a", "", "bc"});
  CHECK(m.find_strings("absent") == nullptr);
  refused([&] { (void)m.get_bool("u8"); }, "found u8, allowed is bool");
  refused([&] { (void)m.get_strings("ints"); }, "found array of i16, allowed is an array of string");
  refused([&] { (void)m.get_strings("text"); }, "found string");
}

TEST_CASE("model.metadata: arrays convert element by element") {
  const auto m = sample();
  CHECK(m.get_array<std::int16_t>("ints") == std::vector<std::int16_t>{1, 2, 300});
  CHECK(m.get_array<std::uint64_t>("ints") == std::vector<std::uint64_t>{1, 2, 300});
  CHECK(m.get_array<double>("floats") == std::vector<double>{1.5, -0.25});
  CHECK(m.get_array<bool>("flags") == std::vector<bool>{true, false});
  CHECK(m.get_array<std::string>("words") == std::vector<std::string>{"a", "", "bc"});
  CHECK(!m.find_array<float>("absent"));
  CHECK(m.find_array<float>("floats")->size() == 2);
  refused([&] { (void)m.get_array<std::uint8_t>("ints"); }, "element 2 is 300, allowed is 0 to 255");
  refused([&] { (void)m.get_array<float>("ints"); }, "found array of i16, allowed is an array of f32 or f64");
  refused([&] { (void)m.get_array<std::int32_t>("flags"); }, "found array of bool");
  refused([&] { (void)m.get_array<std::int32_t>("u8"); }, "found u8, allowed is an array of integers");
  refused([&] { (void)m.get_array<std::string>("ints"); }, "an array of string");
  refused([&] { (void)m.get_array<float>("words"); }, "found array of string, allowed is an array of f32 or f64");
}

TEST_CASE("model.metadata: keeps the order of insertion and refuses a second value for a key") {
  auto m = sample();
  CHECK(m.entries().front().key == "u8");
  CHECK(m.entries().back().key == "words");
  CHECK_FALSE(m.insert("u8", std::uint8_t{1}));
  CHECK(m.get_u64("u8") == 7);
  m.set("u8", std::uint8_t{1});
  CHECK(m.get_u64("u8") == 1);
  CHECK(m.entries().front().key == "u8");
  const Metadata copy = m;
  m.set("new", false);
  CHECK(copy.size() + 1 == m.size());
  CHECK(copy.get_string("text") == "hello");
  CHECK_FALSE(copy.contains("new"));
}

TEST_CASE("model.metadata: type names say what nested arrays hold") {
  CHECK(type_name(std::uint8_t{1}) == "u8");
  CHECK(type_name(1.0) == "f64");
  CHECK(type_name(MetadataArray{std::vector<MetadataArray>{{std::vector<float>{}}}}) == "array of array of f32");
  CHECK(type_name(MetadataArray{std::vector<MetadataArray>{}}) == "array of array");
}

TEST_CASE("model.metadata: a string array is a random-access range") {
  const StringArray words(std::vector<std::string>{"x", "yy", "zzz"});
  CHECK(std::distance(words.begin(), words.end()) == 3);
  CHECK(words.begin()[2] == "zzz");
  CHECK(*(words.end() - 1) == "zzz");
  CHECK(words == StringArray(std::vector<std::string_view>{"x", "yy", "zzz"}));
  static_assert(std::random_access_iterator<StringArray::Iterator>);
}
