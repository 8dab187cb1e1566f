#pragma once

#include <span>
#include <string>
#include <string_view>

#include "text/pre_tokenizer.hpp"

namespace skald::inline v0::detail {

/// How one step splits the words that the step before it left.
enum class SplitKind {
  matches,        ///< at the borders of all matches of a regular expression
  number_groups,  ///< after every group of three numbers, counted from the right of each match
  thousands,      ///< before every group of three ASCII digits, counted from the right of a run
};

/// One step. In patterns \s and \S mean the Unicode property White_Space.
struct SplitStep {
  SplitKind kind;
  std::string_view pattern;
};

/// The distinct ways of splitting; many names share one.
enum class SplitBehaviour {
  fallback,
  gpt2,
  llama3,
  qwen2,
  starcoder,
  falcon,
  deepseek_llm,
  deepseek_coder,
  deepseek_v3,
  bloom,
  viking,
  tekken,
  gpt4o,
  chameleon,
  superbpe,
  bailingmoe,
  seed_coder,
  kimi_k2,
  afmoe,
};

struct PreTokenizerEntry {
  std::string_view name;
  SplitBehaviour behaviour;
  PreTokenizerTraits traits;
};

/// The entry of that name, or null.
[[nodiscard]] const PreTokenizerEntry* find_pre_tokenizer(std::string_view name) noexcept;
/// All names, separated by ", ".
[[nodiscard]] std::string pre_tokenizer_names();
[[nodiscard]] std::span<const SplitStep> pre_tokenizer_steps(SplitBehaviour behaviour) noexcept;

}  // namespace skald::inline v0::detail
