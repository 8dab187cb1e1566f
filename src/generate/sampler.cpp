#include <skald/generate/sampler.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/random.hpp>
#include <skald/decoder/session.hpp>

namespace skald::inline v0 {

namespace {

std::span<const TokenId> recent(std::span<const TokenId> history, std::int32_t last_n) {
  if (last_n < 0) return history;
  return history.last(std::min(history.size(), static_cast<std::size_t>(last_n)));
}

}  // namespace

void Temperature::apply(Candidates& candidates, const SamplingContext&) const {
  if (value == 1.0F) return;
  const float factor = 1.0F / value;
  for (auto& candidate : candidates.mutable_list()) candidate.logit *= factor;
}

void TopK::apply(Candidates& candidates, const SamplingContext&) const {
  if (k > 0 && static_cast<std::size_t>(k) < candidates.size()) candidates.keep_top(static_cast<std::size_t>(k));
}

void TopP::apply(Candidates& candidates, const SamplingContext&) const {
  if (p >= 1.0F) return;
  candidates.sort();
  const auto probabilities = candidates.probabilities();
  double sum = 0.0;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    sum += probabilities[i];
    if (sum >= static_cast<double>(p)) return candidates.keep_first(i + 1);
  }
}

void MinP::apply(Candidates& candidates, const SamplingContext&) const {
  if (p > 0.0F) candidates.keep_above(candidates.max_logit() + std::log(p));
}

void Typical::apply(Candidates& candidates, const SamplingContext&) const {
  if (p >= 1.0F) return;
  const auto probabilities = candidates.probabilities();
  double entropy = 0.0;
  for (const float q : probabilities)
    if (q > 0.0F) entropy -= static_cast<double>(q) * std::log(static_cast<double>(q));
  struct Entry {
    double distance;
    std::size_t index;
  };
  auto entries = candidates.workspace<Entry>(probabilities.size());
  std::size_t possible = 0;
  for (std::size_t i = 0; i < probabilities.size(); ++i)
    if (probabilities[i] > 0.0F)
      entries[possible++] = {std::abs(-std::log(static_cast<double>(probabilities[i])) - entropy), i};
  entries = entries.first(possible);
  std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
    return a.distance < b.distance || (a.distance == b.distance && a.index < b.index);
  });
  std::size_t kept = 0;
  for (double sum = 0.0; kept < possible && sum < static_cast<double>(p);) sum += probabilities[entries[kept++].index];
  constexpr float dropped = -std::numeric_limits<float>::infinity();
  const auto list = candidates.mutable_list();
  for (const auto& entry : entries.subspan(kept)) list[entry.index].logit = dropped;
  for (std::size_t i = 0; i < list.size(); ++i)
    if (!(probabilities[i] > 0.0F)) list[i].logit = dropped;
  candidates.keep_above(std::numeric_limits<float>::lowest());
}

void Penalties::apply(Candidates& candidates, const SamplingContext& context) const {
  if (repeat == 1.0F && frequency == 0.0F && presence == 0.0F) return;
  const auto history = recent(context.history, last_n);
  auto tokens = candidates.workspace<TokenId>(history.size());
  const auto end_of_tokens =
      std::copy_if(history.begin(), history.end(), tokens.begin(), [](TokenId token) { return token >= 0; });
  tokens = tokens.first(static_cast<std::size_t>(end_of_tokens - tokens.begin()));
  std::sort(tokens.begin(), tokens.end());
  for (std::size_t i = 0; i < tokens.size();) {
    std::size_t end = i;
    while (end < tokens.size() && tokens[end] == tokens[i]) ++end;
    const float logit = candidates.logit(tokens[i]);
    if (std::isfinite(logit)) {
      const float scaled = logit > 0.0F ? logit / repeat : logit * repeat;
      candidates.add(tokens[i], scaled - logit - static_cast<float>(end - i) * frequency - presence);
    }
    i = end;
  }
}

void Dry::apply(Candidates& candidates, const SamplingContext& context) const {
  if (multiplier == 0.0F) return;
  const auto tokens = recent(context.history, last_n);
  const auto count = tokens.size();
  if (count < 2) return;
  const auto breaks = [&](TokenId token) {
    return token < 0 || std::binary_search(breakers.begin(), breakers.end(), token);
  };
  // Z-function of the reversed history: z[i] = length of the longest suffix that also ends at count - 1 - i.
  struct Repetition {
    TokenId token;       // would continue it
    std::size_t length;  // at first z
  };
  auto longest = candidates.workspace<Repetition>(count);
  for (auto& each : longest) each = {-1, 0};
  const auto at = [&](std::size_t i) { return tokens[count - 1 - i]; };
  std::size_t usable = 0;  // a repetition may not contain a breaker
  while (usable < count && !breaks(at(usable))) ++usable;
  for (std::size_t i = 1, left = 0, right = 0; i < count; ++i) {
    std::size_t z = i < right ? std::min(right - i, longest[i - left].length) : 0;
    while (i + z < count && at(z) == at(i + z)) ++z;
    longest[i].length = z;
    if (i + z > right) {
      left = i;
      right = i + z;
    }
  }
  std::size_t found = 0;  // always behind i: found ones replace values of z that were read
  for (std::size_t i = 1; i < count; ++i) {
    const auto length = std::min(longest[i].length, usable);
    if (length < static_cast<std::size_t>(std::max(1, allowed_length))) continue;
    longest[found++] = {at(i - 1), length};
  }
  longest = longest.first(found);
  std::sort(longest.begin(), longest.end(), [](const Repetition& a, const Repetition& b) {
    return a.token < b.token || (a.token == b.token && a.length < b.length);
  });
  for (std::size_t i = 0; i < longest.size(); ++i) {
    if (i + 1 < longest.size() && longest[i + 1].token == longest[i].token) continue;  // the longest comes last
    if (breaks(longest[i].token)) continue;
    const auto excess = static_cast<double>(longest[i].length) - static_cast<double>(allowed_length);
    const double penalty = static_cast<double>(multiplier) * std::pow(static_cast<double>(base), std::min(excess, 200.0));
    candidates.add(longest[i].token, -static_cast<float>(std::min(penalty, 1e30)));
  }
}

