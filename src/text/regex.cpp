#include "text/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>

#include <skald/core/error.hpp>

namespace skald::inline v0::detail {
namespace {

constexpr std::string_view where = "text.pre_tokenizer";

// White space is spelled out, because what \s means differs between regex engines and their versions
// (U+180E, U+0085). These are the code points with the property White_Space.
constexpr std::string_view white_space =
    R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
// Likewise \w: letters, marks, decimal digits, letter numbers, connectors, the alphabetic symbols and, as Oniguruma has
// it, the superscripts and fractions of Latin-1.
constexpr std::string_view word =
    R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})"
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";

[[noreturn]] void refuse(std::string_view pattern, std::string_view why) {
  throw UnsupportedError(where, "the expression '" + printable(pattern) + "' is not supported: " + std::string(why));
}

// Rewrites what PCRE2 would read in another way, and refuses what it cannot express.
std::string translate(std::string_view pattern, Regex::Syntax syntax) {
  const bool oniguruma = syntax == Regex::Syntax::oniguruma;
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      const auto put_class = [&](std::string_view members, bool negated) {
        if (in_class && negated) refuse(pattern, std::string("\\") + escaped + " inside a class");
        if (in_class) out.append(members);
        else out.append(negated ? "[^" : "[").append(members).append("]");
      };
      if (escaped == 's' || (escaped == 'S' && !(in_class && oniguruma))) {
        if (escaped == 'S' && in_class) out.append("[^").append(white_space).append("]");
        else put_class(white_space, escaped == 'S');
      } else if (oniguruma && escaped == 'S') {
        out.append("\\S");  // inside a class; differs in U+180E alone
      } else if (oniguruma && (escaped == 'w' || escaped == 'W')) {
        put_class(word, escaped == 'W');
      } else if (oniguruma && std::string_view("hHgGkKRXyYMm").find(escaped) != std::string_view::npos) {
        refuse(pattern, std::string("\\") + escaped + " is not implemented");
      } else {
        out.append({c, escaped});
      }
      continue;
    }
    if (oniguruma && in_class && c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') {
      refuse(pattern, "intersections of classes");
    }
    if (oniguruma && in_class && c == '[' && (i + 1 == pattern.size() || pattern[i + 1] != ':')) {
      refuse(pattern, "classes inside classes");
    }
    if (in_class && c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':') {
      const std::size_t end = pattern.find(":]", i);
      if (end != std::string_view::npos) {
        out.append(pattern.substr(i, end + 2 - i));
        i = end + 1;
        continue;
      }
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      // A bracket that comes first is a member.
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') {
        out += "\\]";
        ++i;
      }
      continue;
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

struct FreeCompileContext {
  void operator()(pcre2_compile_context* context) const noexcept { pcre2_compile_context_free(context); }
};

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
};

struct Regex::Matcher::State {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
};

Regex::Regex(std::string_view pattern, Syntax syntax) : code_(std::make_unique<Code>()) {
  constexpr std::size_t longest = 65536;
  if (pattern.size() > longest) refuse(pattern, "it is longer than " + std::to_string(longest) + " bytes");
  const std::string translated = translate(pattern, syntax);
  std::uint32_t options = PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C;
  if (syntax == Syntax::oniguruma) options |= PCRE2_UCP | PCRE2_MULTILINE;
  const std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(pcre2_compile_context_create(nullptr));
  if (!context) throw OutOfMemoryError(where, "no memory for a PCRE2 context");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                              &offset, context.get());
  if (code_->code == nullptr) refuse(pattern, pcre2_message(error));
  // Just-in-time compilation is a matter of speed only; where the host forbids it, the interpreter runs.
  pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE);
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

Regex::Matcher::Matcher(std::size_t text_size, Limits limits) : state_(std::make_unique<State>()) {
  if (state_->data == nullptr || state_->context == nullptr) {
    throw OutOfMemoryError(where, "no memory for PCRE2 match data");
  }
  const std::size_t steps = limits.steps + limits.steps_per_byte * text_size;
  pcre2_set_match_limit(state_->context, static_cast<std::uint32_t>(std::min<std::size_t>(steps, 0xffff'ffff)));
  pcre2_set_depth_limit(state_->context, 100'000);
  pcre2_set_heap_limit(state_->context, 64 * 1024);
}

Regex::Matcher::~Matcher() = default;

std::optional<std::pair<std::size_t, std::size_t>> Regex::find(std::string_view text, std::size_t start,
                                                               Matcher& matcher) const {
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto& state = *matcher.state_;
  int found = pcre2_match(code_->code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, state.data, state.context);
  if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
    found = pcre2_match(code_->code, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, state.data,
                        state.context);
  }
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) throw OutOfMemoryError(where, "PCRE2 gave up: " + pcre2_message(found));
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(state.data);
  // Only \K could put the end before the begin.
  return std::pair<std::size_t, std::size_t>(range[0], std::max(range[0], range[1]));
}

}  // namespace skald::inline v0::detail
