#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include <skald/decoder/decoder.hpp>

namespace skald::inline v0 {

/// How texts become vectors.
struct EmbedOptions {
  /// Empty: what the model was trained for, and the mean if it does not say.
  std::optional<Pooling> pooling{};
  bool normalize = true;  ///< to Euclidean length 1, after truncation; not the logits of Pooling::rank
  /// Keeps the first `dims` elements (Matryoshka representations, Kusupati et al. 2022, arXiv 2205.13147); 0: all.
  std::int64_t dims = 0;
  std::stop_token stop{};
};

/// One vector per text, row-major.
struct Embeddings {
  std::int64_t dims = 0;
  std::vector<float> values{};

  [[nodiscard]] std::size_t size() const noexcept {
    return dims == 0 ? 0 : values.size() / static_cast<std::size_t>(dims);
  }
  /// Vector of text `index`, unchecked.
  [[nodiscard]] std::span<const float> operator[](std::size_t index) const noexcept {
    return std::span(values).subspan(index * static_cast<std::size_t>(dims), static_cast<std::size_t>(dims));
  }
};

/// The pooling and the number of elements that options mean for a model.
struct EmbedPlan {
  Pooling pooling = Pooling::mean;
  std::int64_t dims = 0;
};
/// With Pooling::rank the elements are the logits of the model's classifier, one per label.
/// @throws UsageError for `dims` out of range; UnsupportedError for Pooling::none, and for Pooling::rank if the model has
/// no classifier.
[[nodiscard]] SKALD_API EmbedPlan embed_plan(const ModelSpec& spec, const EmbedOptions& options);
/// Pools hidden states [tokens, dim] into `out`, plan.dims elements. @throws NumericError if the states are not finite;
/// UsageError for Pooling::rank, which needs the model.
SKALD_API void pool(std::span<const float> hidden, std::int64_t dim, const EmbedPlan& plan, bool normalize,
                    std::span<float> out);
/// The same for hidden states of a model.
SKALD_API void pool(std::span<const float> hidden, const Model& model, const EmbedPlan& plan, bool normalize,
                    std::span<float> out);

/// A text of one or two parts. Models with token types (BERT) see which part a token is of.
struct TextPair {
  std::vector<TokenId> tokens{};
  std::int64_t second = -1;  ///< index of the first token of the second part; -1: there is none
};

/// Embeds texts, each in a session of its own, several in one forward pass. A text's vector does not depend on the
/// others. @throws UsageError for an empty text or one longer than the decoder's context; as Decoder::forward.
template <class B, class E, class K>
[[nodiscard]] Embeddings embed(const Decoder<B, E, K>& decoder, std::span<const TextPair> texts,
                               const EmbedOptions& options = {}) {
  const ModelSpec& spec = decoder.model().spec();
  const EmbedPlan plan = embed_plan(spec, options);
  const EffectiveConfig& config = decoder.effective_config();
  Embeddings result{plan.dims, std::vector<float>(texts.size() * static_cast<std::size_t>(plan.dims))};
  std::vector<float> hidden;
  Batch batch;
  for (std::size_t first = 0; first < texts.size();) {
    std::vector<Session> sessions;
    sessions.reserve(texts.size() - first);  // the batch points to them
    batch.clear();
    std::int64_t slots = 0;
    std::size_t last = first;
    for (; last < texts.size(); ++last) {
      // As many as fit one pass and the KV memory; one always goes.
      const auto tokens = static_cast<std::int64_t>(texts[last].tokens.size());
      slots += (tokens + config.page_tokens - 1) / config.page_tokens * config.page_tokens;
      if (sessions.size() == static_cast<std::size_t>(config.parallel)) break;
      if (last > first && (batch.rows() + tokens > config.batch_tokens || slots > config.capacity_tokens)) break;
      sessions.push_back(decoder.new_session());
      batch.add_pair(sessions.back(), texts[last].tokens, texts[last].second, LogitsWanted::none);
    }
    ForwardOptions pass{};
    pass.stop = options.stop;
    pass.hidden = &hidden;
    static_cast<void>(decoder.forward(batch, pass));
    std::size_t row = 0;
    const auto dim = static_cast<std::size_t>(spec.dim);
    for (; first < last; ++first) {
      pool(std::span(hidden).subspan(row * dim, texts[first].tokens.size() * dim), decoder.model(), plan, options.normalize,
           std::span(result.values)
               .subspan(first * static_cast<std::size_t>(plan.dims), static_cast<std::size_t>(plan.dims)));
      row += texts[first].tokens.size();
    }
  }
  return result;
}

/// Texts of one part.
template <class B, class E, class K>
[[nodiscard]] Embeddings embed(const Decoder<B, E, K>& decoder, std::span<const std::vector<TokenId>> texts,
                               const EmbedOptions& options = {}) {
  std::vector<TextPair> pairs;
  pairs.reserve(texts.size());
  for (const auto& text : texts) pairs.push_back({text, -1});
  return embed(decoder, std::span<const TextPair>(pairs), options);
}

/// One text.
template <class B, class E, class K>
[[nodiscard]] std::vector<float> embed(const Decoder<B, E, K>& decoder, std::span<const TokenId> tokens,
                                       const EmbedOptions& options = {}) {
  const TextPair text{{tokens.begin(), tokens.end()}, -1};
  return embed(decoder, std::span<const TextPair>(&text, 1), options).values;
}

/// Inner product: the cosine of the angle between normalized vectors. @throws UsageError if the sizes differ.
[[nodiscard]] SKALD_API double similarity(std::span<const float> a, std::span<const float> b);

}  // namespace skald::inline v0
