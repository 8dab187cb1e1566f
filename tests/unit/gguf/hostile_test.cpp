#include <atomic>
#include <filesystem>
#include <set>

#include <skald/core/error.hpp>

#include "samples.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/gguf_defects.hpp"
#include "support/shared_data.hpp"

using namespace skald;
using namespace skald_test;

namespace {

constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20;

struct Watched {
  std::shared_ptr<std::atomic<std::uint64_t>> bytes_read = std::make_shared<std::atomic<std::uint64_t>>(0);
  AnyByteSource source;
  explicit Watched(std::span<const std::byte> bytes)
      : source(CallbackSource(bytes.size(),
                              [bytes, count = bytes_read](std::uint64_t offset, std::span<std::byte> out) {
                                *count += out.size();
                                std::memcpy(out.data(), bytes.data() + offset, out.size());
                              }),
               "hostile.gguf") {}
};

/// Reading must throw a skald::Error that names the place, with bounded memory and work.
void check_refused(const Defect& defect) {
  INFO(defect.name);
  const Watched watched(defect.bytes);
  const AllocationCounter memory;
  try {
    (void)read_gguf(watched.source);
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    INFO(error.what());
    CHECK((error.code() == ErrorCode::format || error.code() == ErrorCode::unsupported));
    const auto& context = error.context();
    CHECK(context.file == "hostile.gguf");
    CHECK((context.offset || !context.key.empty() || !context.tensor.empty()));
    CHECK(std::string_view(error.what()).size() <= 1024);
  } catch (const std::exception& error) {
    FAIL_CHECK("not a skald::Error: " << error.what());
  }
  CHECK(memory.peak_bytes() < 3 * defect.bytes.size() + 8 * mebibyte);
  CHECK(*watched.bytes_read <= defect.bytes.size());
}

}  // namespace

TEST_CASE("model.gguf: every structural defect is an error that names the place") {
  const auto valid = sample_writer().to_bytes();
  CHECK_NOTHROW(read_gguf(memory_source(valid)));
  CHECK(parse_raw(valid).encode() == valid);
  const auto defects = container_defects(valid);
  CHECK(defects.size() >= 60);
  std::set<std::string> names;
  for (const auto& defect : defects) {
    CHECK(names.insert(defect.name).second);
    CHECK(defect.bytes != valid);
    check_refused(defect);
  }
}

TEST_CASE("model.gguf: the defects of real models are errors too") {
  for (const std::string name : {"goldens/models/llama2-spm.gguf", "goldens/quants/models/quant-Q4_K_M-mix.gguf"}) {
    if (!have_shared(name)) continue;
    const auto text = read_text(shared_path(name));
    const auto bytes = std::as_bytes(std::span(text));
    for (const auto& defect : container_defects(bytes)) check_refused(defect);
  }
}

TEST_CASE("model.gguf: every truncation is an error that names the place") {
  for (const auto& defect : truncations(sample_writer().to_bytes())) check_refused(defect);
  if (!have_shared("goldens/models/qwen2.gguf")) return;
  const auto text = read_text(shared_path("goldens/models/qwen2.gguf"));
  for (const auto& defect : truncations(std::as_bytes(std::span(text)))) check_refused(defect);
}

TEST_CASE("model.gguf: every single changed byte of a header is accepted or refused, never worse") {
  const auto valid = sample_writer().to_bytes();
  const auto header = valid.size() - parse_raw(valid).data.size();
  std::size_t refused = 0;
  for (std::size_t i = 0; i < header; ++i) {
    for (const unsigned mask : {0x01u, 0x80u, 0xFFu}) {
      auto bytes = valid;
      bytes[i] ^= static_cast<std::byte>(mask);
      const AllocationCounter memory;
      try {
        const auto file = read_gguf(memory_source(bytes));
        for (const auto& tensor : file.tensors()) CHECK(file.view(tensor).size() == tensor.bytes);
      } catch (const Error& error) {
        ++refused;
        CHECK(error.context().file == "sample.gguf");
      }
      CHECK(memory.peak_bytes() < 8 * mebibyte);
    }
  }
  CHECK(refused > header);  // of three per byte
}

