// Mixers with a recurrent state as ops. What they compute lies in one buffer, in blocks that follow each other; the
// widths are added up once more in model/plan.cpp.
#include <algorithm>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

namespace {

/// Hands out dense blocks of a buffer of `rows` rows.
class Blocks {
 public:
  Blocks(const Buffer& buffer, std::int64_t rows, std::int64_t used) : buffer_(buffer), rows_(rows), used_(used) {}
  Matrix operator()(std::int64_t cols) {
    const auto block = buffer_.matrix(static_cast<std::size_t>(rows_ * used_) * sizeof(float), rows_, cols);
    used_ += cols;
    return block;
  }

 private:
  const Buffer& buffer_;
  std::int64_t rows_;
  std::int64_t used_;
};

/// `cols` columns of a matrix.
Matrix columns(const Matrix& of, std::int64_t first, std::int64_t cols) noexcept {
  return {of.data == nullptr ? nullptr : of.data + first, of.rows, cols, of.stride};
}

}  // namespace

void DecoderImpl::emit_project(const Matrix& x, Role weight, const Matrix& out, int layer, OpSink sink,
                               Activation activation) {
  LinearOp project{};
  project.x = x;
  project.parts[0] = {model_.weight(weight, layer), nullptr, out};
  project.activation = activation;
  sink(project, layer);
}

/// What a mixer reads of the layer's normalized input: one product for all of it.
void DecoderImpl::emit_mixer_input(int layer, const Matrix& out, OpSink sink) {
  const auto& spec = model_.spec();
  LinearOp project{};
  project.x = x_.matrix(0, out.rows, spec.dim);
  project.norm = norm(spec.layers[static_cast<std::size_t>(layer)].attention_norm, Role::attention_norm,
                      Role::attention_norm_bias, layer);
  project.parts[0] = {model_.weight(Role::recurrent_in, layer), nullptr, out};
  sink(project, layer);
}

/// The same input itself, for mixers that mix it with that of the row before.
void DecoderImpl::emit_mixer_norm(int layer, const Matrix& out, OpSink sink) {
  const auto& spec = model_.spec();
  sink(NormOp{x_.matrix(0, out.rows, spec.dim),
              norm(spec.layers[static_cast<std::size_t>(layer)].attention_norm, Role::attention_norm,
                   Role::attention_norm_bias, layer),
              out},
       layer);
}

void DecoderImpl::emit_low_rank(const LowRank& pair, int layer, OpSink sink) {
  emit_project(pair.x, pair.down, pair.inner, layer, sink, pair.inner_activation);
  LinearOp up{};
  up.x = pair.inner;
  up.parts[0] = {model_.weight(pair.up, layer), pair.base, pair.out};
  up.activation = pair.activation;
  sink(up, layer);
}

void DecoderImpl::emit_recurrent(int layer, std::int64_t rows, OpSink sink) {
  switch (model_.spec().layers[static_cast<std::size_t>(layer)].recurrent->kind) {
    case RecurrentKind::selective_scan: return emit_selective_scan(layer, rows, sink);
    case RecurrentKind::ssd: return emit_ssd(layer, rows, sink);
    case RecurrentKind::short_convolution: return emit_short_convolution(layer, rows, sink);
    case RecurrentKind::rwkv6: return emit_rwkv6(layer, rows, sink);
    case RecurrentKind::rwkv7: return emit_rwkv7(layer, rows, sink);
  }
}

void DecoderImpl::emit_recurrent_output(int layer, std::int64_t rows, OpSink sink) {
  ResidualSum sum{};
  sum.input = mixed_;
  sum.weight = model_.weight(Role::recurrent_output, layer);
  emit_sum(sum, layer, rows, sink);
}

