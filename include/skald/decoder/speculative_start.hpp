#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include <skald/decoder/prefix_cache.hpp>

namespace skald::inline v0 {

/// A prompt as far as a search has found its documents.
struct ProvisionalPrompt {
  std::vector<TokenId> tokens{};
  bool final = false;  ///< the search has ended: this is the prompt
};

/// Asks a search for the prompt as it is now. `idle`: all of the last answer is computed, so the call may as well wait
/// for news.
using PromptSource = std::function<ProvisionalPrompt(bool idle)>;

/// Options of start_speculatively.
struct SpeculativeStartOptions {
  std::int64_t chunk_tokens = 64;  ///< tokens between two questions to the search
  std::string scope{};
  bool remember = true;  ///< wrong guesses go into the cache too: their documents may come again
  std::stop_token stop{};
};

/// What start_speculatively did.
struct SpeculativeStartReport {
  std::int64_t reused = 0;        ///< tokens that the cache knew
  std::int64_t before_final = 0;  ///< tokens computed while the search ran
  std::int64_t after_final = 0;   ///< tokens computed when it had ended
  std::int64_t wasted = 0;        ///< tokens computed for guesses that turned out wrong
  std::int64_t changes = 0;       ///< times that the guess changed
};

/// Begins to compute a prompt while the search for its documents still runs, on what the search has found so far
/// (RAGCache, Jin et al. 2024, arXiv 2404.12457). When the guess changes, what both have in common is kept. The session
/// holds the final prompt without its last token, which the caller forwards: bit for bit as if it had been given after
/// the search.
/// @throws UsageError for an empty final prompt, and what the search, Session::forward and PrefixCache throw.
SKALD_API Session start_speculatively(PrefixCache& cache, const PromptSource& source,
                                      const SpeculativeStartOptions& options = {},
                                      SpeculativeStartReport* report = nullptr);

}  // namespace skald::inline v0
