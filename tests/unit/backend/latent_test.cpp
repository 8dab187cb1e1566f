// Products per head, and latent attention in its two forms: keys and values made from the cached rows, and the matrices
// applied to queries and results instead.

#include "fixture.hpp"

using namespace skald;
using namespace skald_test;

namespace {

std::shared_ptr<const Weight> stack_of(BackendInterface& backend, const FileWeight& file, std::int64_t matrices,
                                       WeightLayout layout = WeightLayout::packed) {
  const auto read = [&](std::int64_t first, std::int64_t, std::span<std::byte> out) {
    const std::size_t row = row_bytes(file.type, static_cast<std::size_t>(file.cols));
    std::memcpy(out.data(), file.bytes.data() + row * static_cast<std::size_t>(first), out.size());
  };
  return backend.make_weight(
      {.type = file.type, .rows = file.rows, .cols = file.cols, .matrices = matrices, .read = read}, layout, {});
}

/// The transposed matrices of a stack, in f32.
FileWeight transposed(const FileWeight& file, std::int64_t matrices, std::mt19937& random) {
  const std::int64_t rows = file.rows / matrices;
  FileWeight result(DType::f32, matrices * file.cols, rows, random);
  for (std::int64_t m = 0; m < matrices; ++m) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < file.cols; ++c) {
        const auto value = static_cast<float>(file.values(m * rows + r, c));
        result.values(m * file.cols + c, r) = static_cast<double>(value);
        std::memcpy(result.bytes.data() + static_cast<std::size_t>((m * file.cols + c) * rows + r) * 4, &value, 4);
      }
    }
  }
  return result;
}

StreamLimits latent_limits() {
  return {.tokens = 300, .max_cols = 4096, .heads = 16, .head_dim = 600, .context = 600, .segments = 2, .head_cols = 512};
}

/// Causal attention of one sequence without a past, over pages of its own.
void attend(BackendInterface& backend, const Matrix& q, const Matrix& k, const Matrix& v, const Matrix& out,
            std::int32_t heads, std::int32_t kv_heads, const KvPageLayout& layout, const DeviceMatrix& table,
            std::int32_t rope_dims, std::int32_t rope_offset) {
  const auto each = static_cast<std::uint32_t>((q.rows + layout.page_tokens - 1) / layout.page_tokens);
  const Buffer pool = backend.allocate(each * static_cast<std::size_t>(kv_heads) * layout.page_bytes());
  std::vector<std::uint32_t> numbers(each * static_cast<std::size_t>(kv_heads));
  for (std::uint32_t i = 0; i < numbers.size(); ++i) numbers[i] = i;
  std::vector<KvTable> tables;
  for (std::int32_t g = 0; g < kv_heads; ++g) tables.push_back({numbers.data() + static_cast<std::uint32_t>(g) * each, 0});
  const Segment segment{.row_begin = 0, .row_count = static_cast<std::int32_t>(q.rows)};
  const KvLayer kv{.pool = pool.address(), .layout = layout, .groups = kv_heads, .tables = tables.data()};
  const StoreKvOp store{.q = q,
                        .k = k,
                        .v = v,
                        .heads = heads,
                        .kv_heads = kv_heads,
                        .rope = RopeKind::interleaved,
                        .rope_dims = rope_dims,
                        .rope_offset = rope_offset,
                        .rope_table = table.matrix(),
                        .kv = kv,
                        .segments = &segment,
                        .segment_count = 1};
  const AttentionOp attention{.q = q,
                              .out = out,
                              .heads = heads,
                              .kv_heads = kv_heads,
                              .scale = 0.2F,
                              .kv = kv,
                              .segments = &segment,
                              .segment_count = 1};
  run(backend, {store, attention}, latent_limits());
}

}  // namespace

