#pragma once

#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <skald/core/progress.hpp>
#include <skald/decoder/session.hpp>
#include <skald/generate/sampler.hpp>
#include <skald/text/tokenizer.hpp>

namespace skald::inline v0 {

/// Options of generate().
struct GenerateOptions {
  std::int64_t max_tokens = 256;  ///< most tokens to generate; -1: until the model ends or the session is full
  SamplerOptions sampler{};
  std::optional<SamplerChain> chain{};  ///< if set, used instead of `sampler`
  std::vector<std::string> stop{};      ///< texts that end generation; they and what follows are not emitted
  std::int32_t logprobs = 0;            ///< most probable tokens reported with each piece; 0: only the chosen one
  bool ignore_eos = false;              ///< goes on after end-of-generation tokens (they are forbidden)
  bool add_special = true;     ///< BOS before a prompt that begins a session, as the vocabulary asks
  bool parse_special = false;  ///< text of the prompt that spells control tokens becomes them
  std::stop_token stop_token{};
  ProgressCallback progress{};  ///< of the prompt, in tokens
  /// Called when the prompt is in memory, before the first token is chosen: to fork the session there, say.
  std::function<void(const Session&)> after_prompt{};
};

/// Log-probability (natural) of a token under the model, before any sampler.
struct TokenLogprob {
  TokenId token = -1;
  float logprob = 0.0F;
};

/// What one step adds.
struct Piece {
  std::string text{};             ///< whole UTF-8 code points; may be empty while bytes or stop strings are pending
  TokenId token = -1;             ///< token chosen; -1 for the rest of the text after the last token
  float logprob = 0.0F;           ///< of the token
  std::vector<TokenLogprob> top{};  ///< the most probable tokens, if asked for
};

enum class FinishReason : std::uint8_t {
  running,
  end_of_generation,  ///< the model ended
  stop_string,        ///< one of GenerateOptions::stop
  length,             ///< max_tokens
  context,            ///< the session is full
  cancelled,          ///< the stop token
};
[[nodiscard]] SKALD_API std::string_view to_string(FinishReason reason) noexcept;

/// Times of one generation, from a monotonic clock.
struct Timing {
  std::int64_t prompt_tokens = 0;     ///< tokens of the prompt that were computed
  std::int64_t generated_tokens = 0;  ///< tokens chosen
  double prompt_seconds = 0.0;        ///< forward passes of the prompt
  double first_token_seconds = 0.0;   ///< TTFT: from the start until the first token was chosen
  double decode_seconds = 0.0;        ///< from the first token to the last
  /// Generated tokens after the first per second between first and last.
  [[nodiscard]] double tokens_per_second() const noexcept {
    return decode_seconds > 0.0 && generated_tokens > 1 ? static_cast<double>(generated_tokens - 1) / decode_seconds : 0.0;
  }
  [[nodiscard]] double prompt_tokens_per_second() const noexcept {
    return prompt_seconds > 0.0 ? static_cast<double>(prompt_tokens) / prompt_seconds : 0.0;
  }
};

/// An input range of pieces: `begin()` runs the prompt, each `++` one step. The session must outlive it. Pieces of one
/// generation follow each other; a range can be walked once. Errors of the decoder come out of begin() and ++; after
/// CancelledError inside, the range ends with FinishReason::cancelled and the session is at its last committed step.
class SKALD_API Generation {
 public:
  Generation(Session& session, std::vector<TokenId> prompt, GenerateOptions options);
  Generation(Generation&&) noexcept;
  Generation& operator=(Generation&&) noexcept;
  ~Generation();

  class Iterator {
   public:
    using iterator_concept = std::input_iterator_tag;
    using iterator_category = std::input_iterator_tag;
    using value_type = Piece;
    using difference_type = std::ptrdiff_t;
    using pointer = const Piece*;
    using reference = const Piece&;
    explicit Iterator(Generation* owner = nullptr) noexcept : owner_(owner) {}
    [[nodiscard]] const Piece& operator*() const noexcept { return owner_->piece(); }
    [[nodiscard]] const Piece* operator->() const noexcept { return &owner_->piece(); }
    Iterator& operator++() {
      owner_->advance();
      return *this;
    }
    void operator++(int) { owner_->advance(); }
    [[nodiscard]] bool operator==(std::default_sentinel_t) const noexcept { return owner_->done(); }

   private:
    Generation* owner_;
  };
  [[nodiscard]] Iterator begin();
  [[nodiscard]] std::default_sentinel_t end() const noexcept { return {}; }

  /// Walks to the end and returns the whole text.
  std::string collect();
  [[nodiscard]] FinishReason finish_reason() const noexcept;
  [[nodiscard]] Timing timing() const noexcept;
  /// Text emitted so far.
  [[nodiscard]] const std::string& text() const noexcept;
  /// Tokens chosen so far. The last one is not yet part of the session.
  [[nodiscard]] std::span<const TokenId> tokens() const noexcept;

 private:
  [[nodiscard]] const Piece& piece() const noexcept;
  [[nodiscard]] bool done() const noexcept;
  void advance();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Continues a session with a prompt and generates. @throws UsageError for options out of range or a prompt
/// without tokens.
[[nodiscard]] SKALD_API Generation generate(Session& session, std::string_view prompt, GenerateOptions options = {});
/// The same with tokens.
[[nodiscard]] SKALD_API Generation generate(Session& session, std::span<const TokenId> prompt,
                                            GenerateOptions options = {});

}  // namespace skald::inline v0
