#include <cstring>
#include <string>

#include "support/catch.hpp"
#include "unit/kernels/attention_problem.hpp"

using namespace skald_test;

namespace {

std::string describe(const Shape& s, skald::Isa isa) {
  return std::string(skald::to_string(isa)) + " " + std::string(skald::to_string(s.type)) + " page " +
         std::to_string(s.page_tokens) + " kv_heads " + std::to_string(s.kv_heads) + " heads " +
         std::to_string(s.heads) + " dims " + std::to_string(s.dims_k) + "/" + std::to_string(s.dims_v) + " before " +
         std::to_string(s.before) + " rows " + std::to_string(s.rows) + " window " + std::to_string(s.window) +
         " softcap " + std::to_string(s.softcap) + (s.tree ? " tree" : "") + " mask " + std::to_string(s.mask) +
         (s.sinks ? " sinks" : "") + (s.slopes ? " slopes" : "") + " bias " + std::to_string(s.bias_reach) +
         (s.values_in_keys ? " values in keys" : "") + (s.slot_bias ? " slot bias" : "") +
         (s.positions ? " positions" : "") + (s.until ? " until" : "");
}

Shape random_shape(std::mt19937& random, int longest) {
  const auto pick = [&](std::initializer_list<int> list) { return list.begin()[random() % list.size()]; };
  Shape s;
  s.type = std::initializer_list<DType>{DType::f16,  DType::f16,  DType::f32, DType::bf16,
                                        DType::q8_0, DType::q8_0, DType::q4_0, DType::q4_1}
               .begin()[random() % 8];
  s.page_tokens = pick({16, 64, 256});
  s.kv_heads = pick({1, 1, 2, 3});
  s.heads = pick({1, 2, 3, 4, 5, 6, 7, 8});
  s.dims_k = pick({16, 24, 64, 64, 80, 96, 128, 256, 7});
  s.dims_v = random() % 4 != 0 ? s.dims_k : pick({8, 16, 24, 64, 128, 33});
  s.rows = random() % 3 == 0 ? 1 : 1 + static_cast<int>(random() % 70);
  const int length = 1 + static_cast<int>(random() % static_cast<unsigned>(longest));
  s.before = std::max(0, length - s.rows);
  s.window = random() % 3 == 0 ? 1 + static_cast<int>(random() % 400) : 0;
  s.softcap = random() % 4 == 0 ? 5.0F : 0.0F;
  s.magnitude = random() % 4 == 0 ? 4.0F : 1.0F;
  s.tree = random() % 4 == 0;
  s.low = random() % 2 == 0;
  if (random() % 3 == 0) {
    s.mask = s.tree ? 0 : pick({0, 1, 2});
    if (s.mask == 2) s.window = 0;
    s.sinks = random() % 2 == 0;
    s.slopes = random() % 3 == 0;
    s.bias_reach = random() % 3 == 0 ? pick({0, 5, 100}) : -1;
    s.values_in_keys = random() % 2 == 0;
    if (s.values_in_keys) s.dims_v = std::min(s.dims_v, s.dims_k);
  }
  if (random() % 3 == 0 && s.mask == 0) {
    s.slot_bias = random() % 2 == 0;
    s.positions = random() % 2 == 0;
    s.until = random() % 2 == 0;
  }
  return s;
}

bool same_bits(const float* a, const float* b, std::size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

/// All rows and KV heads at once.
std::vector<float> together(const Problem& problem, const Shape& s) {
  const Guarded<float> out(problem.out_size(), s.low);
  for (int head = 0; head < s.kv_heads; ++head) problem.whole(problem.task(head, 0, s.rows, out.data()));
  return {out.data(), out.data() + out.size()};
}

}  // namespace

TEST_CASE("kernels.attention: agrees with plain attention in double precision", "[kernels]") {
  std::mt19937 random(1);
  double worst = 0;
  for (int repetition = 0; repetition < 60; ++repetition) {
    const Shape s = random_shape(random, repetition < 45 ? 600 : 1500);
    const auto seed = static_cast<unsigned>(random());
    for (const IsaKernels& isa : available_kernels()) {
      INFO(describe(s, isa.isa));
      Problem problem(s, isa.of(s.type), seed);
      const std::vector<float> out = together(problem, s);
      // All heads of a few rows: the naive computation is slow.
      for (int row = 0; row < s.rows; row += 1 + s.rows / 5) {
        for (int head = 0; head < s.kv_heads; ++head) {
          for (int h = 0; h < s.heads; ++h) {
            const Problem::Exact exact = problem.exact(row, head, h);
            const float* actual =
                out.data() + row * problem.out_stride() + static_cast<std::ptrdiff_t>(head * s.heads + h) * s.dims_v;
            double error = 0;
            for (int d = 0; d < s.dims_v; ++d) {
              const double difference = std::abs(actual[d] - exact.out[static_cast<std::size_t>(d)]);
              error = difference <= exact.bound ? std::max(error, difference) : 2 * exact.bound;  // NaN fails too
            }
            worst = std::max(worst, error / exact.bound);
            if (!(error <= exact.bound))
              FAIL("row " << row << " head " << head << "/" << h << ": " << error << " > " << exact.bound);
          }
        }
      }
    }
  }
  INFO("largest error relative to its bound: " << worst);
  CHECK(worst > 0);
  CHECK(worst < 0.05);  // 0.0105 measured: roundings cancel
}

TEST_CASE("kernels.attention: chunks that are merged give the bits of the whole", "[kernels]") {
  std::mt19937 random(2);
  for (int repetition = 0; repetition < 60; ++repetition) {
    const Shape s = random_shape(random, 1500);
    for (const IsaKernels& isa : available_kernels()) {
      INFO(describe(s, isa.isa));
      const Problem problem(s, isa.of(s.type), static_cast<unsigned>(repetition));
      const std::vector<float> expected = together(problem, s);
      const Guarded<float> out(problem.out_size(), s.low);
      for (int head = 0; head < s.kv_heads; ++head) problem.chunk_by_chunk(problem.task(head, 0, s.rows, out.data()));
      CHECK(same_bits(out.data(), expected.data(), expected.size()));
    }
  }
}

TEST_CASE("kernels.attention: a row's bits depend neither on other rows nor on the segment's borders", "[kernels]") {
  std::mt19937 random(3);
  for (int repetition = 0; repetition < 24; ++repetition) {
    Shape s = random_shape(random, 900);
    if (repetition < 4) s.rows = 300;
    s.tree = s.tree && repetition % 2 == 0;
    for (const IsaKernels& isa : available_kernels()) {
      INFO(describe(s, isa.isa));
      const Problem problem(s, isa.of(s.type), static_cast<unsigned>(repetition));
      const std::vector<float> expected = together(problem, s);
      const Guarded<float> out(problem.out_size());
      for (int head = 0; head < s.kv_heads; ++head) {
        for (int row = 0; row < s.rows; ++row) {
          AttentionTask task = problem.task(head, row, row + 1, out.data());
          if (!s.tree && s.mask == 0) {  // as if the earlier rows had come in batches of their own
            task.slot_base += task.first_row;
            task.position += task.first_row;
            task.first_row = 0;
            task.segment_rows = 1;
          }
          problem.whole(task);
        }
      }
      CHECK(same_bits(out.data(), expected.data(), expected.size()));
      for (int head = 0; head < s.kv_heads; ++head) {
        for (int row = 0, end; row < s.rows; row = end) {
          end = std::min(s.rows, row + 1 + static_cast<int>(random() % 40));
          problem.whole(problem.task(head, row, end, out.data()));
        }
      }
      CHECK(same_bits(out.data(), expected.data(), expected.size()));
    }
  }
}

TEST_CASE("kernels.attention: a query head's bits depend neither on the other heads nor on the page size",
          "[kernels]") {
  std::mt19937 random(4);
  for (int repetition = 0; repetition < 24; ++repetition) {
    Shape s = random_shape(random, 900);
    for (const IsaKernels& isa : available_kernels()) {
      INFO(describe(s, isa.isa));
      const Problem problem(s, isa.of(s.type), 7);
      const std::vector<float> expected = together(problem, s);
      const Guarded<float> out(problem.out_size());
      for (int head = 0; head < s.kv_heads; ++head) {
        for (int h = 0; h < s.heads; ++h) {
          AttentionTask task = problem.task(head, 0, s.rows, out.data());
          task.heads = 1;
          task.q += h * s.dims_k;
          task.out += h * s.dims_v;
          if (s.sinks) task.sinks += h;
          if (s.slopes) task.slopes += h;
          if (s.bias_reach >= 0) task.bias += h * (2 * s.bias_reach + 1);
          problem.whole(task);
        }
      }
      CHECK(same_bits(out.data(), expected.data(), expected.size()));
      for (const int page : {16, 32, 64, 128, 256}) {
        Shape other = s;
        other.page_tokens = page;
        CHECK(same_bits(together(Problem(other, isa.of(s.type), 7), other).data(), expected.data(), expected.size()));
      }
    }
  }
}

TEST_CASE("kernels.attention: what a row does not see cannot reach it", "[kernels]") {
  std::mt19937 random(5);
  for (int repetition = 0; repetition < 20; ++repetition) {
    Shape s = random_shape(random, 700);
    s.rows = 2 + static_cast<int>(random() % 60);
    for (const IsaKernels& isa : available_kernels()) {
      INFO(describe(s, isa.isa));
      Problem problem(s, isa.of(s.type), static_cast<unsigned>(repetition));
      const std::vector<float> before = together(problem, s);
      // Infinities and NaN in one row of the segment and in one earlier slot.
      const int row = static_cast<int>(random() % static_cast<unsigned>(s.rows));
      const int slot = repetition % 2 == 0 ? s.before + row : s.before / 2;
      const std::vector<float> keys(static_cast<std::size_t>(s.dims_k), std::numeric_limits<float>::quiet_NaN());
      const std::vector<float> values(static_cast<std::size_t>(s.dims_v), std::numeric_limits<float>::infinity());
      problem.write(slot, 0, keys.data(), values.data());
      const std::vector<float> after = together(problem, s);
      const auto n = static_cast<std::size_t>(s.heads * s.dims_v);
      for (int r = 0; r < s.rows; ++r) {
        const std::ptrdiff_t at = r * problem.out_stride();
        if (problem.sees(r, slot)) CHECK(std::isnan(after[static_cast<std::size_t>(at)]));
        else CHECK(same_bits(before.data() + at, after.data() + at, n));
      }
    }
  }
}

TEST_CASE("kernels.attention: probabilities reach the score sink", "[kernels]") {
  std::mt19937 random(6);
  for (int repetition = 0; repetition < 16; ++repetition) {
    Shape s = random_shape(random, 700);
    s.rows = std::min(s.rows, 30);
    for (const IsaKernels& isa : available_kernels()) {
      INFO(describe(s, isa.isa));
      const AttentionKernel& kernel = isa.of(s.type);
      Problem problem(s, kernel, static_cast<unsigned>(repetition));
      const auto slots = static_cast<std::size_t>(s.before + s.rows);
      const AttentionTask task = problem.task(0, 0, s.rows, nullptr);
      const Guarded<std::byte> scratch(kernel.scratch_bytes(s.dims_k, s.dims_v, s.heads, s.rows));
      std::vector<double> sum(slots), top(slots);
      for (int row = 0; row < s.rows; ++row) {
        for (int h = 0; h < s.heads; ++h) {
          const std::vector<double> p = problem.exact(row, 0, h).probability;
          for (std::size_t i = 0; i < slots; ++i) {
            sum[i] += p[i];
            top[i] = std::max(top[i], p[i]);
          }
        }
      }
      const Guarded<float> scores(slots, s.low);
      for (std::size_t i = 0; i < slots; ++i) scores[i] = 0;
      kernel.scores(task, 1, scores.data(), scratch.data());
      for (std::size_t i = 0; i < slots; ++i) CHECK(std::abs(scores[i] - top[i]) < 1e-4);
      for (std::size_t i = 0; i < slots; ++i) scores[i] = 0;
      kernel.scores(task, 0, scores.data(), scratch.data());
      double total = 0;
      for (std::size_t i = 0; i < slots; ++i) {
        CHECK(std::abs(scores[i] - sum[i]) < 1e-3);
        total += scores[i];
      }
      double expected = 0;
      for (const double x : sum) expected += x;
      CHECK(total == Approx(expected).epsilon(1e-5));
      if (!s.sinks && s.before > 0) CHECK(total == Approx(s.rows * s.heads).epsilon(1e-5));
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int row = 0; row < s.rows; ++row)
        for (int h = 0; h < s.heads; ++h) {
          const std::vector<double> p = problem.exact(row, 0, h, true).probability;
          for (std::size_t i = 0; i < slots; ++i) sum[i] += p[i];
        }
      const Guarded<float> noisy(slots, s.low);
      for (std::size_t i = 0; i < slots; ++i) noisy[i] = 0;
      kernel.scores(problem.noisy(task), 0, noisy.data(), scratch.data());
      for (std::size_t i = 0; i < slots; ++i) CHECK(std::abs(noisy[i] - sum[i]) < 1e-3);
      // From the logits that the attention pass has left: the same bits, and its own bits are as without.
      const std::size_t padded = (slots + 15) / 16 * 16;
      const std::size_t stride = padded + 2 * (slots / 256 + 1);
      const Guarded<float> logits(static_cast<std::size_t>(s.rows * s.heads) * stride, s.low);
      const std::vector<float> plain = together(problem, s);
      const Guarded<float> out(problem.out_size());
      std::copy(plain.begin(), plain.end(), out.data());
      for (const bool chunks : {false, true}) {
        AttentionTask keeping = problem.task(0, 0, s.rows, out.data());
        keeping.logits = logits.data();
        keeping.logits_head_stride = static_cast<std::int64_t>(stride);
        keeping.logits_row_stride = s.heads * keeping.logits_head_stride;
        keeping.chunk_states = static_cast<std::int64_t>(padded);
        for (const bool with_noise : {false, true}) {
          keeping.shaped = with_noise;
          for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = std::numeric_limits<float>::quiet_NaN();
          if (chunks) problem.chunk_by_chunk(keeping);
          else problem.whole(keeping);
          CHECK(same_bits(out.data(), plain.data(), plain.size()));
          const Guarded<float> kept(slots, s.low);
          for (std::size_t i = 0; i < slots; ++i) kept[i] = 0;
          kernel.scores(with_noise ? problem.noisy(keeping) : keeping, 0, kept.data(), scratch.data());
          CHECK(same_bits(kept.data(), (with_noise ? noisy : scores).data(), slots));
        }
      }
      // Row by row: the same bits.
      const Guarded<float> again(slots);
      for (std::size_t i = 0; i < slots; ++i) again[i] = 0;
      for (int row = 0; row < s.rows; ++row) {
        kernel.scores(problem.task(0, row, row + 1, nullptr), 0, again.data(), scratch.data());
      }
      CHECK(same_bits(scores.data(), again.data(), slots));
    }
  }
}

