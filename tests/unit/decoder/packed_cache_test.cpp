// Packed weights kept in a file: LoadOptions::packed_cache.
#include <cstring>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <skald/core/error.hpp>
#include <skald/core/file.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/model/model.hpp>
#include <skald/quant/row_codec.hpp>
#include <skald/simd/isa.hpp>

#include "model/packed_cache.hpp"
#include "support/catch.hpp"
#include "support/tiny_model.hpp"

namespace {

namespace fs = std::filesystem;

struct Folder {
  Folder() : path(fs::temp_directory_path() / ("skald_packed_cache_" + std::to_string(::getpid()))) {
    fs::create_directory(path);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  [[nodiscard]] std::string file(const char* name) const { return (path / name).string(); }
  fs::path path;
};

void write(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

skald::Model load(const Folder& folder, skald::LoadOptions options = {}) {
  options.packed_cache = folder.file("packed");
  options.tokenizer = false;
  return skald::Model::load(folder.file("model.gguf"), options);
}

std::vector<float> logits(const skald::Model& model) {
  skald::Decoder<> decoder(model, skald::DecoderOptions{});
  auto session = decoder.new_session();
  const auto tokens = skald_test::some_tokens(20, model.spec().vocabulary);
  const auto rows = session.forward(tokens, skald::LogitsWanted::all);
  return {rows.row(0).data(), rows.row(0).data() + rows.rows() * rows.vocabulary()};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool mentions(const std::string& text, const std::string& part) {
  UNSCOPED_INFO(text);
  return text.find(part) != std::string::npos;
}

/// Loads with whatever lies at the packed file's place: it must be rebuilt for the given reason, and work.
void check_rebuilt(const Folder& folder, const std::string& reason, const std::vector<float>& expected) {
  const auto model = load(folder);
  CHECK(model.info().packed_cache == "written");
  CHECK(mentions(model.info().packed_cache_reason, reason));
  CHECK(same_bits(logits(model), expected));
  CHECK(load(folder).info().packed_cache == "mapped");
}

}  // namespace

TEST_CASE("decoder.packed_cache: weights from the mapped file give the same bits in every format") {
  std::vector<skald::DType> types{skald::DType::f32, skald::DType::f16, skald::DType::bf16};
  for (const auto type : skald::block_formats())
    if (skald::dtype_info(type).quantized) types.push_back(type);
  for (const auto type : types) {
    INFO(skald::to_string(type));
    const Folder folder;
    write(folder.file("model.gguf"), skald_test::tiny_gguf({.vocabulary = 35, .layers = 1, .type = type}));
    skald::LoadOptions plain;
    plain.tokenizer = false;
    const auto without = skald::Model::load(folder.file("model.gguf"), plain);
    CHECK(without.info().packed_cache.empty());
    const auto expected = logits(without);

    const auto first = load(folder);
    CHECK(first.info().packed_cache == "written");
    CHECK(first.info().packed_cache_reason == "there is none");
    CHECK(same_bits(logits(first), expected));
    std::uint64_t done = 0, total = 1;
    skald::LoadOptions watched;
    watched.progress = [&](const skald::Progress& progress) { done = progress.done, total = progress.total; };
    const auto second = load(folder, watched);
    CHECK(second.info().packed_cache == "mapped");
    CHECK(second.info().packed_cache_reason.empty());
    CHECK(done == total);
    CHECK(second.info().weight_bytes == without.info().weight_bytes);
    CHECK(second.fingerprint() == without.fingerprint());
    CHECK(same_bits(logits(second), expected));
    // Nothing temporary is left behind.
    CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 2);
  }
}

TEST_CASE("decoder.packed_cache: a file that does not fit is rebuilt, and the reason is told") {
  const Folder folder;
  const auto bytes = skald_test::tiny_gguf({.type = skald::DType::q4_k});
  write(folder.file("model.gguf"), bytes);
  const auto expected = logits(load(folder));
  const std::string packed = folder.file("packed");
  const auto good = skald::read_whole_file(packed);

  write(packed, {});
  check_rebuilt(folder, "too few", expected);
  write(packed, bytes);
  check_rebuilt(folder, "not a file of packed weights", expected);
  write(packed, std::span(good).first(good.size() - 1));
  check_rebuilt(folder, "its header says", expected);
  auto damaged = good;
  damaged[8] = std::byte{7};
  write(packed, damaged);
  check_rebuilt(folder, "version 7", expected);
  damaged = good;
  damaged.back() ^= std::byte{1};  // padding or a weight: both lie behind the header
  damaged[good.size() / 2] ^= std::byte{64};
  write(packed, damaged);
  check_rebuilt(folder, "is damaged", expected);
  fs::remove(packed);
  fs::create_directory(packed);
  const auto blocked = load(folder);
  CHECK(blocked.info().packed_cache == "unused");
  CHECK(mentions(blocked.info().packed_cache_reason, "not written"));
  CHECK(same_bits(logits(blocked), expected));
  fs::remove(packed);

  static_cast<void>(load(folder));
  fs::last_write_time(folder.file("model.gguf"), fs::last_write_time(folder.file("model.gguf")) + std::chrono::seconds(5));
  check_rebuilt(folder, "model file has changed", expected);
  const auto isas = skald::available_isas();
  if (isas.size() > 1) {
    skald::LoadOptions other;
    const auto isa = isas.front() == skald::default_isa() ? isas.back() : isas.front();
    other.backend = skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa)));
    CHECK(mentions(load(folder, other).info().packed_cache_reason, "its layout is"));
    check_rebuilt(folder, "its layout is", expected);
  }
}

