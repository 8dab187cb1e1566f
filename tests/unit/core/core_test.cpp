#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include <skald/core/byte_source.hpp>
#include <skald/core/dtype.hpp>
#include <skald/core/error.hpp>
#include <skald/core/executor.hpp>
#include <skald/core/half.hpp>
#include <skald/core/memory.hpp>
#include <skald/core/random.hpp>
#include <skald/core/tensor.hpp>

#include "support/catch.hpp"

TEST_CASE("core.error: what() names place and context, escapes and stays short", "[core]") {
  const skald::FormatError error("model.gguf", "bad count 5", {.file = "m.gguf", .offset = 24, .key = "a\nb"});
  CHECK(std::string(error.what()) == "[model.gguf] m.gguf: offset 24: key 'a\\x0Ab': bad count 5");
  CHECK(error.code() == skald::ErrorCode::format);
  CHECK(error.to_json() ==
        R"({"code":"format","where":"model.gguf","message":"bad count 5","file":"m.gguf","offset":24,"key":"a\\x0Ab"})");
  const skald::UsageError large("x", std::string(100000, 'y'), {.file = std::string(5000, 'f')});
  CHECK(std::strlen(large.what()) <= 1024);
  CHECK_THROWS_AS(skald::detail::throw_error(skald::ErrorCode::io, "a", "b"), skald::IoError);
  CHECK(skald::printable("a\xFFz\xC3\xA9") == "a\\xFFz\xC3\xA9");
}

TEST_CASE("core.half: every binary16 value survives the round trip, rounding is to nearest even", "[core]") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = skald::f16_to_f32(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) CHECK(std::isnan(skald::f16_to_f32(skald::f32_to_f16(value))));
    else if (skald::f32_to_f16(value) != bits) FAIL("f16 " << bits);
    const float wide = skald::bf16_to_f32(static_cast<std::uint16_t>(bits));
    if (!std::isnan(wide) && skald::f32_to_bf16(wide) != bits) FAIL("bf16 " << bits);
  }
  CHECK(skald::f32_to_f16(65519.996F) == 0x7BFF);
  CHECK(skald::f32_to_f16(65520.0F) == 0x7C00);
  CHECK(skald::f32_to_f16(0x1p-25F) == 0);            // tie to even
  CHECK(skald::f32_to_f16(0x1.000002p-25F) == 1);
  CHECK(skald::f32_to_f16(1.0F + 0x1p-11F) == 0x3C00);  // tie to even
  CHECK(skald::f32_to_f16(1.0F + 3 * 0x1p-11F) == 0x3C02);
  CHECK(skald::f32_to_bf16(1.0F + 0x1p-8F) == 0x3F80);
  CHECK(skald::f32_to_bf16(std::numeric_limits<float>::max()) == 0x7F80);
}

TEST_CASE("core.dtype: names, ids and row sizes", "[core]") {
  CHECK(skald::dtype_from_name("Q4_K") == skald::DType::q4_k);
  CHECK_FALSE(skald::dtype_from_name("q9").has_value());
  CHECK(skald::row_bytes(skald::DType::q4_0, 64) == 36);
  CHECK(skald::row_bytes(skald::DType::q6_k, 512) == 420);
  CHECK_THROWS_AS(skald::row_bytes(skald::DType::q4_k, 100), skald::UsageError);
  CHECK_THROWS_AS(skald::dtype_info(static_cast<skald::DType>(4)), skald::UnsupportedError);
}

TEST_CASE("core.executor: runs every index once, on one and on many threads, and passes exceptions on", "[core]") {
  for (const int threads : {1, 3, 8}) {
    const auto executor = skald::make_tbb_executor(threads);
    CHECK(executor.concurrency() >= 1);
    std::array<std::atomic<int>, 100> calls{};
    executor.run(100, [&](int i) { calls[static_cast<std::size_t>(i)]++; });
    for (const auto& c : calls) CHECK(c == 1);
    CHECK_THROWS_AS(executor.run(4, [](int i) { if (i == 2) throw skald::UsageError("t", "x"); }), skald::UsageError);
  }
  CHECK(skald::available_threads() >= 1);
}

TEST_CASE("core.memory: buffers are zeroed and aligned, an arena refuses more than it has", "[core]") {
  for (const std::size_t bytes : {1u, 100u, 100000u, 5000000u}) {
    skald::AlignedBuffer buffer(bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64 == 0);
    CHECK(buffer.data()[bytes - 1] == std::byte{0});
    buffer.data()[bytes - 1] = std::byte{1};
  }
  CHECK_THROWS_AS(skald::AlignedBuffer(std::size_t{1} << 60), skald::OutOfMemoryError);
  skald::Arena arena(1024);
  CHECK(arena.take_of<float>(100).size() == 100);
  CHECK_THROWS_AS(arena.take(1000), skald::OutOfMemoryError);
  arena.reset();
  CHECK(arena.take(1024).size() == 1024);
}

TEST_CASE("core.byte_source: every source refuses what lies outside", "[core]") {
  std::array<std::byte, 10> bytes{};
  bytes[3] = std::byte{7};
  const skald::AnyByteSource span(skald::SpanSource(bytes), "memory");
  std::array<std::byte, 4> out{};
  span.read(2, out);
  CHECK(out[1] == std::byte{7});
  CHECK(span.view(3, 1)[0] == std::byte{7});
  CHECK(span.view(8, 3).empty());
  CHECK_THROWS_AS(span.read(7, out), skald::IoError);
  CHECK_THROWS_AS(span.read(~0ull, out), skald::IoError);
  const skald::AnyByteSource slice(skald::SliceSource(span, 3, 5), "slice");
  slice.read(0, out);
  CHECK(out[0] == std::byte{7});
  CHECK_THROWS_AS(slice.read(2, out), skald::IoError);
  const skald::AnyByteSource callback(
      skald::CallbackSource(4, [](std::uint64_t o, std::span<std::byte> to) { to[0] = static_cast<std::byte>(o); }), "cb");
  callback.read(3, std::span(out).first(1));
  CHECK(out[0] == std::byte{3});
  CHECK(callback.view(0, 1).empty());
  CHECK_THROWS_AS(skald::open_file("/nonexistent"), skald::IoError);
  CHECK_THROWS_AS(skald::map_file("/tmp"), skald::IoError);
}

TEST_CASE("core.tensor: views slice, transpose and index", "[core]") {
  skald::Tensor<int, 3> tensor({2, 3, 4});
  int n = 0;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) tensor(i, j, k) = n++;
  const auto view = tensor.view();
  CHECK(view[1][2][3] == 23);
  CHECK(view.transposed(0, 2)(3, 2, 1) == 23);
  CHECK_FALSE(view.transposed(0, 2).contiguous());
  CHECK(view.slice(1, 1, 3)(1, 0, 0) == 16);
  const skald::TensorView<const int, 3> constant = view;
  CHECK(constant.size() == 24);
  CHECK_THROWS_AS((skald::Tensor<int, 2>({std::int64_t{1} << 40, std::int64_t{1} << 40})), skald::UsageError);
}

TEST_CASE("core.random: known answers of Philox4x32-10 and independence of streams", "[core]") {
  // Known-answer vectors of the Random123 distribution.
  CHECK(skald::philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(skald::philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  skald::CounterRandom a(1, 2, 3);
  skald::CounterRandom b(1, 2, 4);
  CHECK(a.next() != b.next());
  double sum = 0;
  for (int i = 0; i < 10000; ++i) sum += a.uniform();
  CHECK(sum / 10000 == Approx(0.5).margin(0.02));
}
