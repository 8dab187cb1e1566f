// What kernels touch: every function of every kernel table between pages that must not be touched, at both ends of its
// arrays, with odd sizes and rows that do not follow each other. Results must be those of ordinary memory, and nothing
// else may change.

#include <algorithm>
#include <array>
#include <functional>
#include <memory>

#include "attention_problem.hpp"
#include "matmul_support.hpp"

using namespace skald_test;
using namespace skald::kernels;

namespace {

enum class Place { middle, low, high };  ///< of an array: amid other memory, behind or before a page without access

/// An array of bytes at a place; what its pages hold besides has a known value.
class Fenced {
 public:
  Fenced(std::size_t size, Place place) : size_(size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (size + page - 1) / page * page + (place == Place::middle ? 2 * page : 0);
    total_ = inner_ + 2 * page;
    void* mapping = mmap(nullptr, total_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(mapping != MAP_FAILED);
    begin_ = static_cast<std::byte*>(mapping) + page;
    std::memset(begin_, 0xA5, inner_);
    REQUIRE(mprotect(begin_ - page, page, PROT_NONE) == 0);
    REQUIRE(mprotect(begin_ + inner_, page, PROT_NONE) == 0);
    offset_ = place == Place::low ? 0 : place == Place::middle ? page : inner_ - size;
  }
  ~Fenced() { munmap(begin_ - (total_ - inner_) / 2, total_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;

  [[nodiscard]] std::byte* data() const { return begin_ + offset_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool intact() const {
    const auto untouched = [](std::byte byte) { return byte == std::byte{0xA5}; };
    return std::all_of(begin_, begin_ + offset_, untouched) &&
           std::all_of(begin_ + offset_ + size_, begin_ + inner_, untouched);
  }

 private:
  std::size_t size_, inner_ = 0, total_ = 0, offset_ = 0;
  std::byte* begin_ = nullptr;
};

/// Floats that a kernel reads or writes: rows of `cols` elements, `stride` from one to the next.
struct Array {
  std::int64_t rows, cols, stride;
  bool written = false;
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>((rows - 1) * stride + cols); }
};
Array input(std::int64_t cols, std::int64_t rows = 1, std::int64_t gap = 0) { return {rows, cols, cols + gap, false}; }
Array output(std::int64_t cols, std::int64_t rows = 1, std::int64_t gap = 0) { return {rows, cols, cols + gap, true}; }

using Run = std::function<void(const std::vector<float*>&)>;

std::vector<std::vector<float>> run_at(Place place, const std::vector<Array>& arrays, const Run& run) {
  std::vector<std::unique_ptr<Fenced>> memory;
  std::vector<std::vector<float>> before, after;
  std::vector<float*> pointers;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    before.push_back(normal_floats(arrays[i].size(), static_cast<unsigned>(17 + i)));
    memory.push_back(std::make_unique<Fenced>(before[i].size() * sizeof(float), place));
    std::memcpy(memory[i]->data(), before[i].data(), memory[i]->size());
    pointers.push_back(reinterpret_cast<float*>(memory[i]->data()));
  }
  run(pointers);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    after.emplace_back(pointers[i], pointers[i] + before[i].size());
    REQUIRE(memory[i]->intact());
    for (std::size_t n = 0; n < before[i].size(); ++n) {
      const bool gap = static_cast<std::int64_t>(n) % arrays[i].stride >= arrays[i].cols;
      if (!arrays[i].written || gap) REQUIRE(same_bits(before[i][n], after[i][n]));
    }
  }
  return after;
}

/// The same results wherever the arrays lie, and nothing else written.
void keeps_to(const std::vector<Array>& arrays, const Run& run) {
  const auto expected = run_at(Place::middle, arrays, run);
  for (const Place place : {Place::low, Place::high}) {
    const auto got = run_at(place, arrays, run);
    for (std::size_t i = 0; i < arrays.size(); ++i) REQUIRE(first_difference(got[i], expected[i]) == -1);
  }
}

template <class F>
void for_each_isa(F&& f) {
  for (const Isa isa : skald::available_isas()) {
    if (isa == Isa::avx512bf16) continue;  // has the tables of the one before
    CAPTURE(std::string(to_string(isa)));
    switch (isa) {
      case Isa::baseline: f(*baseline::row_kernels(), *baseline::recurrent_kernels()); break;
#if defined(__x86_64__)
      case Isa::avx2: f(*avx2::row_kernels(), *avx2::recurrent_kernels()); break;
      case Isa::avx512: f(*avx512::row_kernels(), *avx512::recurrent_kernels()); break;
      case Isa::avx512vnni: f(*avx512vnni::row_kernels(), *avx512vnni::recurrent_kernels()); break;
#endif
      default: break;
    }
  }
}

}  // namespace

TEST_CASE("kernels.memory: every row kernel reads and writes its arrays alone") {
  for_each_isa([](const RowKernels& k, const RecurrentKernels& recurrent) {
    for (const std::int64_t n : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 200}) {
      CAPTURE(n);
      const std::vector<Array> one{input(n), output(n)}, two{input(n), input(n), output(n)},
          three{input(n), input(n), input(n), output(n)};
      keeps_to(two, [&](const auto& p) { k.rms_norm(p[0], p[1], 1e-5F, n, p[2]); });
      keeps_to(one, [&](const auto& p) { k.rms_norm(p[0], nullptr, 1e-5F, n, p[1]); });
      keeps_to(three, [&](const auto& p) { k.layer_norm(p[0], p[1], p[2], 1e-5F, n, p[3]); });
      for (int kind = 0; kind <= 7; ++kind) {
        keeps_to(one, [&](const auto& p) { k.activate(p[0], kind, n, p[1]); });
        keeps_to(two, [&](const auto& p) { k.gated(p[0], p[1], kind, n, p[2]); });
      }
      keeps_to(one, [&](const auto& p) { k.add(p[0], 0.5F, n, p[1]); });
      keeps_to(one, [&](const auto& p) { k.softcap(p[0], 0.5F, 3.0F, n, p[1]); });
      keeps_to(one, [&](const auto& p) { k.softcap(p[0], 0.5F, 0.0F, n, p[1]); });
      keeps_to(two, [&](const auto& p) { k.clamped_gate(p[0], p[1], 1.7F, 7.0F, n, p[2]); });
      keeps_to(one, [&](const auto& p) { recurrent.multiply(p[0], n, p[1]); });
      keeps_to(two, [&](const auto& p) { recurrent.lerp(p[0], p[1], n, p[2]); });
      for (const int kind : {1, 2}) {  // skald::RopeKind
        const std::int64_t dims = n + n % 2;
        keeps_to({output(dims), input(dims)}, [&](const auto& p) { k.rope(p[0], p[1], kind, dims); });
      }
    }
  });
}