TEST_CASE("decoder.packed_cache: no byte of the header can be changed, and no lie in it is believed") {
  const Folder folder;
  write(folder.file("model.gguf"), skald_test::tiny_gguf({.vocabulary = 35, .layers = 1, .type = skald::DType::q8_0}));
  static_cast<void>(load(folder));
  const auto good = skald::read_whole_file(folder.file("packed"));
  const skald::AnyByteSource source(skald::SpanSource(good), "good");
  const auto header = skald::read_packed_header(source);
  const std::size_t header_bytes = static_cast<std::size_t>(header.entries.front().offset);
  for (std::size_t at = 0; at < header_bytes; ++at) {
    auto bytes = good;
    bytes[at] ^= std::byte{0x81};
    CHECK_THROWS_AS(skald::read_packed_header({skald::SpanSource(bytes), "bad"}), skald::FormatError);
  }
  for (std::size_t size = 0; size < header_bytes; size += 7)
    CHECK_THROWS_AS(skald::read_packed_header({skald::SpanSource(std::span(good).first(size)), "short"}), skald::Error);

  // Headers with a right checksum and wrong contents.
  const auto refused = [&](const skald::PackedHeader& lie) {
    auto bytes = skald::encode_header(lie, good.size());
    bytes.resize(good.size());
    try {
      static_cast<void>(skald::read_packed_header({skald::SpanSource(bytes), "lie"}));
    } catch (const skald::FormatError&) {
      return true;
    }
    return false;
  };
  CHECK_FALSE(refused(header));
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{64}, header.entries[0].offset + 1, good.size() + 64,
                                     ~std::uint64_t{0}, ~std::uint64_t{63}}) {
    auto lie = header;
    lie.entries[0].offset = offset;
    CHECK(refused(lie));
  }
  for (const std::uint64_t bytes : {good.size(), ~std::uint64_t{0}, ~std::uint64_t{0} - header.entries[0].offset + 1}) {
    auto lie = header;
    lie.entries[0].bytes = bytes;
    CHECK(refused(lie));
  }
  auto lie = header;
  lie.entries[0].role = std::string(5000, 'x');
  CHECK(refused(lie));
  lie = header;
  lie.entries.pop_back();
  CHECK_FALSE(refused(lie));  // well-formed, but not what the model needs:
  auto bytes = skald::encode_header(lie, good.size());
  auto whole = good;
  std::copy(bytes.begin(), bytes.end(), whole.begin());
  write(folder.file("packed"), whole);
  CHECK(mentions(load(folder).info().packed_cache_reason, "weights, the model has"));
  lie = header;
  lie.entries[0].rows += 16;
  bytes = skald::encode_header(lie, good.size());
  whole = good;
  std::copy(bytes.begin(), bytes.end(), whole.begin());
  write(folder.file("packed"), whole);
  CHECK(mentions(load(folder).info().packed_cache_reason, "needed is"));
}

TEST_CASE("decoder.packed_cache: what cannot use it says so") {
  const Folder folder;
  write(folder.file("model.gguf"), skald_test::tiny_gguf({.layers = 1, .type = skald::DType::q8_0}));
  skald::LoadOptions options;
  options.layout = skald::WeightLayout::rows;
  CHECK_THROWS_AS(load(folder, options), skald::UsageError);
  options = {};
  options.backend = skald::make_backend("reference");
  CHECK(load(folder, options).info().packed_cache == "unused");
  options = {};
  options.check_weights = true;
  CHECK(mentions(load(folder, options).info().packed_cache_reason, "check_weights"));
  options = {};
  options.packed_cache = folder.file("packed");
  CHECK(skald_test::tiny_model({.layers = 1}, options).info().packed_cache_reason == "the model does not come from files");
  CHECK_FALSE(fs::exists(folder.file("packed")));
  std::stop_source stop;
  stop.request_stop();
  options = {};
  options.stop = stop.get_token();
  CHECK_THROWS_AS(load(folder, options), skald::CancelledError);
  CHECK_FALSE(fs::exists(folder.file("packed")));
}
