#include <skald/decoder/kv_prediction.hpp>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include <skald/state/kv_rows.hpp>
#include <skald/state/paged_kv.hpp>

#include "decoder/context_access.hpp"

namespace skald::inline v0 {

namespace {

constexpr const char* where = "decoder.kv_prediction";

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// One layer of a model and what a session holds of it.
struct Layer {
  PagedKv* kv = nullptr;
  const AttentionSpec* attention = nullptr;
  RopeFrequencies rope{};
  RopeKind kind = RopeKind::none;
  [[nodiscard]] std::int32_t heads() const noexcept { return attention->kv_heads; }
  [[nodiscard]] std::byte* page(std::int32_t head, std::int64_t slot) const {
    const auto& layout = kv->pool().layout();
    return kv->pool().address(kv->pages(head / layout.heads)[static_cast<std::size_t>(slot / layout.page_tokens)]);
  }
};

std::vector<Layer> layers_of(const Session& session) {
  const auto& spec = session.model().spec();
  const auto refuse = [](const std::string& what, int layer) {
    throw IncompatibleError(where, "keys and values are predicted for every token and layer; " + what, {.layer = layer});
  };
  if (!session.state().row_wise()) refuse("an eviction, a sliding window or a recurrent layer does not keep them", -1);
  if (detail::ContextAccess::core(session).effective_config().kv_format.starts_with("coupled"))
    refuse("KV format 'coupled' keeps codes", -1);
  std::vector<Layer> layers;
  for (int i = 0; i < spec.layer_count(); ++i) {
    auto* state = session.state().layer(i);
    const auto& attention = spec.layers[static_cast<std::size_t>(i)].attention;
    if (state == nullptr || state->kind() != "paged_kv" || !attention || attention->latent)
      refuse("this layer has none, or in a form of its own", i);
    Layer layer{static_cast<PagedKv*>(state), &*attention, {}, RopeKind::none};
    if (!layer.kv->pool().host_visible()) refuse("the host cannot see them", i);
    if (attention->rope >= 0) {
      const auto& rope = spec.ropes[static_cast<std::size_t>(attention->rope)];
      layer.rope = rope_frequencies(rope, session.context());
      layer.kind = rope.kind;
    }
    layers.push_back(std::move(layer));
  }
  return layers;
}

/// Cosines and sines of a layer's rotation, [token][pair][2].
using Turns = std::vector<double>;

Turns make_turns(const Layer& layer, std::int64_t tokens, bool back) {
  Turns turns;
  if (layer.kind == RopeKind::none) return turns;
  const double scale = back ? 1.0 / static_cast<double>(layer.rope.magnitude) : static_cast<double>(layer.rope.magnitude);
  turns.reserve(static_cast<std::size_t>(2 * tokens) * layer.rope.inverse_frequencies.size());
  for (std::int64_t t = 0; t < tokens; ++t)
    for (const double frequency : layer.rope.inverse_frequencies) {
      const double angle = static_cast<double>(t) * frequency;
      turns.push_back(std::cos(angle) * scale);
      turns.push_back((back ? -std::sin(angle) : std::sin(angle)) * scale);
    }
  return turns;
}

/// Rotates a key to a position, or back.
void rotate(const Layer& layer, const Turns& turns, std::int64_t position, float* key) {
  if (layer.kind == RopeKind::none) return;
  const auto pairs = layer.rope.inverse_frequencies.size();
  const double* turn = turns.data() + 2 * pairs * static_cast<std::size_t>(position);
  for (std::size_t j = 0; j < pairs; ++j, turn += 2) {
    float& a = layer.kind == RopeKind::interleaved ? key[2 * j] : key[j];
    float& b = layer.kind == RopeKind::interleaved ? key[2 * j + 1] : key[j + pairs];
    const double x = static_cast<double>(a);
    const double y = static_cast<double>(b);
    a = static_cast<float>(x * turn[0] - y * turn[1]);
    b = static_cast<float>(x * turn[1] + y * turn[0]);
  }
}

/// Keys before rotation, or values, of some tokens: [tokens, heads x dims].
void read_tokens(const Layer& layer, const Turns& turns, std::int64_t first, std::int64_t last, bool keys, Rows& rows) {
  const auto& layout = layer.kv->pool().layout();
  const auto dims = keys ? layout.head_dim_k : layout.head_dim_v;
  for (std::int64_t t = first; t < last; ++t)
    for (std::int32_t h = 0; h < layer.heads(); ++h) {
      const std::span<float> row(&rows(t, h * dims), static_cast<std::size_t>(dims));
      const auto slot = static_cast<std::int32_t>(t % layout.page_tokens);
      if (keys) read_kv_key(layout, layer.page(h, t), h % layout.heads, slot, row);
      else read_kv_value(layout, layer.page(h, t), h % layout.heads, slot, row);
      if (keys) rotate(layer, turns, t, row.data());
    }
}

Rows read(const Layer& layer, std::int64_t tokens, bool keys) {
  Rows rows(tokens, std::int64_t{layer.heads()} * (keys ? layer.attention->head_dim_k : layer.attention->head_dim_v));
  read_tokens(layer, keys ? make_turns(layer, tokens, true) : Turns{}, 0, tokens, keys, rows);
  return rows;
}

void write_tokens(const Layer& layer, const Turns& turns, std::int64_t first, std::int64_t last, bool keys, Rows& rows) {
  const auto& layout = layer.kv->pool().layout();
  const auto dims = keys ? layout.head_dim_k : layout.head_dim_v;
  for (std::int64_t t = first; t < last; ++t)
    for (std::int32_t h = 0; h < layer.heads(); ++h) {
      const std::span<float> row(&rows(t, h * dims), static_cast<std::size_t>(dims));
      const auto slot = static_cast<std::int32_t>(t % layout.page_tokens);
      if (keys) rotate(layer, turns, t, row.data());
      if (keys) write_kv_key(layout, layer.page(h, t), h % layout.heads, slot, row);
      else write_kv_value(layout, layer.page(h, t), h % layout.heads, slot, row);
    }
}

/// Moves between pages and rows, on the threads of a stream.
struct Move {
  const Layer* layer = nullptr;
  const Turns* turns = nullptr;
  Rows* rows = nullptr;
  bool keys = true;
  bool to_pages = false;
  static constexpr std::int64_t tokens = 32;  // of a unit
  static void run(void* context, std::int64_t unit) noexcept {
    const auto& move = *static_cast<const Move*>(context);
    const auto first = unit * tokens;
    const auto last = std::min(first + tokens, move.rows->rows());
    (move.to_pages ? write_tokens : read_tokens)(*move.layer, *move.turns, first, last, move.keys, *move.rows);
  }
  [[nodiscard]] HostOp op() { return {&run, this, (rows->rows() + tokens - 1) / tokens}; }
};

bool same_rotation(const Layer& a, const Layer& b) {
  return a.kind == b.kind && a.rope.inverse_frequencies == b.rope.inverse_frequencies &&
         a.rope.magnitude == b.rope.magnitude;
}

std::int64_t columns(const Layer& layer, bool keys) {
  return std::int64_t{layer.heads()} * (keys ? layer.attention->head_dim_k : layer.attention->head_dim_v);
}

/// Equal layers whose map is the identity: the stored bits, without a detour through numbers.
void copy_slots(const Layer& from, const Layer& to, std::int64_t tokens) {
  const auto& layout = to.kv->pool().layout();
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int32_t h = 0; h < to.heads(); h += layout.heads) {
      const auto slot = static_cast<std::int32_t>(t % layout.page_tokens);
      copy_kv_slot(layout, from.page(h, t), slot, to.page(h, t), slot);
    }
}

void check_maps(const std::vector<KvMap>& maps, const std::vector<Layer>& from, const std::vector<Layer>& to) {
  const auto refuse = [](const std::string& what, std::size_t layer) {
    throw UsageError(where, what, {.layer = static_cast<int>(layer)});
  };
  if (maps.size() != to.size())
    refuse(std::to_string(maps.size()) + " maps are given for " + std::to_string(to.size()) + " layers", 0);
  for (std::size_t i = 0; i < maps.size(); ++i) {
    if (maps[i].layer < 0 || maps[i].layer >= static_cast<int>(from.size()))
      refuse("the auxiliary model has no layer " + std::to_string(maps[i].layer), i);
    const auto& source = from[static_cast<std::size_t>(maps[i].layer)];
    for (const bool keys : {true, false}) {
      const auto& map = keys ? maps[i].keys : maps[i].values;
      const auto rows = columns(to[i], keys);
      const auto cols = columns(source, keys);
      if (map.empty() ? rows != cols : static_cast<std::int64_t>(map.size()) != rows * cols)
        refuse(std::string("the map of ") + (keys ? "keys" : "values") + " has " + std::to_string(map.size()) +
                   " numbers; " + std::to_string(rows) + " x " + std::to_string(cols) + " are needed",
               i);
    }
  }
}

}  // namespace