TEST_CASE("kernels.memory: every recurrent kernel reads and writes its arrays alone") {
  for_each_isa([](const RowKernels&, const RecurrentKernels& k) {
    for (const std::int64_t n : {1, 7, 16, 33, 64}) {
      for (const std::int64_t rows : {1, 5}) {
        CAPTURE(n, rows);
        for (const std::int32_t taps : {1, 2, 4}) {
          const std::int64_t kept = std::max(1, taps - 1);
          const auto conv = [&](const std::vector<float*>& p, bool fresh) {
            k.conv({{p[0], n + 3},
                    {p[1], n + 5},
                    rows,
                    n,
                    taps,
                    p[2],
                    fresh ? nullptr : p[3],
                    fresh ? 0 : 1,
                    fresh ? nullptr : p[4],
                    p[5],
                    n + 1});
          };
          const std::vector<Array> arrays{input(n, rows, 3), output(n, rows, 5), input(n * taps),
                                          input(n),          input(n, kept, 1),  output(n, kept, 1)};
          keeps_to(arrays, [&](const auto& p) { conv(p, true); });
          keeps_to(arrays, [&](const auto& p) { conv(p, false); });
        }
        for (const bool fresh : {false, true}) {
          keeps_to({input(n, rows, 3), input(n), input(n, rows, 1), output(n, rows, 2), input(n)}, [&](const auto& p) {
            k.shift(
                {{p[0], n + 3}, p[1], {fresh ? nullptr : p[2], n + 1}, {p[3], n + 2}, rows, n, fresh ? nullptr : p[4]});
          });
          for (const std::int64_t heads : {1, 3}) {
            const std::int64_t channels = 5, all = heads * channels;
            const std::vector<Array> arrays{input(all, rows, 1), input(heads, rows, 2), input(n, rows, 1),
                                            input(n, rows, 3),   input(all, rows, 2),   output(all, rows, 4),
                                            input(heads * n),    input(heads),          input(heads),
                                            input(all * n),      output(all * n)};
            for (const bool one : {false, true})
              keeps_to(arrays, [&](const auto& p) {
                k.scan({{p[0], all + 1},
                        {p[1], heads + 2},
                        {p[2], n + 1},
                        {p[3], n + 3},
                        {p[4], all + 2},
                        {p[5], all + 4},
                        rows,
                        heads,
                        channels,
                        n,
                        p[6],
                        one,
                        p[7],
                        fresh ? nullptr : p[8],
                        fresh ? nullptr : p[9],
                        p[10]});
              });
          }
          for (const int version : {6, 7})
            keeps_to({input(n, rows, 1), input(n, rows, 2), input(n, rows, 3), input(n, rows, 4), input(n, rows, 5),
                      input(n, rows, 6), output(n, rows, 7), input(n), input(n), input(n), input(n), input(n),
                      input(n * n), output(n * n)},
                     [&](const auto& p) {
                       WkvTask task{};
                       task.version = version;
                       task.r = {p[0], n + 1};
                       task.k = {p[1], n + 2};
                       task.v = {p[2], n + 3};
                       task.decay = {p[3], n + 4};
                       task.rate = {p[4], n + 5};
                       task.gate = {fresh ? nullptr : p[5], n + 6};
                       task.out = {p[6], n + 7};
                       task.rows = rows;
                       task.size = n;
                       task.bonus = p[7];
                       task.key_scale = p[8];
                       task.rate_scale = p[9];
                       task.norm = fresh ? 1 : 2;
                       task.norm_weight = p[10];
                       task.norm_bias = p[11];
                       task.epsilon = 1e-5F;
                       task.from = fresh ? nullptr : p[12];
                       task.to = p[13];
                       k.wkv(task);
                     });
        }
      }
    }
  });
}

