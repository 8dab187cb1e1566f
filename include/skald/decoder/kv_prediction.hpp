#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <skald/decoder/decoder.hpp>

namespace skald::inline v0 {

/// How keys and values of one base layer are made of those of an auxiliary layer, token by token: all heads together, keys
/// before rotation.
struct KvMap {
  int layer = 0;                 ///< of the auxiliary model
  std::vector<float> keys{};     ///< [base kv_heads x head_dim_k, auxiliary kv_heads x head_dim_k], or empty: they are equal
  std::vector<float> values{};   ///< [base kv_heads x head_dim_v, auxiliary kv_heads x head_dim_v], or empty: they are equal
};

/// KV prediction (Horton et al. 2024, arXiv 2410.08391): a small auxiliary model reads the prompt, and maps make the base
/// model's keys and values of its own, so that the base model begins to answer without having read the prompt.
class SKALD_API KvPredictor {
 public:
  /// `maps`: one per base layer. Both models must have the same vocabulary, and every token's keys and values in all layers
  /// (no eviction, window, latent rows or recurrent layers).
  /// @throws IncompatibleError, UsageError for maps of other sizes.
  KvPredictor(const Decoder<>& auxiliary, const Decoder<>& base, std::vector<KvMap> maps);

  /// A session of the base decoder that holds predicted keys and values for `tokens`: the auxiliary model runs over them, no
  /// layer of the base model does. For logits give the last token of the prompt to the session, not to this.
  /// @throws UsageError for no tokens or more than either context; OutOfMemoryError; as Decoder::forward.
  [[nodiscard]] Session predict(std::span<const TokenId> tokens) const;

  [[nodiscard]] const std::vector<KvMap>& maps() const noexcept { return maps_; }

 private:
  Decoder<> auxiliary_;
  Decoder<> base_;
  std::vector<KvMap> maps_;
  std::vector<std::shared_ptr<const Weight>> weights_;  // [base layer][keys, values], null where nothing is multiplied
};

/// Maps fitted to texts by least squares, with `ridge` times the mean square of the inputs added to the diagonal. `layers`
/// names the auxiliary layer of each base layer; empty: spread evenly. Both models read the texts.
/// @throws as KvPredictor and Decoder::forward.
[[nodiscard]] SKALD_API std::vector<KvMap> fit_kv_maps(const Decoder<>& auxiliary, const Decoder<>& base,
                                                       std::span<const std::vector<TokenId>> texts,
                                                       std::vector<int> layers = {}, double ridge = 1e-3);

}  // namespace skald::inline v0
