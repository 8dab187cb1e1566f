#include "text/pre_tokenizer.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include <skald/core/error.hpp>

#include "text/pre_tokenizer_table.hpp"
#include "text/regex.hpp"
#include "text/utf8.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::string_view where = "text.pre_tokenizer";

using Ends = std::vector<std::uint32_t>;

// First match at or after `start`; an empty range at the end of the text if there is none.
std::pair<std::size_t, std::size_t> find(const Regex& regex, Regex::Matcher& matcher, std::string_view text,
                                         std::size_t start) {
  return regex.find(text, start, matcher).value_or(std::pair(text.size(), text.size()));
}

// Matches and the gaps between them become words.
void split_by_matches(const Regex& regex, Regex::Matcher& matcher, std::string_view text, std::uint32_t base,
                      Ends& ends) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto [begin, end] = find(regex, matcher, text, at);
    if (begin > at) ends.push_back(base + static_cast<std::uint32_t>(begin));
    if (begin == text.size()) return;
    // No expression of the table matches the empty string; if one did, this keeps the loop going.
    const std::size_t next = std::max(end, begin + utf8_step(text.substr(begin)).size);
    ends.push_back(base + static_cast<std::uint32_t>(next));
    at = next;
  }
}

// Groups of three numbers counted from the right of a run. Only the ends of groups are borders: what stands before a
// run stays with its first group, and the steps after this one part them.
void split_number_groups(const Regex& numbers, Regex::Matcher& matcher, std::string_view text, std::uint32_t base,
                         Ends& ends) {
  std::size_t at = 0;
  std::size_t last = 0;
  while (at < text.size()) {
    const auto [begin, end] = find(numbers, matcher, text, at);
    std::size_t count = 0;
    for (std::size_t i = begin; i < end; i += utf8_step(text.substr(i)).size) ++count;
    for (std::size_t i = begin; i < end;) {
      i += utf8_step(text.substr(i)).size;
      if (--count % 3 == 0) ends.push_back(base + static_cast<std::uint32_t>(last = i));
    }
    at = std::max(end, at + 1);
  }
  if (last < text.size()) ends.push_back(base + static_cast<std::uint32_t>(text.size()));
}

// A border before every ASCII digit that has a multiple of three digits from it to the end of its run:
// (?=(\d{3})+(?!\d)) without the quadratic look-ahead.
void split_thousands(std::string_view text, std::uint32_t base, Ends& ends) {
  const auto is_digit = [&](std::size_t i) { return text[i] >= '0' && text[i] <= '9'; };
  for (std::size_t i = 0; i < text.size();) {
    std::size_t end = i;
    while (end < text.size() && is_digit(end)) ++end;
    for (; i < end; ++i) {
      if ((end - i) % 3 == 0 && i > 0) ends.push_back(base + static_cast<std::uint32_t>(i));
    }
    if (i < text.size()) ++i;
  }
  if (!text.empty()) ends.push_back(base + static_cast<std::uint32_t>(text.size()));
}

}  // namespace

struct PreTokenizer::Step {
  SplitKind kind;
  std::optional<Regex> regex;
};

PreTokenizer::PreTokenizer(std::string_view name) {
  const PreTokenizerEntry* entry = find_pre_tokenizer(name.empty() ? "default" : name);
  if (entry == nullptr) {
    throw UnsupportedError(where,
                           "pre-tokenizer '" + printable(name) + "' is not known; known are: " + pre_tokenizer_names(),
                           {.key = "tokenizer.ggml.pre"});
  }
  traits_ = entry->traits;
  for (const SplitStep& step : pre_tokenizer_steps(entry->behaviour)) {
    steps_.push_back({step.kind, step.pattern.empty() ? std::nullopt : std::optional<Regex>(step.pattern)});
  }
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

void PreTokenizer::split(std::string_view text, Ends& ends) const {
  ends.clear();
  if (text.empty()) return;
  // The expressions backtrack at most once over what they matched, so work is linear; the limits are a net.
  Regex::Matcher matcher(text.size());
  ends.push_back(static_cast<std::uint32_t>(text.size()));
  Ends next;
  for (const Step& step : steps_) {
    next.clear();
    std::uint32_t begin = 0;
    for (const std::uint32_t end : ends) {
      const std::string_view word = text.substr(begin, end - begin);
      // One code point cannot be split further.
      if (utf8_step(word).size == word.size()) {
        next.push_back(end);
      } else if (step.kind == SplitKind::matches) {
        split_by_matches(*step.regex, matcher, word, begin, next);
      } else if (step.kind == SplitKind::number_groups) {
        split_number_groups(*step.regex, matcher, word, begin, next);
      } else {
        split_thousands(word, begin, next);
      }
      begin = end;
    }
    ends.swap(next);
  }
}

}  // namespace skald::inline v0::detail
