#include <skald/generate/generate.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>

#include <skald/decoder/decoder.hpp>
#include <skald/text/detokenizer.hpp>

namespace skald::inline v0 {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Holds text back while it may be the beginning of a stop string.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
    std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
  }
  [[nodiscard]] bool stopped() const noexcept { return stopped_; }

  /// Text that is certain not to belong to a stop string.
  std::string push(std::string_view text) {
    held_ += text;
    std::size_t first = std::string::npos;
    for (const auto& stop : stops_) first = std::min(first, held_.find(stop));
    if (first != std::string::npos) {
      stopped_ = true;
      return release(first);
    }
    std::size_t keep = 0;  // longest end of the text that begins a stop string
    for (const auto& stop : stops_)
      for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
        if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) {
          keep = n;
          break;
        }
    std::size_t length = held_.size() - keep;
    // Never cut inside a code point: stop strings are text, but may begin anywhere.
    while (length > 0 && length < held_.size() && (static_cast<unsigned char>(held_[length]) & 0xC0) == 0x80) --length;
    return release(length);
  }
  std::string finish() { return stopped_ ? std::string{} : release(held_.size()); }

 private:
  std::string release(std::size_t length) {
    std::string out = held_.substr(0, length);
    held_.erase(0, length);
    return out;
  }
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace

std::string_view to_string(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::running: return "running";
    case FinishReason::end_of_generation: return "end_of_generation";
    case FinishReason::stop_string: return "stop_string";
    case FinishReason::length: return "length";
    case FinishReason::context: return "context";
    case FinishReason::cancelled: return "cancelled";
  }
  return "unknown";
}

struct Generation::Impl {
  Impl(Session& s, std::vector<TokenId> p, GenerateOptions o)
      : session(&s), prompt(std::move(p)), options(std::move(o)),
        chain(options.chain ? *options.chain : make_sampler(options.sampler)), stops(options.stop) {
    if (options.max_tokens < -1)
      throw UsageError("generate", "max_tokens is " + std::to_string(options.max_tokens) + ", -1 or more is allowed");
    if (options.logprobs < 0 || options.logprobs > 1024)
      throw UsageError("generate", "logprobs is " + std::to_string(options.logprobs) + ", 0 to 1024 is allowed");
    if (prompt.empty())
      throw UsageError("generate", "the prompt has no tokens: give at least one, or a vocabulary that adds BOS");
    if (session->model().has_tokenizer()) {
      tokenizer.emplace(session->model().tokenizer());
      detokenizer.emplace(*tokenizer);
      // The text continues the prompt: the detokenizer must know what came before.
      for (const TokenId token : session->tokens())
        if (token >= 0) (void)detokenizer->push(token);
      if (!has_encoder())
        for (const TokenId token : prompt) (void)detokenizer->push(token);
    }
    if (has_encoder()) (void)answer_start();
  }

  [[nodiscard]] bool has_encoder() const noexcept { return session->model().spec().has_encoder(); }

  /// What the answer to an encoded prompt begins with.
  [[nodiscard]] TokenId answer_start() const {
    TokenId start = session->model().spec().decoder_start;
    if (start < 0 && tokenizer) start = tokenizer->bos();
    if (start < 0)
      throw UsageError("generate", "the model has an encoder, but no token that its answers begin with; use "
                                   "Session::encode and Session::forward");
    return start;
  }

  void start() {
    begin = Clock::now();
    if (has_encoder()) {
      try {
        session->encode(prompt, options.stop_token);
      } catch (const CancelledError&) {
        return end(FinishReason::cancelled);
      }
      const TokenId first_token = answer_start();
      step({&first_token, 1});
    } else {
      // Policies that treat what is generated in another way learn where that begins, unless the host has told them.
      if (session->state().prompt_length() == 0)
        session->set_prompt_length(session->length() + static_cast<std::int64_t>(prompt.size()));
      step(prompt);
    }
    if (reason == FinishReason::running) timing.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  }

  void next() {
    if (reason != FinishReason::running) {
      finished = true;
      return;
    }
    const TokenId last = tokens.back();
    step({&last, 1});
  }