TEST_CASE("kernels.attention: stores codes where the layout says, and touches no other token", "[kernels]") {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  for (const IsaKernels& isa : available_kernels()) {
    for (const DType type : {DType::q8_0, DType::q4_0, DType::q4_1}) {
      for (const int dims : {32, 64, 80, 7, 128}) {
        for (const bool in_keys : {false, true}) {
          const int dims_v = in_keys ? dims / 2 : dims + 3;
          const skald::KvPageLayout layout{type, 32, 2, dims, dims_v, in_keys};
          const Guarded<std::byte> page(layout.page_bytes());
          std::vector<float> k(static_cast<std::size_t>(dims)), v(static_cast<std::size_t>(dims_v));
          for (float& x : k) x = random() % 9 == 0 ? 0.0F : 3 * normal(random);
          for (float& x : v) x = random() % 50 == 0 ? 100.0F : 0.01F * normal(random);
          isa.of(type).store(k.data(), v.data(), page.data(), layout, 1, 19);
          INFO(skald::to_string(isa.isa) << " " << skald::to_string(type) << " " << dims << " in keys " << in_keys);
          std::vector<float> expected_k = k, expected_v = v;
          round_vector(type, expected_k.data(), dims);
          round_vector(type, expected_v.data(), dims_v);
          const auto read = [&](std::size_t offset, const skald::KvPageLayout::CodePlace& place) {
            std::uint16_t scale;
            std::memcpy(&scale, page.data() + offset + place.scale, 2);
            const auto byte = std::to_integer<std::uint8_t>(page[offset + place.code]);
            if (type == DType::q4_1) {
              std::uint16_t minimum;
              std::memcpy(&minimum, page.data() + offset + place.minimum, 2);
              return skald::f16_to_f32(minimum) + skald::f16_to_f32(scale) * static_cast<float>(byte >> place.shift & 15);
            }
            const int code = type == DType::q8_0 ? static_cast<std::int8_t>(byte) : (byte >> place.shift & 15) - 8;
            return skald::f16_to_f32(scale) * static_cast<float>(code);
          };
          for (int d = 0; d < dims; ++d) {
            CHECK(read(layout.keys_offset(1), layout.key_place(19, d)) == expected_k[static_cast<std::size_t>(d)]);
          }
          for (int d = 0; d < dims_v && !in_keys; ++d) {
            CHECK(read(layout.values_offset(1), layout.value_place(19, d)) == expected_v[static_cast<std::size_t>(d)]);
          }
          // Exactly the bytes of the token's pieces have changed: none of the others, 0xFF before and after.
          std::vector<bool> mine(layout.page_bytes(), false);
          std::size_t bytes = 0;
          layout.for_each_piece(1, 19, [&](std::size_t offset, std::size_t count) {
            bytes += count;
            for (std::size_t i = 0; i < count; ++i) {
              CHECK_FALSE(mine[offset + i]);
              mine[offset + i] = true;
            }
          });
          CHECK(bytes == layout.token_bytes());
          bool others_untouched = true;
          for (std::size_t i = 0; i < mine.size(); ++i) {
            others_untouched = others_untouched && (mine[i] || page[i] == std::byte{0xFF});
          }
          CHECK(others_untouched);
        }
      }
    }
  }
}

