#include <skald/decoder/speculative_start.hpp>

#include <algorithm>

namespace skald::inline v0 {

namespace {

/// What computing without the last token would hold.
std::span<const TokenId> wanted(const std::vector<TokenId>& prompt) {
  return std::span(prompt).first(prompt.empty() ? 0 : prompt.size() - 1);
}

std::int64_t common(std::span<const TokenId> a, std::span<const TokenId> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

Session start_speculatively(PrefixCache& cache, const PromptSource& source, const SpeculativeStartOptions& options,
                            SpeculativeStartReport* report) {
  if (options.chunk_tokens < 1)
    throw UsageError("decoder.speculative_start", "chunk_tokens is " + std::to_string(options.chunk_tokens));
  SpeculativeStartReport counted;
  auto prompt = source(false);
  auto session = cache.new_session(prompt.tokens, options.scope);
  counted.reused = session.length();
  std::int64_t computed_from = session.length();  // tokens from here on were computed here
  while (true) {
    const auto goal = wanted(prompt.tokens);
    const auto length = static_cast<std::size_t>(session.length());
    if (length < goal.size()) {
      const auto count = std::min(goal.size() - length, static_cast<std::size_t>(options.chunk_tokens));
      (void)session.forward(goal.subspan(length, count), LogitsWanted::none, options.stop);
      (prompt.final ? counted.after_final : counted.before_final) += static_cast<std::int64_t>(count);
    } else if (prompt.final) {
      break;
    }
    if (prompt.final) continue;
    throw_if_stopped(options.stop, "decoder.speculative_start");
    auto next = source(static_cast<std::size_t>(session.length()) >= goal.size());
    if (next.tokens != prompt.tokens) {
      ++counted.changes;
      const auto keep = common(session.tokens(), wanted(next.tokens));
      if (keep < session.length()) {
        counted.wasted += session.length() - std::max(keep, computed_from);
        if (options.remember) (void)cache.insert(session, options.scope);
        // The cache may know more of the new prompt than the guess has in common with it.
        if (cache.match(next.tokens, options.scope) > keep || !session.can_truncate(keep)) {
          session = cache.new_session(next.tokens, options.scope);
          computed_from = session.length();
        } else {
          session.truncate(keep);
          computed_from = std::min(computed_from, keep);
        }
      }
    }
    prompt = std::move(next);
  }
  if (prompt.tokens.empty()) throw UsageError("decoder.speculative_start", "the final prompt is empty");
  if (report != nullptr) *report = counted;
  return session;
}

}  // namespace skald::inline v0
