#include "text/pre_tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <span>
#include <string>
#include <utility>

#include <skald/core/error.hpp>

#include "text/pre_tokenizer_table.hpp"
#include "text/utf8.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::string_view where = "text.pre_tokenizer";

// White space is spelled out, because what \s means differs between regex engines and their versions
// (U+180E, U+0085). These are the code points with the property White_Space.
constexpr std::string_view white_space =
    R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

std::string expand_white_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out.append(in_class ? "" : "[").append(white_space).append(in_class ? "" : "]");
      } else if (escaped == 'S') {
        out.append("[^").append(white_space).append("]");
      } else {
        out.append({c, escaped});
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

struct FreeCode {
  void operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const noexcept { pcre2_match_context_free(context); }
};
using Code = std::unique_ptr<pcre2_code, FreeCode>;

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

Code compile(std::string_view pattern) {
  const std::string expanded = expand_white_space(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expanded.data()), expanded.size(),
                          PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
  if (!code) {
    throw UnsupportedError(where, "PCRE2 refuses the expression '" + expanded + "': " + pcre2_message(error));
  }
  // Just-in-time compilation is a matter of speed only; where the host forbids it, the interpreter runs.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

// Match data and limits of one call, so that a compiled expression can be shared between threads.
class Matcher {
 public:
  explicit Matcher(std::size_t text_size)
      : data_(pcre2_match_data_create(1, nullptr)), context_(pcre2_match_context_create(nullptr)) {
    if (!data_ || !context_) throw OutOfMemoryError(where, "no memory for PCRE2 match data");
    // The expressions backtrack at most once over what they matched, so work is linear; the limits are a net.
    const auto limit = static_cast<std::uint32_t>(std::min<std::size_t>(10'000'000 + 8 * text_size, 0xffff'ffff));
    pcre2_set_match_limit(context_.get(), limit);
    pcre2_set_depth_limit(context_.get(), 100'000);
    pcre2_set_heap_limit(context_.get(), 64 * 1024);
  }

  // First match in `text` at or after `start`; an empty range at the end of the text if there is none.
  std::pair<std::size_t, std::size_t> find(const pcre2_code* code, std::string_view text, std::size_t start) {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int found = pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, data_.get(), context_.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data_.get(),
                          context_.get());
    }
    if (found == PCRE2_ERROR_NOMATCH) return {text.size(), text.size()};
    if (found < 0) throw OutOfMemoryError(where, "PCRE2 gave up: " + pcre2_message(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data_.get());
    return {range[0], range[1]};
  }

 private:
  std::unique_ptr<pcre2_match_data, FreeMatch> data_;
  std::unique_ptr<pcre2_match_context, FreeContext> context_;
};

using Ends = std::vector<std::uint32_t>;

// Matches and the gaps between them become words.
void split_by_matches(const pcre2_code* code, Matcher& matcher, std::string_view text, std::uint32_t base, Ends& ends) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto [begin, end] = matcher.find(code, text, at);
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
void split_number_groups(const pcre2_code* numbers, Matcher& matcher, std::string_view text, std::uint32_t base,
                         Ends& ends) {
  std::size_t at = 0;
  std::size_t last = 0;
  while (at < text.size()) {
    const auto [begin, end] = matcher.find(numbers, text, at);
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
  Code code;
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
    steps_.push_back({step.kind, step.pattern.empty() ? Code() : compile(step.pattern)});
  }
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

void PreTokenizer::split(std::string_view text, Ends& ends) const {
  ends.clear();
  if (text.empty()) return;
  Matcher matcher(text.size());
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
        split_by_matches(step.code.get(), matcher, word, begin, next);
      } else if (step.kind == SplitKind::number_groups) {
        split_number_groups(step.code.get(), matcher, word, begin, next);
      } else {
        split_thousands(word, begin, next);
      }
      begin = end;
    }
    ends.swap(next);
  }
}

}  // namespace skald::inline v0::detail
