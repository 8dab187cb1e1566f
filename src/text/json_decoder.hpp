#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/json_node.hpp"

namespace skald::inline v0::detail {

/// One decoder of `tokenizer.json`: a step that turns the texts of tokens into parts of a text.
class JsonDecoderStep {
 public:
  virtual ~JsonDecoderStep() = default;
  virtual void apply(std::vector<std::string>& parts) const = 0;
  /// True if every part but the first depends on its token alone.
  [[nodiscard]] virtual bool part_by_part() const noexcept { return true; }
  /// True if this joins all parts to one.
  [[nodiscard]] virtual bool joins() const noexcept { return false; }
  /// True if, as applied to a text as a whole, it changes nothing but its beginning.
  [[nodiscard]] virtual bool touches_start_only() const noexcept { return false; }
};

/// The decoder of `tokenizer.json` as a list of steps. The library decodes bytes that are not UTF-8 to U+FFFD; here
/// they stay what they are.
class JsonDecoder {
 public:
  /// Without a decoder, tokens are joined by spaces.
  JsonDecoder();
  explicit JsonDecoder(const JsonNode& node);

  /// The text of tokens with these texts.
  [[nodiscard]] std::string decode(std::vector<std::string> parts) const;
  /// True if a text is its tokens' parts one after the other, so that it can be decoded token by token.
  [[nodiscard]] bool streams() const noexcept { return streams_; }

 private:
  void add(const JsonNode& node);
  void check_streaming();
  std::vector<std::unique_ptr<const JsonDecoderStep>> steps_;
  bool streams_ = true;
};

}  // namespace skald::inline v0::detail