void DecoderImpl::emit_selective_scan(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layers[static_cast<std::size_t>(layer)];
  const auto& mixer = *layer_spec.recurrent;
  Blocks block(recurrent_, rows, first_value_columns(spec));
  const auto input = block(mixer.input_rows());
  const auto x = block(mixer.width);
  const auto low = block(mixer.step_rank + 2 * std::int64_t{mixer.state_size});
  const auto steps = block(mixer.width);
  mixed_ = block(mixer.width);

  emit_mixer_input(layer, input, sink);
  sink(ConvOp{columns(input, 0, mixer.width), x, mixer.taps, model_.vector(Role::conv_weight, layer),
              model_.vector(Role::conv_bias, layer), Activation::silu, state_layer(layer, 0)},
       layer);
  emit_project(x, Role::step_input, low, layer, sink);
  const auto b = columns(low, mixer.step_rank, mixer.state_size);
  const auto c = columns(low, mixer.step_rank + std::int64_t{mixer.state_size}, mixer.state_size);
  if (mixer.step_norm.kind != NormKind::none) {
    sink(NormOp{b, norm(mixer.step_norm, Role::b_norm, Role::b_norm, layer), b}, layer);
    sink(NormOp{c, norm(mixer.step_norm, Role::c_norm, Role::c_norm, layer), c}, layer);
  }
  LinearOp widen{};
  widen.x = columns(low, 0, mixer.step_rank);
  widen.norm = norm(mixer.step_norm, Role::step_norm, Role::step_norm, layer);
  widen.parts[0] = {model_.weight(Role::step, layer), nullptr, steps};
  sink(widen, layer);

  ScanOp scan{};
  scan.x = x;
  scan.steps = steps;
  scan.b = b;
  scan.c = c;
  scan.gate = columns(input, mixer.width, mixer.width);
  scan.out = mixed_;
  scan.heads = mixer.heads;
  scan.size = mixer.state_size;
  scan.decay = model_.vector(Role::scan_decay, layer);
  scan.skip = model_.vector(Role::scan_skip, layer);
  scan.step_bias = model_.vector(Role::step_bias, layer);
  scan.state = state_layer(layer, mixer.shift_elements());
  sink(scan, layer);
}

void DecoderImpl::emit_ssd(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layers[static_cast<std::size_t>(layer)];
  const auto& mixer = *layer_spec.recurrent;
  const std::int64_t shared = std::int64_t{mixer.groups} * mixer.state_size;
  Blocks block(recurrent_, rows, first_value_columns(spec));
  const auto input = block(mixer.input_rows());  // gate, convolved part, steps
  const auto convolved = block(mixer.conv_cols());
  mixed_ = block(mixer.width);

  emit_mixer_input(layer, input, sink);
  sink(ConvOp{columns(input, mixer.width, mixer.conv_cols()), convolved, mixer.taps,
              model_.vector(Role::conv_weight, layer), model_.vector(Role::conv_bias, layer), Activation::silu,
              state_layer(layer, 0)},
       layer);

  ScanOp scan{};
  scan.x = columns(convolved, 0, mixer.width);
  scan.b = columns(convolved, mixer.width, shared);
  scan.c = columns(convolved, mixer.width + shared, shared);
  scan.steps = columns(input, mixer.width + mixer.conv_cols(), mixer.heads);
  scan.gate = columns(input, 0, mixer.width);
  scan.out = mixed_;
  scan.heads = mixer.heads;
  scan.groups = mixer.groups;
  scan.size = mixer.state_size;
  scan.decay = model_.vector(Role::scan_decay, layer);
  scan.one_decay = true;
  scan.skip = model_.vector(Role::scan_skip, layer);
  scan.step_bias = model_.vector(Role::step_bias, layer);
  scan.state = state_layer(layer, mixer.shift_elements());
  sink(scan, layer);
  if (mixer.norm.kind != NormKind::none)
    sink(NormOp{mixed_, norm(mixer.norm, Role::recurrent_norm, Role::recurrent_norm_bias, layer), mixed_, mixer.groups},
         layer);
}

void DecoderImpl::emit_short_convolution(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layers[static_cast<std::size_t>(layer)];
  const auto& mixer = *layer_spec.recurrent;
  Blocks block(recurrent_, rows, first_value_columns(spec));
  const auto input = block(mixer.input_rows());  // b, c, x
  mixed_ = block(mixer.width);

  emit_mixer_input(layer, input, sink);
  const auto x = columns(input, 2 * mixer.width, mixer.width);
  sink(MultiplyOp{x, columns(input, 0, mixer.width)}, layer);
  sink(ConvOp{x, mixed_, mixer.taps, model_.vector(Role::conv_weight, layer), model_.vector(Role::conv_bias, layer),
              Activation::none, state_layer(layer, 0)},
       layer);
  sink(MultiplyOp{mixed_, columns(input, mixer.width, mixer.width)}, layer);
}