KvPredictor::KvPredictor(const Decoder<>& auxiliary, const Decoder<>& base, std::vector<KvMap> maps)
    : auxiliary_(auxiliary), base_(base), maps_(std::move(maps)) {
  if (auxiliary_.model().spec().vocabulary != base_.model().spec().vocabulary)
    throw IncompatibleError(where, "the vocabularies have " + std::to_string(auxiliary_.model().spec().vocabulary) +
                                       " and " + std::to_string(base_.model().spec().vocabulary) + " tokens");
  const auto from = auxiliary_.new_session();
  const auto to = base_.new_session();
  const auto from_layers = layers_of(from);
  const auto to_layers = layers_of(to);
  check_maps(maps_, from_layers, to_layers);
  for (std::size_t i = 0; i < maps_.size(); ++i)
    for (const bool keys : {true, false}) {
      const auto& map = keys ? maps_[i].keys : maps_[i].values;
      auto& weight = weights_.emplace_back();
      if (map.empty()) continue;
      const auto cols = columns(from_layers[static_cast<std::size_t>(maps_[i].layer)], keys);
      const auto fill = [&](std::int64_t first, std::int64_t count, std::span<std::byte> out) {
        std::memcpy(out.data(), map.data() + first * cols, static_cast<std::size_t>(count * cols) * sizeof(float));
      };
      weight = base_.model().backend()->make_weight(
          {.type = DType::f32, .rows = columns(to_layers[i], keys), .cols = cols, .read = fill}, base_.model().layout(), {});
    }
}