  /// Runs tokens, chooses the next one, fills the piece.
  void step(std::span<const TokenId> input) {
    piece = {};
    if (session->length() + static_cast<std::int64_t>(input.size()) > session->context() && !tokens.empty())
      return end(FinishReason::context);
    Logits logits;
    try {
      logits = session->forward(input, LogitsWanted::last, options.stop_token,
                                tokens.empty() ? options.progress : ProgressCallback{});
      throw_if_stopped(options.stop_token, "generate");
    } catch (const CancelledError&) {
      return end(FinishReason::cancelled);
    }
    if (tokens.empty()) timing.prompt_seconds = seconds_since(begin);
    if (tokens.empty() && options.after_prompt) options.after_prompt(*session);
    if (options.max_tokens == 0) return end(FinishReason::length);
    choose(logits.last());
    if (tokens.size() == 1) {
      timing.first_token_seconds = seconds_since(begin);
      first = Clock::now();
    }
    timing.generated_tokens = static_cast<std::int64_t>(tokens.size());
    timing.decode_seconds = seconds_since(first);
    const TokenId token = tokens.back();
    if (!options.ignore_eos && tokenizer && tokenizer->is_end_of_generation(token)) return end(FinishReason::end_of_generation);
    if (detokenizer) piece.text = stops.push(detokenizer->push(token));
    if (stops.stopped()) {
      reason = FinishReason::stop_string;
    } else if (options.max_tokens >= 0 && timing.generated_tokens >= options.max_tokens) {
      reason = FinishReason::length;
    }
    if (reason == FinishReason::length && detokenizer) piece.text += stops.push(detokenizer->finish()) + stops.finish();
    text += piece.text;
  }

  void choose(std::span<const float> logits) {
    const float most = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const float value : logits) sum += std::exp(static_cast<double>(value - most));
    const auto log_sum = static_cast<float>(std::log(sum)) + most;
    std::span<const float> allowed = logits;
    if (options.ignore_eos && tokenizer) {
      masked.assign(logits.begin(), logits.end());
      for (const TokenId token : tokenizer->end_of_generation())
        masked[static_cast<std::size_t>(token)] = -std::numeric_limits<float>::infinity();
      allowed = masked;
    }
    tokens.push_back(chain.sample(allowed, *session));
    piece.token = tokens.back();
    piece.logprob = logits[static_cast<std::size_t>(piece.token)] - log_sum;
    if (options.logprobs == 0) return;
    ranking.assign(logits);
    ranking.keep_top(static_cast<std::size_t>(options.logprobs));
    for (const auto& candidate : ranking.list()) piece.top.push_back({candidate.token, candidate.logit - log_sum});
  }

  /// Ends without a further token of text: what was held back comes as a last piece.
  void end(FinishReason why) {
    reason = why;
    if (detokenizer && why != FinishReason::cancelled) piece.text = stops.push(detokenizer->finish()) + stops.finish();
    text += piece.text;
    if (piece.text.empty() && piece.token < 0) finished = true;
  }

  Session* session;
  std::vector<TokenId> prompt;
  GenerateOptions options;
  SamplerChain chain;
  StopMatcher stops;
  std::optional<Tokenizer> tokenizer;
  std::optional<StreamingDetokenizer> detokenizer;
  std::vector<TokenId> tokens;
  std::vector<float> masked;
  Candidates ranking;
  std::string text;
  Piece piece;
  Timing timing;
  Clock::time_point begin{};
  Clock::time_point first{};
  FinishReason reason = FinishReason::running;
  bool started = false;
  bool finished = false;
};

Generation::Generation(Session& session, std::vector<TokenId> prompt, GenerateOptions options)
    : impl_(std::make_unique<Impl>(session, std::move(prompt), std::move(options))) {}
Generation::Generation(Generation&&) noexcept = default;
Generation& Generation::operator=(Generation&&) noexcept = default;
Generation::~Generation() = default;

Generation::Iterator Generation::begin() {
  if (impl_->started) throw UsageError("generate", "a generation can be walked only once");
  impl_->started = true;
  impl_->start();
  return Iterator(this);
}

std::string Generation::collect() {
  for (auto it = begin(); it != end(); ++it) {
  }
  return impl_->text;
}

FinishReason Generation::finish_reason() const noexcept { return impl_->reason; }
Timing Generation::timing() const noexcept { return impl_->timing; }
const std::string& Generation::text() const noexcept { return impl_->text; }
std::span<const TokenId> Generation::tokens() const noexcept { return impl_->tokens; }
const Piece& Generation::piece() const noexcept { return impl_->piece; }
bool Generation::done() const noexcept { return impl_->finished; }
void Generation::advance() { impl_->next(); }

Generation generate(Session& session, std::string_view prompt, GenerateOptions options) {
  const auto& tokenizer = session.model().tokenizer();
  EncodeOptions encode{.add_special = options.add_special && session.length() == 0,
                       .parse_special = options.parse_special};
  auto tokens = tokenizer.encode(prompt, encode);
  if (encode.add_special && !session.model().spec().has_encoder() && tokenizer.adds_eos() && !tokens.empty() && tokens.back() == tokenizer.eos())
    tokens.pop_back();  // an end token would end the text that is to be continued
  return {session, std::move(tokens), std::move(options)};
}

Generation generate(Session& session, std::span<const TokenId> prompt, GenerateOptions options) {
  return {session, {prompt.begin(), prompt.end()}, std::move(options)};
}

}  // namespace skald::inline v0