TEST_CASE("backend.heads: one product per head equals the definition and keeps what follows the head", "[backend]") {
  for (const Subject& subject : subjects()) {
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(31);
    constexpr std::int32_t heads = 3;
    for (const std::int64_t tokens : {0, 1, 7, 130}) {
      for (const std::int32_t tail : {0, 5}) {
        INFO(subject.name << ", " << tokens << " tokens, tail " << tail);
        const FileWeight file(DType::f32, heads * 21, 13, random);
        const auto weight = stack_of(backend, file, heads, tail == 0 ? WeightLayout::packed : WeightLayout::rows);
        const DeviceMatrix x(backend, tokens, heads * 20, random);
        const DeviceMatrix out(backend, tokens, heads * 27, random);
        const Dense before = out.dense();
        run(backend,
            {HeadLinearOp{.x = x.matrix(),
                          .x_step = 20,
                          .weight = weight.get(),
                          .heads = heads,
                          .tail = tail,
                          .out = out.matrix(),
                          .out_step = 27}},
            latent_limits());
        Dense expected = before;
        const Dense in = x.dense();
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t h = 0; h < heads; ++h) {
            for (std::int64_t i = 0; i < 21; ++i) {
              expected(t, 27 * h + i) = 0;
              for (std::int64_t k = 0; k < 13; ++k) {
                expected(t, 27 * h + i) += file.values(h * 21 + i, k) * in(t, 20 * h + k);
              }
            }
            for (std::int64_t i = 0; i < tail; ++i) expected(t, 27 * h + 21 + i) = in(t, 20 * h + 13 + i);
          }
        }
        CHECK(distance(out.dense(), expected) < 1e-5);
      }
    }
  }
}

TEST_CASE("backend.heads: a row's bits do not depend on the rows beside it", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(32);
    const FileWeight file(DType::q8_0, 4 * 40, 64, random);
    const auto weight = stack_of(backend, file, 4);
    const DeviceMatrix x(backend, 110, 4 * 64, random);
    const DeviceMatrix together(backend, 110, 4 * 40);
    const DeviceMatrix alone(backend, 110, 4 * 40);
    const auto op = [&](const DeviceMatrix& out, std::int64_t first, std::int64_t count) {
      return HeadLinearOp{.x = x.rows(first, count),
                          .x_step = 64,
                          .weight = weight.get(),
                          .heads = 4,
                          .out = out.rows(first, count),
                          .out_step = 40};
    };
    run(backend, {op(together, 0, 110)}, latent_limits());
    std::vector<Op> ops;
    for (std::int64_t t = 0; t < 100; ++t) ops.emplace_back(op(alone, t, 1));
    ops.emplace_back(op(alone, 100, 10));
    run(backend, ops, latent_limits());
    CHECK(same_bits(together.floats(), alone.floats()));
  }
}

TEST_CASE("backend.heads: contradictory and oversized products are refused", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(33);
    const FileWeight file(DType::f32, 2 * 8, 16, random);
    const auto weight = stack_of(backend, file, 2);
    const DeviceMatrix x(backend, 3, 40, random);
    const DeviceMatrix out(backend, 3, 20, random);
    const HeadLinearOp good{.x = x.matrix(),
                            .x_step = 20,
                            .weight = weight.get(),
                            .heads = 2,
                            .tail = 2,
                            .out = out.matrix(),
                            .out_step = 10};
    const auto stream = backend.new_stream(latent_limits());
    CHECK_NOTHROW(stream->enqueue(good));
    const auto refused = [&](const char* what, auto change) {
      INFO(what);
      HeadLinearOp op = good;
      change(op);
      CHECK(backend.refuses(op).has_value());
      CHECK_THROWS_AS(stream->enqueue(op), UsageError);
    };
    refused("other heads", [](HeadLinearOp& op) { op.heads = 3; });
    refused("no heads", [](HeadLinearOp& op) { op.heads = 0; });
    refused("a long tail", [](HeadLinearOp& op) { op.tail = 3; });
    refused("a short step", [](HeadLinearOp& op) { op.x_step = 17; });
    refused("a step of nothing", [](HeadLinearOp& op) { op.out_step = 0; });
    refused("a narrow out", [](HeadLinearOp& op) { op.out.cols = 19; });
    refused("other rows", [](HeadLinearOp& op) { op.out.rows = 2; });
    HeadLinearOp overlapping = good;
    overlapping.out.data = overlapping.x.data;
    CHECK_THROWS_AS(stream->enqueue(overlapping), UsageError);
    StreamLimits narrow = latent_limits();
    narrow.head_cols = 15;
    CHECK_THROWS_AS(backend.new_stream(narrow)->enqueue(good), UsageError);
    CHECK_NOTHROW(stream->synchronize());
  }
}