Session KvPredictor::predict(std::span<const TokenId> tokens) const {
  const auto count = static_cast<std::int64_t>(tokens.size());
  auto source = auxiliary_.new_session();
  auto session = base_.new_session();
  if (count < 1 || count > session.context())
    throw UsageError(where, std::to_string(count) + " tokens are given; 1 to " + std::to_string(session.context()) +
                                " fit the base decoder's context");
  (void)source.forward(tokens, LogitsWanted::none);
  session.state().append(count);
  const auto from = layers_of(source);
  const auto to = layers_of(session);
  const DType type = DType::f32;
  StreamLimits limits{.tokens = count, .weight_types = {&type, 1}};
  for (const auto& layer : from) limits.max_cols = std::max({limits.max_cols, columns(layer, true), columns(layer, false)});
  const auto stream = base_.model().backend()->new_stream(limits);
  Rows inputs;
  Rows outputs;
  Turns back;
  Turns forth;
  for (std::size_t i = 0; i < to.size(); ++i) {
    const auto& map = maps_[i];
    const auto& layer = from[static_cast<std::size_t>(map.layer)];
    if (map.keys.empty() && map.values.empty() && same_rotation(layer, to[i]) &&
        layer.kv->pool().layout() == to[i].kv->pool().layout()) {
      copy_slots(layer, to[i], count);
      continue;
    }
    if (i == 0 || back.empty() || !same_rotation(layer, from[static_cast<std::size_t>(maps_[i - 1].layer)]))
      back = make_turns(layer, count, true);
    if (i == 0 || forth.empty() || !same_rotation(to[i], to[i - 1])) forth = make_turns(to[i], count, false);
    for (const bool keys : {true, false}) {
      const auto* weight = weights_[2 * i + (keys ? 0 : 1)].get();
      inputs.resize(count, columns(layer, keys));
      outputs.resize(count, columns(to[i], keys));
      Move in{&layer, &back, &inputs, keys, false};
      Move out{&to[i], &forth, weight != nullptr ? &outputs : &inputs, keys, true};
      stream->enqueue(in.op());
      LinearOp product{};
      product.x = {inputs.data(), count, inputs.cols(), inputs.cols()};
      product.parts[0].weight = weight;
      product.parts[0].out = {outputs.data(), count, outputs.cols(), outputs.cols()};
      if (weight != nullptr) stream->enqueue(product);
      stream->enqueue(out.op());
      stream->synchronize({});
    }
  }
  session.state().commit();
  session.state().set_approximate();
  detail::ContextAccess::tokens(session).assign(tokens.begin(), tokens.end());
  return session;
}