void DecoderImpl::emit_rwkv6(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layers[static_cast<std::size_t>(layer)];
  const auto& mixer = *layer_spec.recurrent;
  const std::int64_t width = mixer.width;
  Blocks block(recurrent_, rows, first_value_columns(spec));
  const auto x = block(width);
  const auto first = block(width);
  const auto down = block(5 * std::int64_t{mixer.mix_rank});
  const auto mixed = block(5 * width);  // of decay, key, value, receptance, gate
  const auto decay = block(width);
  const auto low = block(mixer.decay_rank);
  WkvOp wkv{};
  wkv.r = block(width);
  wkv.k = block(width);
  wkv.v = block(width);
  wkv.gate = block(width);
  wkv.decay = decay;
  mixed_ = block(width);

  emit_mixer_norm(layer, x, sink);
  sink(TokenShiftOp{x, model_.vector(Role::mix_first, layer), Matrix{}, first, state_layer(layer, 0)}, layer);
  emit_project(first, Role::mix_down, down, layer, sink, Activation::tanh);
  HeadLinearOp up{};
  up.x = down;
  up.x_step = mixer.mix_rank;
  up.weight = model_.weight(Role::mix_up, layer);
  up.heads = 5;
  up.out = mixed;
  up.out_step = width;
  sink(up, layer);
  sink(TokenShiftOp{x, model_.vector(Role::mix, layer), mixed, mixed, state_layer(layer, 0)}, layer);
  const auto part = [&](int index) { return columns(mixed, index * width, width); };
  emit_low_rank({part(0), Role::decay_down, Role::decay_up, model_.vector(Role::decay_base, layer), low, decay,
                 Activation::tanh, Activation::none},
                layer, sink);
  emit_project(part(1), Role::time_key, wkv.k, layer, sink);
  emit_project(part(2), Role::time_value, wkv.v, layer, sink);
  emit_project(part(3), Role::receptance, wkv.r, layer, sink);
  emit_project(part(4), Role::time_gate, wkv.gate, layer, sink, Activation::silu);
  emit_wkv(layer, wkv, sink);
}

void DecoderImpl::emit_rwkv7(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layers[static_cast<std::size_t>(layer)];
  const auto& mixer = *layer_spec.recurrent;
  const std::int64_t width = mixer.width;
  const bool gated = mixer.gate_rank > 0;
  const auto first_value = recurrent_.matrix(0, rows, width);
  Blocks block(recurrent_, rows, first_value_columns(spec));
  const auto x = block(width);
  const auto mixed = block((gated ? 6 : 5) * width);  // of receptance, decay, key, value, rate, gate
  const auto share = block(width);
  const auto low = [&, place = block(std::max({mixer.decay_rank, mixer.rate_rank, mixer.value_rank, mixer.gate_rank}))](
                       std::int64_t rank) {
    return Matrix{place.data, rows, rank, rank};
  };
  WkvOp wkv{};
  wkv.r = block(width);
  wkv.k = block(width);
  wkv.v = mixer.value_rank > 0 ? block(width) : first_value;
  wkv.decay = block(width);
  wkv.rate = block(width);
  if (gated) wkv.gate = block(width);
  mixed_ = block(width);

  emit_mixer_norm(layer, x, sink);
  sink(TokenShiftOp{x, model_.vector(Role::mix, layer), Matrix{}, mixed, state_layer(layer, 0)}, layer);
  const auto part = [&](int index) { return columns(mixed, index * width, width); };
  emit_project(part(0), Role::receptance, wkv.r, layer, sink);
  emit_low_rank({part(1), Role::decay_down, Role::decay_up, model_.vector(Role::decay_base, layer),
                 low(mixer.decay_rank), wkv.decay, Activation::tanh, Activation::none},
                layer, sink);
  emit_project(part(2), Role::time_key, wkv.k, layer, sink);
  emit_project(part(3), Role::time_value, wkv.v, layer, sink);
  if (mixer.value_rank > 0) {
    emit_low_rank({part(3), Role::first_value_down, Role::first_value_up, model_.vector(Role::first_value_base, layer),
                   low(mixer.value_rank), share, Activation::none, Activation::sigmoid},
                  layer, sink);
    sink(LerpOp{wkv.v, first_value, share}, layer);
  }
  emit_low_rank({part(4), Role::rate_down, Role::rate_up, model_.vector(Role::rate_base, layer), low(mixer.rate_rank),
                 wkv.rate, Activation::none, Activation::none},
                layer, sink);
  if (gated)
    emit_low_rank({part(5), Role::gate_down, Role::gate_up, nullptr, low(mixer.gate_rank), wkv.gate,
                   Activation::sigmoid, Activation::none},
                  layer, sink);
  wkv.key_scale = model_.vector(Role::key_scale, layer);
  wkv.rate_scale = model_.vector(Role::rate_scale, layer);
  emit_wkv(layer, wkv, sink);
}

