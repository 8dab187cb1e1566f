#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <skald/config.hpp>

namespace skald::inline v0::detail {

/// A compiled regular expression on UTF-8 text. Immutable and safe to share between threads.
class Regex {
 public:
  enum class Syntax {
    plain,  ///< of the built-in tables: \s and \S are the property White_Space, else PCRE2 without its Unicode classes
    oniguruma,  ///< of `tokenizer.json`: Unicode classes, ^ and $ at every line
  };
  /// How much work one search may do, per search and per byte of the text. What needs more is given up.
  struct Limits {
    std::uint32_t steps;
    std::uint32_t steps_per_byte;
  };

  /// Throws `UnsupportedError`, with the expression, for what cannot be compiled or would mean something else.
  explicit Regex(std::string_view pattern, Syntax syntax = Syntax::plain);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// What searches of one thread in texts of up to this size need.
  class Matcher {
   public:
    explicit Matcher(std::size_t text_size, Limits limits = {10'000'000, 8});
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;

   private:
    friend class Regex;
    struct State;
    std::unique_ptr<State> state_;
  };
  /// First match in `text` (valid UTF-8) at or after `start`, as begin and end. Throws `OutOfMemoryError` if the search
  /// exceeds its limits.
  [[nodiscard]] std::optional<std::pair<std::size_t, std::size_t>> find(std::string_view text, std::size_t start,
                                                                        Matcher& matcher) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace skald::inline v0::detail