std::vector<KvMap> fit_kv_maps(const Decoder<>& auxiliary, const Decoder<>& base,
                               std::span<const std::vector<TokenId>> texts, std::vector<int> layers, double ridge) {
  const auto base_layers = static_cast<std::size_t>(base.model().spec().layer_count());
  const auto auxiliary_layers = static_cast<std::size_t>(auxiliary.model().spec().layer_count());
  if (layers.empty())
    for (std::size_t i = 0; i < base_layers; ++i)
      layers.push_back(static_cast<int>(i * auxiliary_layers / base_layers));
  if (layers.size() != base_layers || texts.empty())
    throw UsageError(where, "a text at least and an auxiliary layer for each of the " + std::to_string(base_layers) +
                                " base layers are needed");
  std::vector<Eigen::MatrixXd> squares(2 * base_layers);
  std::vector<Eigen::MatrixXd> products(2 * base_layers);
  for (const auto& text : texts) {
    auto source = auxiliary.new_session();
    auto target = base.new_session();
    (void)source.forward(text, LogitsWanted::none);
    (void)target.forward(text, LogitsWanted::none);
    const auto from = layers_of(source);
    const auto to = layers_of(target);
    for (std::size_t i = 0; i < 2 * base_layers; ++i) {
      const auto layer = layers[i / 2];
      if (layer < 0 || layer >= static_cast<int>(from.size()))
        throw UsageError(where, "the auxiliary model has no layer " + std::to_string(layer));
      const Eigen::MatrixXd x = read(from[static_cast<std::size_t>(layer)], source.length(), i % 2 == 0).cast<double>();
      const Eigen::MatrixXd y = read(to[i / 2], target.length(), i % 2 == 0).cast<double>();
      if (squares[i].size() == 0) {
        squares[i] = Eigen::MatrixXd::Zero(x.cols(), x.cols());
        products[i] = Eigen::MatrixXd::Zero(x.cols(), y.cols());
      }
      squares[i].noalias() += x.transpose() * x;
      products[i].noalias() += x.transpose() * y;
    }
  }
  std::vector<KvMap> maps(base_layers);
  for (std::size_t i = 0; i < 2 * base_layers; ++i) {
    const double mean = squares[i].trace() / static_cast<double>(squares[i].rows());
    squares[i].diagonal().array() += ridge * mean + 1e-12;
    const Rows solution = squares[i].ldlt().solve(products[i]).transpose().cast<float>();
    auto& matrix = i % 2 == 0 ? maps[i / 2].keys : maps[i / 2].values;
    matrix.assign(solution.data(), solution.data() + solution.size());
    maps[i / 2].layer = layers[i / 2];
  }
  return maps;
}

}  // namespace skald::inline v0