void LogitBias::apply(Candidates& candidates, const SamplingContext&) const {
  for (const auto& [token, value] : bias) candidates.add(token, value);
}

TokenId SamplerChain::sample(std::span<const float> logits, SamplingContext context) {
  context.seed = seed_;
  candidates_.assign(logits);
  for (const auto& sampler : samplers_) sampler.apply(candidates_, context);
  const auto list = candidates_.list();
  if (list.empty() || !std::isfinite(candidates_.max_logit()))
    throw NumericError("generate.sampler", "no token has a finite logit after " + describe());
  if (greedy_) {
    const auto best = std::min_element(list.begin(), list.end(), [](const Candidate& a, const Candidate& b) {
      return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
    });
    return best->token;
  }
  const auto probabilities = candidates_.probabilities();
  CounterRandom random(context.seed, context.stream, context.position);
  const double total = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  const double target = random.uniform() * total;
  double sum = 0.0;
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    if (probabilities[i] <= 0.0F) continue;
    chosen = i;
    sum += probabilities[i];
    if (target < sum) break;
  }
  return list[chosen].token;
}

TokenId SamplerChain::sample(std::span<const float> logits, const Session& session) {
  return sample(logits, {.history = session.tokens(), .seed = seed_, .stream = session.random_stream(),
                         .position = static_cast<std::uint64_t>(session.length())});
}

std::string SamplerChain::describe() const {
  std::string text;
  for (const auto& sampler : samplers_) text += sampler.name() + ",";
  return text + (greedy_ ? "greedy" : "random");
}

SamplerChain make_sampler(const SamplerOptions& options) {
  const auto check = [](bool ok, const char* name, double value, const char* allowed) {
    if (!ok)
      throw UsageError("generate.sampler",
                       fmt::format("{} is {:.6g}, allowed is {}", name, value, allowed));
  };
  const auto finite = [](float value) { return std::isfinite(value); };
  check(finite(options.temperature) && options.temperature >= 0.0F, "temperature", options.temperature, "0 or more");
  check(options.top_k >= 0, "top_k", options.top_k, "0 (off) or more");
  check(options.top_p > 0.0F && options.top_p <= 1.0F, "top_p", options.top_p, "above 0 up to 1 (off)");
  check(options.min_p >= 0.0F && options.min_p <= 1.0F, "min_p", options.min_p, "0 (off) to 1");
  check(options.typical_p > 0.0F && options.typical_p <= 1.0F, "typical_p", options.typical_p, "above 0 up to 1 (off)");
  check(finite(options.repeat_penalty) && options.repeat_penalty > 0.0F, "repeat_penalty", options.repeat_penalty,
        "above 0, 1 is off");
  check(finite(options.frequency_penalty), "frequency_penalty", options.frequency_penalty, "finite");
  check(finite(options.presence_penalty), "presence_penalty", options.presence_penalty, "finite");
  check(options.repeat_last_n >= -1, "repeat_last_n", options.repeat_last_n, "-1 (all) or more");
  check(finite(options.dry_multiplier) && options.dry_multiplier >= 0.0F, "dry_multiplier", options.dry_multiplier,
        "0 (off) or more");
  check(finite(options.dry_base) && options.dry_base >= 1.0F, "dry_base", options.dry_base, "1 or more");
  check(options.dry_allowed_length >= 1, "dry_allowed_length", options.dry_allowed_length, "1 or more");
  check(options.dry_last_n >= -1, "dry_last_n", options.dry_last_n, "-1 (all) or more");
  for (const auto& [token, bias] : options.logit_bias) {
    check(token >= 0, "a token of logit_bias", token, "0 or more");
    check(bias < std::numeric_limits<float>::infinity(), "a logit_bias", bias, "a finite number, or minus infinity");
  }

  SamplerChain chain;
  chain.seed(options.seed);
  if (!options.logit_bias.empty()) chain.add(LogitBias{options.logit_bias});
  if (options.repeat_penalty != 1.0F || options.frequency_penalty != 0.0F || options.presence_penalty != 0.0F)
    chain.add(Penalties{options.repeat_last_n, options.repeat_penalty, options.frequency_penalty,
                        options.presence_penalty});
  if (options.dry_multiplier > 0.0F) {
    Dry dry{options.dry_multiplier, options.dry_base, options.dry_allowed_length, options.dry_last_n,
            options.dry_breakers};
    std::sort(dry.breakers.begin(), dry.breakers.end());
    chain.add(std::move(dry));
  }
  if (options.temperature == 0.0F) return chain.greedy();
  if (options.top_k > 0) chain.add(TopK{options.top_k});
  if (options.typical_p < 1.0F) chain.add(Typical{options.typical_p});
  if (options.top_p < 1.0F) chain.add(TopP{options.top_p});
  if (options.min_p > 0.0F) chain.add(MinP{options.min_p});
  if (options.temperature != 1.0F) chain.add(Temperature{options.temperature});
  return chain;
}

}  // namespace skald::inline v0