TEST_CASE("backend.latent: the absorbed and the unabsorbed form agree", "[backend]") {
  constexpr std::int32_t heads = 5;
  constexpr std::int32_t plain = 24;  // elements of a query without rotation
  constexpr std::int32_t turning = 8;
  constexpr std::int32_t rank = 40;
  constexpr std::int32_t value = 20;
  for (const Subject& subject : subjects()) {
    BackendInterface& backend = *subject.backend;
    for (const std::int64_t tokens : {1, 9, 270}) {
      INFO(subject.name << ", " << tokens << " tokens");
      std::mt19937 random(34);
      const FileWeight key_file(DType::f32, heads * rank, plain, random);
      const FileWeight value_file(DType::f32, heads * value, rank, random);
      const auto to_latent = stack_of(backend, key_file, heads);
      const auto from_latent = stack_of(backend, value_file, heads);
      const auto to_keys = stack_of(backend, transposed(key_file, heads, random), heads);
      const DeviceMatrix q(backend, tokens, heads * (plain + turning), random);
      const DeviceMatrix row(backend, tokens, rank + turning, random);  // what the cache holds
      const DeviceMatrix table(backend, tokens, turning, random);

      // Absorbed: one key of rank + turning elements, whose first elements are the value.
      const DeviceMatrix absorbed_q(backend, tokens, heads * (rank + turning));
      const DeviceMatrix latent_out(backend, tokens, heads * rank);
      const DeviceMatrix absorbed(backend, tokens, heads * value);
      run(backend,
          {HeadLinearOp{.x = q.matrix(),
                        .x_step = plain + turning,
                        .weight = to_latent.get(),
                        .heads = heads,
                        .tail = turning,
                        .out = absorbed_q.matrix(),
                        .out_step = rank + turning}},
          latent_limits());
      DeviceMatrix keys_row(backend, tokens, rank + turning);
      keys_row.set(row.floats());
      const KvPageLayout latent_page{.dtype = DType::f32,
                                     .page_tokens = 16,
                                     .heads = 1,
                                     .head_dim_k = rank + turning,
                                     .head_dim_v = rank,
                                     .values_in_keys = true};
      attend(backend, absorbed_q.matrix(), keys_row.matrix(), {}, latent_out.matrix(), heads, 1, latent_page, table,
             turning, rank);
      run(backend,
          {HeadLinearOp{.x = latent_out.matrix(),
                        .x_step = rank,
                        .weight = from_latent.get(),
                        .heads = heads,
                        .out = absorbed.matrix(),
                        .out_step = value}},
          latent_limits());

      // Unabsorbed: a key and a value for each head, made from the row.
      std::vector<float> repeated;
      const std::vector<float> rows = row.floats();
      for (std::int64_t t = 0; t < tokens; ++t) {
        const float* at = rows.data() + t * (rank + turning);
        for (int h = 0; h < heads; ++h) repeated.insert(repeated.end(), at, at + rank + turning);
      }
      DeviceMatrix latent_rows(backend, tokens, heads * (rank + turning));
      latent_rows.set(repeated);
      const DeviceMatrix keys(backend, tokens, heads * (plain + turning));
      const DeviceMatrix values(backend, tokens, heads * value);
      const DeviceMatrix unabsorbed(backend, tokens, heads * value);
      run(backend,
          {HeadLinearOp{.x = latent_rows.matrix(),
                        .x_step = rank + turning,
                        .weight = to_keys.get(),
                        .heads = heads,
                        .tail = turning,
                        .out = keys.matrix(),
                        .out_step = plain + turning},
           HeadLinearOp{.x = latent_rows.matrix(),
                        .x_step = rank + turning,
                        .weight = from_latent.get(),
                        .heads = heads,
                        .out = values.matrix(),
                        .out_step = value}},
          latent_limits());
      const KvPageLayout plain_page{
          .dtype = DType::f32, .page_tokens = 16, .heads = 1, .head_dim_k = plain + turning, .head_dim_v = value};
      attend(backend, q.matrix(), keys.matrix(), values.matrix(), unabsorbed.matrix(), heads, heads, plain_page, table,
             turning, plain);
      CHECK(distance(absorbed.dense(), unabsorbed.dense()) < 2e-4);
    }
  }
}
