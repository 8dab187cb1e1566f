#include <skald/decoder/calibrate.hpp>

#include <algorithm>
#include <cmath>

#include <skald/decoder/decoder.hpp>

#include "decoder/coupled_kv.hpp"
#include "state/context_codec.hpp"

namespace skald::inline v0 {

namespace {

constexpr const char* where = "decoder.calibrate";

/// Keys and values of one layer, [channel][token].
struct Samples {
  std::size_t channels = 0;
  std::size_t most = 0;
  std::size_t count = 0;
  std::vector<float> values{};
  void make(std::size_t rows, std::size_t tokens) {
    channels = rows;
    most = tokens;
    values.resize(rows * tokens);
  }
  void append(std::span<const float> part, std::size_t tokens) {
    for (std::size_t c = 0; c < channels; ++c)
      std::copy_n(part.begin() + static_cast<std::ptrdiff_t>(c * tokens), tokens,
                  values.begin() + static_cast<std::ptrdiff_t>(c * most + count));
    count += tokens;
  }
  /// Without the places that stayed empty.
  void close() {
    for (std::size_t c = 0; c < channels && count < most; ++c)
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(c * most), count,
                  values.begin() + static_cast<std::ptrdiff_t>(c * count));
    values.resize(channels * count);
  }
};

void turn_back(const detail::KeyTurn& turn, std::span<float> keys, std::size_t heads, std::size_t tokens) {
  const std::size_t dims = keys.size() / (heads * tokens);
  std::vector<float> key(dims);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t d = 0; d < dims; ++d) key[d] = keys[(h * dims + d) * tokens + t];
      turn.turn_back(key.data(), static_cast<std::int64_t>(t));
      for (std::size_t d = 0; d < dims; ++d) keys[(h * dims + d) * tokens + t] = key[d];
    }
}

}  // namespace

CoupledCodebooks calibrate_coupled(const Model& model, std::span<const std::vector<TokenId>> texts,
                                   const CalibrateOptions& options) {
  const auto& spec = model.spec();
  const auto executor = options.executor ? *options.executor : make_tbb_executor();
  std::int64_t longest = 1;
  std::int64_t total = 0;
  const auto context = std::min<std::int64_t>(spec.context_length, 4096);
  for (const auto& text : texts) {
    const auto count = std::min(static_cast<std::int64_t>(text.size()), context);
    longest = std::max(longest, count);
    total += count;
  }
  total = std::min(total, options.tokens);
  if (total < 2) throw UsageError(where, "there are no tokens to learn from");
  if (spec.has_encoder()) throw IncompatibleError(where, "models with an encoder have no codes");
  const Decoder decoder(model, DecoderOptions{.kv = {.format = "f32"}, .context = longest, .parallel = 1});
  std::vector<Samples> keys(spec.layers.size());
  std::vector<Samples> values(spec.layers.size());
  std::vector<detail::KeyTurn> turns;
  for (const auto& rope : spec.ropes) turns.emplace_back(rope, longest);
  for (std::size_t l = 0; l < spec.layers.size(); ++l) {
    const auto& attention = spec.layers[l].attention;
    if (!attention) continue;
    if (attention->latent || attention->window > 0)
      throw IncompatibleError(where, "latent attention and sliding windows keep no keys and values of whole texts",
                              {.layer = static_cast<int>(l)});
    const auto heads = static_cast<std::size_t>(attention->kv_heads);
    keys[l].make(heads * static_cast<std::size_t>(attention->stored_dim_k()), static_cast<std::size_t>(total));
    values[l].make(heads * static_cast<std::size_t>(attention->stored_dim_v()), static_cast<std::size_t>(total));
  }
  std::int64_t done = 0;
  std::vector<float> part;
  for (const auto& text : texts) {
    const auto count = std::min({static_cast<std::int64_t>(text.size()), context, total - done});
    if (count <= 0) continue;
    auto session = decoder.new_session();
    (void)session.forward(std::span(text).first(static_cast<std::size_t>(count)), LogitsWanted::none, options.stop);
    for (std::size_t l = 0; l < spec.layers.size(); ++l) {
      if (!spec.layers[l].attention) continue;
      const auto& kv = static_cast<const PagedKv&>(*session.state().layer(static_cast<int>(l)));
      for (const bool of_keys : {true, false}) {
        auto& samples = of_keys ? keys[l] : values[l];
        part.resize(samples.channels * static_cast<std::size_t>(count));
        detail::read_part(kv, of_keys, 0, count, part);
        const auto rope = spec.layers[l].attention->rope;
        if (of_keys && rope >= 0)
          turn_back(turns[static_cast<std::size_t>(rope)], part,
                    static_cast<std::size_t>(spec.layers[l].attention->kv_heads), static_cast<std::size_t>(count));
        samples.append(part, static_cast<std::size_t>(count));
      }
    }
    done += count;
    if (options.progress)
      options.progress({"calibrate", static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(total)});
  }
  std::vector<CoupledCodebooks::Layer> layers(spec.layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    throw_if_stopped(options.stop, where);
    const auto& attention = spec.layers[l].attention;
    if (attention) {
      keys[l].close();
      values[l].close();
      layers[l] = {CoupledCodebook(options.shape, attention->kv_heads, attention->stored_dim_k(), keys[l].values,
                                   options.fit, executor),
                   CoupledCodebook(options.shape, attention->kv_heads, attention->stored_dim_v(), values[l].values,
                                   options.fit, executor)};
      keys[l] = {};
      values[l] = {};
    }
    if (options.progress) options.progress({"k-means", l + 1, layers.size()});
  }
  return {options.shape, std::move(layers)};
}

std::vector<std::int32_t> measure_chunk_tokens(const Model& model, std::span<const std::vector<TokenId>> texts,
                                               const ChunkedKvOptions& options, std::stop_token stop) {
  if (options.least_tokens < 1 || options.most_tokens < options.least_tokens || !(options.mass > 0.0 && options.mass <= 1.0))
    throw UsageError(where, "chunks of " + std::to_string(options.least_tokens) + " to " +
                                std::to_string(options.most_tokens) + " tokens by a mass of " + std::to_string(options.mass));
  const auto& spec = model.spec();
  const auto context = std::min<std::int64_t>(spec.context_length, 4096);
  const Decoder decoder(model, DecoderOptions{.context = context, .parallel = 1});
  std::vector<double> halvings(spec.layers.size(), 0.0);
  std::size_t counted = 0;
  for (const auto& text : texts) {
    if (text.empty()) continue;
    auto session = decoder.new_session();
    Batch batch;
    batch.add(session, std::span(text).first(std::min(text.size(), static_cast<std::size_t>(context))), LogitsWanted::none);
    AttentionScores scores;
    ForwardOptions forward;
    forward.stop = stop;
    forward.scores = &scores;
    (void)decoder.forward(batch, forward);
    for (std::size_t l = 0; l < halvings.size(); ++l)
      halvings[l] += std::log2(static_cast<double>(options.most_tokens) / chunk_tokens_for(scores.values[0][l], options));
    ++counted;
  }
  if (counted == 0) throw UsageError(where, "there are no tokens to learn from");
  std::vector<std::int32_t> sizes;
  for (std::size_t l = 0; l < halvings.size(); ++l)
    sizes.push_back(options.most_tokens >> std::lround(halvings[l] / static_cast<double>(counted)));
  return sizes;
}

}  // namespace skald::inline v0