void DecoderImpl::emit_wkv(int layer, WkvOp& wkv, OpSink sink) {
  const auto& mixer = *model_.spec().layers[static_cast<std::size_t>(layer)].recurrent;
  wkv.version = mixer.kind == RecurrentKind::rwkv6 ? 6 : 7;
  wkv.heads = mixer.heads;
  wkv.out = mixed_;
  wkv.bonus = model_.vector(Role::time_bonus, layer);
  wkv.norm = norm(mixer.norm, Role::recurrent_norm, Role::recurrent_norm_bias, layer);
  wkv.state = state_layer(layer, mixer.shift_elements());
  sink(wkv, layer);
}

void DecoderImpl::emit_channel_mix(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layers[static_cast<std::size_t>(layer)];
  const auto& ffn = *layer_spec.ffn;
  const auto& mixer = layer_spec.recurrent;
  const auto state = state_layer(layer, mixer ? mixer->shift_elements() + mixer->scan_elements() : 0);
  Blocks block(recurrent_, rows, first_value_columns(spec));
  const auto x = block(spec.dim);
  const auto shifted = block(spec.dim);
  const auto receptance = block(spec.dim);
  const auto residual = x_.matrix(0, rows, spec.dim);

  sink(NormOp{residual, norm(layer_spec.ffn_norm, Role::ffn_norm, Role::ffn_norm_bias, layer), x}, layer);
  if (ffn.receptance) {
    sink(TokenShiftOp{x, model_.vector(Role::channel_receptance_mix, layer), Matrix{}, shifted, state}, layer);
    emit_project(shifted, Role::channel_receptance, receptance, layer, sink, Activation::sigmoid);
  }
  sink(TokenShiftOp{x, model_.vector(Role::channel_mix, layer), Matrix{}, shifted, state}, layer);
  LinearOp widen{};
  widen.x = shifted;
  widen.parts[0] = {model_.weight(Role::ffn_up, layer), model_.vector(Role::ffn_up_bias, layer),
                    ffn_.matrix(0, rows, ffn.width)};
  widen.activation = ffn.activation;
  sink(widen, layer);
  if (!ffn.receptance) return emit_ffn_output(layer, rows, sink);
  const auto work = work_.matrix(0, rows, spec.dim);
  LinearOp narrow{};
  narrow.x = widen.parts[0].out;
  narrow.parts[0] = {model_.weight(Role::ffn_down, layer), model_.vector(Role::ffn_down_bias, layer), work};
  sink(narrow, layer);
  sink(MultiplyOp{work, receptance}, layer);
  sink(AddOp{residual, work, layer_spec.residual_scale}, layer);
  if (layer_spec.ffn_residual_norm.kind != NormKind::none)
    sink(NormOp{residual,
                norm(layer_spec.ffn_residual_norm, Role::ffn_residual_norm, Role::ffn_residual_norm_bias, layer),
                residual},
         layer);
}

}  // namespace skald::inline v0::detail