TEST_CASE("kernels.attention: stores keys and values where the layout says, rounded to nearest even", "[kernels]") {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> special{0.0F,      -0.0F,      1.0F,        65504.0F,        65519.0F,     65520.0F,
                                   1e30F,     infinity,   -infinity,   0x1p-14F,        0x1.ffcp-15F, 0x1p-24F,
                                   0x1p-25F,  0x1.8p-25F, 0x1.002p+0F, 0x1.006p+0F,     -0x1.23p-20F, 1e-40F,
                                   0x1.01p0F, 0x1.03p0F,  3.14159F,    0x1.fffffep127F, -0x1.7p-16F};
  std::mt19937 random(7);
  for (const IsaKernels& isa : available_kernels()) {
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      for (const int dims : {16, 24, 7, 64}) {
        const skald::KvPageLayout layout{type, 32, 2, dims, dims + 3};
        const Guarded<std::byte> page(layout.page_bytes());
        std::vector<float> k(static_cast<std::size_t>(dims)), v(static_cast<std::size_t>(dims + 3));
        for (float& x : k) x = special[random() % special.size()];
        for (float& x : v) x = special[random() % special.size()];
        isa.of(type).store(k.data(), v.data(), page.data(), layout, 1, 19);
        std::vector<std::byte> expected(layout.page_bytes(), std::byte{0xFF});
        const auto put = [&](std::size_t byte, std::size_t index, float x) {
          const std::uint16_t half = type == DType::f16 ? skald::f32_to_f16(x) : skald::f32_to_bf16(x);
          if (type == DType::f32) std::memcpy(expected.data() + byte + index * 4, &x, 4);
          else std::memcpy(expected.data() + byte + index * 2, &half, 2);
        };
        for (int d = 0; d < dims; ++d)
          put(layout.keys_offset(1), layout.key_index(19, d), k[static_cast<std::size_t>(d)]);
        for (int d = 0; d < dims + 3; ++d) {
          put(layout.values_offset(1), layout.value_index(19, d), v[static_cast<std::size_t>(d)]);
        }
        INFO(skald::to_string(isa.isa) << " " << skald::to_string(type) << " " << dims);
        CHECK(std::memcmp(page.data(), expected.data(), expected.size()) == 0);
      }
    }
  }
}
