#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <skald/generate/candidates.hpp>

namespace skald::inline v0 {

class Session;

/// What a sampler may look at.
struct SamplingContext {
  std::span<const TokenId> history{};  ///< tokens of the session so far; -1 for rows given as embeddings
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;    ///< Session::random_stream
  std::uint64_t position = 0;  ///< of the token that is chosen
};

/// One step of a sampler chain: changes logits or drops candidates. Stateless: what belongs to a sequence comes in the
/// context, so that forks, batches and restored sessions draw alike. At least one candidate must stay.
template <class S>
concept Sampler = std::copyable<S> && requires(const S& sampler, Candidates& candidates, const SamplingContext& context) {
  { sampler.name() } -> std::convertible_to<std::string>;
  sampler.apply(candidates, context);
};

/// Divides logits by `value` > 0.
struct SKALD_API Temperature {
  float value = 1.0F;
  [[nodiscard]] std::string name() const { return "temperature"; }
  void apply(Candidates& candidates, const SamplingContext&) const;
};
/// Keeps the k largest logits (Fan et al. 2018, arXiv 1805.04833). 0: off.
struct SKALD_API TopK {
  std::int32_t k = 40;
  [[nodiscard]] std::string name() const { return "top_k"; }
  void apply(Candidates& candidates, const SamplingContext&) const;
};
/// Keeps the smallest set of most probable tokens that holds probability p (nucleus; Holtzman et al. 2019,
/// arXiv 1904.09751). 1: off.
struct SKALD_API TopP {
  float p = 0.95F;
  [[nodiscard]] std::string name() const { return "top_p"; }
  void apply(Candidates& candidates, const SamplingContext&) const;
};
/// Keeps tokens at least p times as probable as the most probable one (Nguyen et al. 2024, arXiv 2407.01082). 0: off.
struct SKALD_API MinP {
  float p = 0.05F;
  [[nodiscard]] std::string name() const { return "min_p"; }
  void apply(Candidates& candidates, const SamplingContext&) const;
};
/// Keeps the tokens whose surprise is nearest to the expected one until they hold probability p (locally typical
/// sampling; Meister et al. 2022, arXiv 2202.00666). 1: off.
struct SKALD_API Typical {
  float p = 1.0F;
  [[nodiscard]] std::string name() const { return "typical"; }
  void apply(Candidates& candidates, const SamplingContext&) const;
};
/// Penalties on tokens of the recent past. `repeat` divides positive and multiplies negative logits (Keskar et al.
/// 2019, arXiv 1909.05858); `presence` is subtracted once, `frequency` once per occurrence.
struct SKALD_API Penalties {
  std::int32_t last_n = 64;  ///< tokens looked at; 0: none, -1: all
  float repeat = 1.0F;       ///< 1: off
  float frequency = 0.0F;    ///< 0: off
  float presence = 0.0F;     ///< 0: off
  [[nodiscard]] std::string name() const { return "penalties"; }
  void apply(Candidates& candidates, const SamplingContext& context) const;
};
/// "Don't repeat yourself" (p-e-w 2024): a token that would extend a repetition of length n >= allowed_length loses
/// multiplier * base^(n - allowed_length). A sequence does not reach across a breaker token.
struct SKALD_API Dry {
  float multiplier = 0.0F;  ///< 0: off
  float base = 1.75F;
  std::int32_t allowed_length = 2;
  std::int32_t last_n = -1;         ///< tokens looked at; 0: none, -1: all
  std::vector<TokenId> breakers{};  ///< sorted ascending
  [[nodiscard]] std::string name() const { return "dry"; }
  void apply(Candidates& candidates, const SamplingContext& context) const;
};
/// Adds to the logits of given tokens.
struct SKALD_API LogitBias {
  std::vector<std::pair<TokenId, float>> bias{};
  [[nodiscard]] std::string name() const { return "logit_bias"; }
  void apply(Candidates& candidates, const SamplingContext&) const;
};

/// The type-erased twin of Sampler.
class AnySampler {
 public:
  template <class S>
    requires(!std::same_as<S, AnySampler>) && Sampler<S>
  AnySampler(S sampler)  // NOLINT(google-explicit-constructor)
      : self_(std::make_shared<Model<S>>(std::move(sampler))) {}
  [[nodiscard]] std::string name() const { return self_->name(); }
  void apply(Candidates& candidates, const SamplingContext& context) const { self_->apply(candidates, context); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    [[nodiscard]] virtual std::string name() const = 0;
    virtual void apply(Candidates& candidates, const SamplingContext& context) const = 0;
  };
  template <class S>
  struct Model final : Interface {
    explicit Model(S s) : sampler(std::move(s)) {}
    [[nodiscard]] std::string name() const override { return sampler.name(); }
    void apply(Candidates& candidates, const SamplingContext& context) const override {
      sampler.apply(candidates, context);
    }
    S sampler;
  };
  std::shared_ptr<const Interface> self_;
};

/// Samplers in order, then a draw: the largest logit if `greedy`, else by probability. Copies are independent.
class SKALD_API SamplerChain {
 public:
  SamplerChain() = default;
  SamplerChain& add(AnySampler sampler) {
    samplers_.push_back(std::move(sampler));
    return *this;
  }
  SamplerChain& greedy(bool on = true) noexcept {
    greedy_ = on;
    return *this;
  }
  SamplerChain& seed(std::uint64_t value) noexcept {
    seed_ = value;
    return *this;
  }
  /// Chooses a token; the chain's seed takes the place of the context's. @throws NumericError if no candidate has a finite logit.
  [[nodiscard]] TokenId sample(std::span<const float> logits, SamplingContext context);
  /// Chooses the token that follows a session's tokens.
  [[nodiscard]] TokenId sample(std::span<const float> logits, const Session& session);
  /// Names of the samplers and of the draw, e.g. "top_k,temperature,random".
  [[nodiscard]] std::string describe() const;

 private:
  std::vector<AnySampler> samplers_;
  Candidates candidates_;
  std::uint64_t seed_ = 0;
  bool greedy_ = false;
};

/// The usual chain by options: penalties, dry, top-k, typical, top-p, min-p, temperature, then a random draw. With
/// temperature 0 the largest logit after the penalties is taken.
struct SamplerOptions {
  float temperature = 0.8F;
  std::int32_t top_k = 40;  ///< 0: off
  float top_p = 0.95F;      ///< 1: off
  float min_p = 0.05F;      ///< 0: off
  float typical_p = 1.0F;   ///< 1: off
  std::uint64_t seed = 0;
  float repeat_penalty = 1.0F;     ///< 1: off
  float frequency_penalty = 0.0F;  ///< 0: off
  float presence_penalty = 0.0F;   ///< 0: off
  std::int32_t repeat_last_n = 64;
  float dry_multiplier = 0.0F;  ///< 0: off
  float dry_base = 1.75F;
  std::int32_t dry_allowed_length = 2;
  std::int32_t dry_last_n = -1;
  std::vector<TokenId> dry_breakers{};
  std::vector<std::pair<TokenId, float>> logit_bias{};  ///< added to logits; minus infinity forbids a token
};
/// @throws UsageError naming a value that is out of range.
[[nodiscard]] SKALD_API SamplerChain make_sampler(const SamplerOptions& options = {});

}  // namespace skald::inline v0