TEST_CASE("kernels.memory: every product reads its panels and activations and writes its outputs alone") {
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    struct Sizes {
      std::int64_t rows, blocks, count, begin;
    };
    for (const auto& [rows, blocks, count, begin] : std::initializer_list<Sizes>{{1, 1, 1, 0},
                                                                                 {16, 3, 2, 0},
                                                                                 {17, 1, 8, 0},
                                                                                 {35, 2, 13, 12},
                                                                                 {19, 1, 27, 0},
                                                                                 {33, 1, 53, 0},
                                                                                 {21, 1, 197, 0}}) {
      if (isa == Isa::baseline && count > 60) continue;  // does nothing else with so many
      const std::int64_t cols = blocks * (is_float(kernel.type) ? 31 : block_of(kernel.type));
      const Weight weight = random_bytes_weight(kernel.type, rows, cols, static_cast<unsigned>(rows));
      const auto x = normal_floats(static_cast<std::size_t>((count - 1) * (cols + 3) + cols), 9);
      CAPTURE(rows, cols, count);
      std::vector<float> expected;
      for (const Place place : {Place::middle, Place::low, Place::high}) {
        const Fenced file(weight.bytes.size(), place), panels(packed_bytes(kernel, weight), place),
            activations(x.size() * sizeof(float), place), acts(kernel.acts_bytes(cols, count), place),
            scratch((kernel.scratch_bytes(cols, count) + 63) / 64 * 64, place),
            row(static_cast<std::size_t>(cols) * 4, place),
            out(static_cast<std::size_t>((count - 1) * (rows + 3) + rows) * 4, place);
        std::memcpy(file.data(), weight.bytes.data(), file.size());
        std::memcpy(activations.data(), x.data(), activations.size());
        for (std::int64_t first = 0; first < rows; first += 16) {
          const std::byte* pointers[16];
          for (std::int64_t r = 0; r < 16; ++r)
            pointers[r] =
                first + r < rows ? file.data() + static_cast<std::size_t>(first + r) * weight.row_bytes() : nullptr;
          kernel.pack(pointers, cols, panels.data() + static_cast<std::size_t>(first / 16) * kernel.panel_bytes(cols));
        }
        kernel.unpack_row(panels.data(), 0, cols, reinterpret_cast<float*>(row.data()));
        const auto* from = reinterpret_cast<const float*>(activations.data());
        kernel.prepare(from, cols + 3, cols, 0, count, acts.data(), count);
        auto* to = reinterpret_cast<float*>(out.data());
        kernel.multiply(panels.data(), rows, cols, {acts.data(), count, begin, count}, to, rows + 3, scratch.data());
        for (const Fenced* each : {&file, &panels, &activations, &acts, &scratch, &row, &out}) REQUIRE(each->intact());
        REQUIRE(std::memcmp(file.data(), weight.bytes.data(), file.size()) == 0);
        REQUIRE(std::memcmp(from, x.data(), activations.size()) == 0);
        for (std::size_t i = 0; i < out.size(); ++i) {
          const auto at = static_cast<std::int64_t>(i / 4);
          if (at / (rows + 3) < begin || at % (rows + 3) >= rows) REQUIRE(out.data()[i] == std::byte{0xA5});
        }
        const std::span<const float> got(to, out.size() / 4);
        if (place == Place::middle) expected.assign(got.begin(), got.end());
        else REQUIRE(first_difference(got, expected) == -1);
      }
    }
  });
}