TEST_CASE("model.gguf: when the n-th allocation fails, reading throws, leaks nothing and works afterwards") {
  const AnyByteSource source = memory_source(sample_writer().to_bytes(), "a name too long to be kept in place.gguf");
  std::uint64_t calls = 0;
  {
    auto argument = source;  // its copy is not part of reading
    const AllocationCounter counter;
    (void)read_gguf(std::move(argument));
    calls = counter.calls();
  }
  REQUIRE(calls > 20);
  for (std::uint64_t n = 1; n <= calls; ++n) {
    AllocationCounter counter;
    bool out_of_memory = false;
    try {
      auto argument = source;
      counter.fail_at(n);
      (void)read_gguf(std::move(argument));
    } catch (const OutOfMemoryError&) {
      out_of_memory = true;
    } catch (const std::bad_alloc&) {
    }
    counter.fail_at(0);
    const auto live = counter.live_bytes();
    CHECK(out_of_memory);
    CHECK(live == 0);
  }
  CHECK_NOTHROW(read_gguf(source));
}

TEST_CASE("model.gguf: when the n-th read fails, its exception comes through") {
  const auto bytes = sample_writer().to_bytes();
  for (int n = 0; n < 3; ++n) {
    auto left = std::make_shared<int>(n);
    const AnyByteSource source(CallbackSource(bytes.size(),
                                              [&bytes, left](std::uint64_t offset, std::span<std::byte> out) {
                                                if ((*left)-- == 0) throw IoError("test", "read failed");
                                                std::memcpy(out.data(), bytes.data() + offset, out.size());
                                              }),
                               "failing");
    if (n == 0) CHECK_THROWS_AS(read_gguf(source), IoError);
    else CHECK_NOTHROW(read_gguf(source));  // a small header takes one read
  }
}

TEST_CASE("model.gguf: a header that exceeds the limit is refused before it is read") {
  GgufWriter writer;
  writer.set("big", MetadataArray{std::vector<std::uint8_t>(3 * mebibyte)});
  const auto source = memory_source(writer.to_bytes());
  CHECK(read_gguf(source).metadata().size() == 1);
  const AllocationCounter memory;
  try {
    (void)read_gguf(source, {.max_header_bytes = mebibyte});
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.message().find("header limit of 1048576") != std::string::npos);
    CHECK(error.context().key == "big");
  }
  CHECK(memory.peak_bytes() < mebibyte);
}

TEST_CASE("model.gguf: a sparse file of a tebibyte cannot make the reader allocate what its header claims") {
  auto raw = parse_raw(sample_writer().to_bytes());
  const std::uint64_t claimed = std::uint64_t{1} << 39;
  const Bytes claims[] = {bytes_of(std::uint32_t{raw_array}, std::uint32_t{raw_u8}, claimed),
                          bytes_of(std::uint32_t{raw_array}, std::uint32_t{raw_string}, claimed / 8),
                          bytes_of(std::uint32_t{raw_array}, std::uint32_t{raw_bool}, claimed),
                          bytes_of(std::uint32_t{raw_string}, claimed)};
  for (const auto& claim : claims) {
    const auto start = bytes_of(raw.magic, raw.version, std::uint64_t{0}, std::uint64_t{1}) + gguf_string("k") + claim;
    const AnyByteSource source(CallbackSource(std::uint64_t{1} << 40,
                                              [&](std::uint64_t offset, std::span<std::byte> out) {
                                                for (std::size_t i = 0; i < out.size(); ++i)
                                                  out[i] = offset + i < start.size() ? start[offset + i] : std::byte{};
                                              }),
                               "sparse");
    const AllocationCounter memory;
    try {
      (void)read_gguf(source);
      FAIL_CHECK("accepted");
    } catch (const FormatError& error) {
      INFO(error.what());
      CHECK(error.message().find("header limit") != std::string::npos);
      CHECK(error.context().key == "k");
    }
    CHECK(memory.peak_bytes() < mebibyte);
  }
}

TEST_CASE("model.gguf: many keys and tensors, and colliding prefixes, are read in linear work") {
  GgufWriter writer;
  const std::vector<std::byte> bytes(4);
  for (int i = 0; i < 65536; ++i) {
    writer.set(std::string(200, 'k') + std::to_string(i), std::uint8_t{1});
    writer.add_tensor("t" + std::to_string(i), DType::f32, {1}, bytes);
  }
  const auto file_bytes = writer.to_bytes();
  const Watched watched(file_bytes);
  const auto file = read_gguf(watched.source);
  CHECK(file.metadata().size() == 65536);
  CHECK(file.find("t65535") == &file.tensors().back());
  CHECK(*watched.bytes_read < file_bytes.size());
}
