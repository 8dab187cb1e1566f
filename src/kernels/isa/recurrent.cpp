// Convolutions, scans and states that go from row to row. Lanes are channels or elements of state; the order over rows
// and over elements is fixed.

#include "kernels/kernel_table.hpp"
#include "simd/vec.hpp"

namespace skald::inline v0 {
namespace kernels {
namespace SKALD_ISA {
namespace {

#include "kernels/vector_math.inl.hpp"

constexpr std::int64_t most_head = RecurrentKernels::most_head;
constexpr std::int64_t most_taps = RecurrentKernels::most_taps;

const float* row_of(const InputRows& rows, std::int64_t row) noexcept { return rows.data + row * rows.stride; }
float* row_of(const OutputRows& rows, std::int64_t row) noexcept { return rows.data + row * rows.stride; }

void copy(const float* from, std::int64_t n, float* to) noexcept {
  if (from != nullptr) __builtin_memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
  else __builtin_memset(to, 0, static_cast<std::size_t>(n) * sizeof(float));
}

void conv(const ConvTask& task) noexcept {
  const std::int64_t before = task.taps - 1;
  float weight[recurrent_columns * most_taps];  // [taps, cols]
  for (std::int64_t j = 0; j < task.taps; ++j)
    for (std::int64_t c = 0; c < task.cols; ++c) weight[j * recurrent_columns + c] = task.weight[c * task.taps + j];
  for (std::int64_t t = 0; t < task.rows; ++t) {
    float* out = row_of(task.out, t);
    for_each_vector(task.cols, [&](std::int64_t c, int count) SKALD_INLINE_LAMBDA {
      f32x16 sum = zero_f32();
      for (std::int64_t j = 0; j < task.taps; ++j) {
        const std::int64_t row = t - before + j;
        f32x16 x = zero_f32();
        if (row >= 0) x = load_some(row_of(task.x, row) + c, count);
        else if (task.from != nullptr) x = load_some(task.from + (row + before) * task.state_stride + c, count);
        sum = fma(load_some(weight + j * recurrent_columns + c, count), x, sum);
      }
      if (task.bias != nullptr) sum = sum + load_some(task.bias + c, count);
      store_some(out + c, sum, count);
    });
    if (task.activation != 0) row_kernels()->activate(out, task.activation, task.cols, out);
  }
  for (std::int64_t i = 0; i < before; ++i) {
    const std::int64_t row = task.rows - before + i;
    float* to = task.to + i * task.state_stride;
    if (row >= 0) copy(row_of(task.x, row), task.cols, to);
    else copy(task.from != nullptr ? task.from + (row + before) * task.state_stride : nullptr, task.cols, to);
  }
}

/// Moves the state of one channel on by a row; `kept` is the share that stays if there is one decay. @return what c
/// reads of it.
template <bool One>
SKALD_INLINE float scan_channel(const ScanTask& task, float step, f32x16 kept, float x, const float* decay,
                                const float* b, const float* c, const float* before, float* state) noexcept {
  const f32x16 steps = set1(step);
  const f32x16 input = set1(step * x);
  f32x16 sum = zero_f32();
  for_each_vector(task.size, [&](std::int64_t n, int count) SKALD_INLINE_LAMBDA {
    const f32x16 keep = One ? kept : vexp(steps * load_some(decay + n, count));
    const f32x16 s = fma(keep, load_some(before + n, count), input * load_some(b + n, count));
    store_some(state + n, s, count);
    sum = fma(load_some(c + n, count), s, sum);
  });
  return reduce_add(sum);
}

template <bool One>
void scan_as(const ScanTask& task) noexcept {
  // The first row reads the state where it was, so that a decoding step goes over it once.
  if (task.from == nullptr) copy(nullptr, task.heads * task.channels * task.size, task.to);
  float steps[recurrent_columns];
  const std::int64_t decays = One ? 1 : task.size;
  const std::int64_t all = task.heads * task.channels;
  for (std::int64_t t = 0; t < task.rows; ++t) {
    const float* before = t == 0 && task.from != nullptr ? task.from : task.to;
    for_each_vector(task.heads, [&](std::int64_t h, int count) SKALD_INLINE_LAMBDA {
      f32x16 step = load_some(row_of(task.steps, t) + h, count);
      if (task.step_bias != nullptr) step = step + load_some(task.step_bias + h, count);
      store_some(steps + h, softplus(step), count);
    });
    const float* x = row_of(task.x, t);
    float* out = row_of(task.out, t);
    const float* b = row_of(task.b, t);
    const float* c = row_of(task.c, t);
    for (std::int64_t h = 0; h < task.heads; ++h) {
      const float* decay = task.decay + h * decays;
      const f32x16 kept = One ? vexp(set1(steps[h] * decay[0])) : zero_f32();
      for (std::int64_t p = h * task.channels; p < (h + 1) * task.channels; ++p)
        out[p] = scan_channel<One>(task, steps[h], kept, x[p], decay, b, c, before + p * task.size,
                                   task.to + p * task.size) +
                 task.skip[h] * x[p];
    }
    const float* gate = row_of(task.gate, t);
    for_each_vector(all, [&](std::int64_t p, int count) SKALD_INLINE_LAMBDA {
      store_some(out + p, load_some(out + p, count) * silu(load_some(gate + p, count)), count);
    });
  }
}

void scan(const ScanTask& task) noexcept {
  if (task.one_decay) scan_as<true>(task);
  else scan_as<false>(task);
}

void shift(const ShiftTask& task) noexcept {
  for (std::int64_t t = 0; t < task.rows; ++t) {
    const float* x = row_of(task.x, t);
    const float* before = t > 0 ? x - task.x.stride : task.from;
    for_each_vector(task.cols, [&](std::int64_t c, int count) SKALD_INLINE_LAMBDA {
      const f32x16 now = load_some(x + c, count);
      const f32x16 then = before != nullptr ? load_some(before + c, count) : zero_f32();
      f32x16 weight = load_some(task.mix + c, count);
      if (task.more.data != nullptr) weight = weight + load_some(row_of(task.more, t) + c, count);
      store_some(row_of(task.out, t) + c, fma(then - now, weight, now), count);
    });
  }
}

/// What a head's row is made into before its state moves on.
struct WkvRow {
  float kept[most_head];     ///< w
  float key[most_head];      ///< k, or k'
  float removal[most_head];  ///< q
  float rate[most_head];     ///< a, then q * a
  float y[most_head];
  float agreement;
};

void prepare_six(const WkvTask& task, std::int64_t t, WkvRow& row) noexcept {
  for_each_vector(task.size, [&](std::int64_t j, int count) SKALD_INLINE_LAMBDA {
    store_some(row.kept + j, vexp(-vexp(load_some(row_of(task.decay, t) + j, count))), count);
  });
}

void prepare_seven(const WkvTask& task, std::int64_t t, WkvRow& row) noexcept {
  const float* k = row_of(task.k, t);
  const float* r = row_of(task.r, t);
  for_each_vector(task.size, [&](std::int64_t j, int count) SKALD_INLINE_LAMBDA {
    const f32x16 decay = sigmoid(load_some(row_of(task.decay, t) + j, count));
    store_some(row.kept + j, vexp(set1(-0.606531F) * decay), count);
    const f32x16 a = sigmoid(load_some(row_of(task.rate, t) + j, count));
    const f32x16 key = load_some(k + j, count);
    store_some(row.rate + j, a, count);
    store_some(row.removal + j, key * load_some(task.key_scale + j, count), count);
    store_some(row.key + j, key * fma(a - set1(1.0F), load_some(task.rate_scale + j, count), set1(1.0F)), count);
  });
  const float squares = sum(task.size, [&](std::int64_t j, int count) SKALD_INLINE_LAMBDA {
    const f32x16 q = load_some(row.removal + j, count);
    return q * q;
  });
  const float length = __builtin_sqrtf(squares);
  const f32x16 factor = set1(1.0F / (length < 1e-12F ? 1e-12F : length));
  for_each_vector(task.size, [&](std::int64_t j, int count) SKALD_INLINE_LAMBDA {
    const f32x16 q = load_some(row.removal + j, count) * factor;
    store_some(row.removal + j, q, count);
    store_some(row.rate + j, load_some(row.rate + j, count) * q, count);
  });
  row.agreement = sum(task.size, [&](std::int64_t j, int count) SKALD_INLINE_LAMBDA {
    return load_some(r + j, count) * load_some(row.key + j, count) * load_some(task.bonus + j, count);
  });
}

void step_six(const WkvTask& task, std::int64_t t, const float* before, WkvRow& row) noexcept {
  const float* k = row_of(task.k, t);
  const float* r = row_of(task.r, t);
  const float* v = row_of(task.v, t);
  for_each_vector(task.size, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    const f32x16 value = load_some(v + i, count);
    f32x16 y = zero_f32();
    for (std::int64_t j = 0; j < task.size; ++j) {
      float* state = task.to + j * task.size + i;
      const f32x16 kv = set1(k[j]) * value;
      const f32x16 s = load_some(before + j * task.size + i, count);
      y = fma(set1(r[j]), fma(set1(task.bonus[j]), kv, s), y);
      store_some(state, fma(set1(row.kept[j]), s, kv), count);
    }
    store_some(row.y + i, y, count);
  });
}

void step_seven(const WkvTask& task, std::int64_t t, const float* before, WkvRow& row) noexcept {
  const float* r = row_of(task.r, t);
  const float* v = row_of(task.v, t);
  for_each_vector(task.size, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    f32x16 taken = zero_f32();
    for (std::int64_t j = 0; j < task.size; ++j)
      taken = fma(set1(row.removal[j]), load_some(before + j * task.size + i, count), taken);
    const f32x16 value = load_some(v + i, count);
    f32x16 y = zero_f32();
    for (std::int64_t j = 0; j < task.size; ++j) {
      float* state = task.to + j * task.size + i;
      f32x16 s = fma(set1(row.kept[j]), load_some(before + j * task.size + i, count), set1(row.key[j]) * value);
      s = fnma(taken, set1(row.rate[j]), s);
      store_some(state, s, count);
      y = fma(set1(r[j]), s, y);
    }
    store_some(row.y + i, y, count);
  });
}

void wkv(const WkvTask& task) noexcept {
  if (task.from == nullptr) copy(nullptr, task.size * task.size, task.to);
  WkvRow row;
  const bool seven = task.version == 7;
  for (std::int64_t t = 0; t < task.rows; ++t) {
    const float* before = t == 0 && task.from != nullptr ? task.from : task.to;
    if (seven) {
      prepare_seven(task, t, row);
      step_seven(task, t, before, row);
    } else {
      prepare_six(task, t, row);
      step_six(task, t, before, row);
    }
    if (task.norm == 1) row_kernels()->rms_norm(row.y, task.norm_weight, task.epsilon, task.size, row.y);
    if (task.norm == 2)
      row_kernels()->layer_norm(row.y, task.norm_weight, task.norm_bias, task.epsilon, task.size, row.y);
    float* out = row_of(task.out, t);
    const float* v = row_of(task.v, t);
    const f32x16 agreement = set1(seven ? row.agreement : 0.0F);
    for_each_vector(task.size, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
      f32x16 y = load_some(row.y + i, count);
      if (seven) y = fma(agreement, load_some(v + i, count), y);
      if (task.gate.data != nullptr) y = y * load_some(row_of(task.gate, t) + i, count);
      store_some(out + i, y, count);
    });
  }
}

void multiply(const float* x, std::int64_t n, float* y) noexcept {
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    store_some(y + i, load_some(y + i, count) * load_some(x + i, count), count);
  });
}

void lerp(const float* x, const float* weight, std::int64_t n, float* y) noexcept {
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    const f32x16 to = load_some(y + i, count);
    store_some(y + i, fma(load_some(x + i, count) - to, load_some(weight + i, count), to), count);
  });
}

constexpr RecurrentKernels table{conv, scan, shift, wkv, multiply, lerp};

}  // namespace

const RecurrentKernels* recurrent_kernels() noexcept { return &table; }

}  // namespace SKALD_ISA
}  // namespace kernels
}  // namespace skald::inline v0