TEST_CASE("kernels.memory: attention of every key and value format reads and writes its arrays alone") {
  for (const IsaKernels& isa : available_kernels()) {
    CAPTURE(std::string(to_string(isa.isa)));
    REQUIRE(isa.count > 0);
    for (int i = 0; i < isa.count; ++i) {
      const AttentionKernel& kernel = isa.kernels[i];
      CAPTURE(std::string(skald::to_string(kernel.type)));
      for (const bool low : {false, true}) {
        for (const auto& [heads, dims, before, rows] : std::initializer_list<std::array<int, 4>>{
                 {1, 7, 0, 1}, {3, 24, 250, 9}, {4, 64, 300, 1}, {5, 80, 15, 33}}) {
          Shape shape;
          shape.type = kernel.type;
          shape.page_tokens = 16;
          shape.kv_heads = 2;
          shape.heads = heads;
          shape.dims_k = dims;
          shape.dims_v = dims == 24 ? 33 : dims;
          shape.before = before;
          shape.rows = rows;
          shape.low = low;
          CAPTURE(low, heads, dims, before, rows);
          const Problem problem(shape, kernel, 5);
          const Guarded<float> whole(problem.out_size(), low), merged(problem.out_size(), low),
              scores(static_cast<std::size_t>(before + rows), low);
          std::fill_n(scores.data(), scores.size(), 0.0F);
          for (int head = 0; head < shape.kv_heads; ++head) {
            const auto task = problem.task(head, 0, rows, whole.data());
            problem.whole(task);
            problem.chunk_by_chunk(problem.task(head, 0, rows, merged.data()));
            const Guarded<std::byte> scratch(kernel.scratch_bytes(shape.dims_k, shape.dims_v, heads, rows));
            kernel.scores(task, 0, scores.data(), scratch.data());
          }
          REQUIRE(first_difference(std::span(whole.data(), whole.size()), std::span(merged.data(), merged.size())) ==
                  -1);
          double sum = 0;
          for (std::size_t slot = 0; slot < scores.size(); ++slot) sum += scores[slot];
          REQUIRE(std::abs(sum - shape.kv_heads * heads * rows) < 1e-3 * rows * heads);
        }
      }
    }
  }
}
