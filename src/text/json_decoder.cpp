#include "text/json_decoder.hpp"

#include <array>
#include <utility>

#include "text/byte_level.hpp"
#include "text/json_pattern.hpp"
#include "text/sentence_piece.hpp"
#include "text/unicode.hpp"

namespace skald::inline v0::detail {
namespace {

using Parts = std::vector<std::string>;

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) return;
  std::string out;
  std::size_t last = 0;
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; last = at += from.size()) {
    out.append(text, last, at - last).append(to);
  }
  if (last > 0) text = out.append(text, last);
}

// What the decoders WordPiece and CTC call cleaning up.
void clean_up(std::string& text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> rules = {{{" .", "."},
                                                                                    {" ?", "?"},
                                                                                    {" !", "!"},
                                                                                    {" ,", ","},
                                                                                    {" ' ", "'"},
                                                                                    {" n't", "n't"},
                                                                                    {" 'm", "'m"},
                                                                                    {" do not", " don't"},
                                                                                    {" 's", "'s"},
                                                                                    {" 've", "'ve"},
                                                                                    {" 're", "'re"}}};
  for (const auto& [from, to] : rules) replace_all(text, from, to);
}

class ByteLevelStep final : public JsonDecoderStep {
 public:
  void apply(Parts& parts) const override {
    for (std::string& part : parts) {
      // A token with characters that stand for no byte is text as it is.
      std::string bytes;
      bool whole = true;
      for (std::string_view rest = part; whole && !rest.empty();) {
        const std::string_view point = rest.substr(0, decode_point(rest).size);
        const std::string byte = byte_level_decode(point);
        whole = byte.size() == 1 && byte_level_char(static_cast<unsigned char>(byte[0])) == point;
        bytes += byte;
        rest.remove_prefix(point.size());
      }
      if (whole) part = std::move(bytes);
    }
  }
};

class MetaspaceStep final : public JsonDecoderStep {
 public:
  explicit MetaspaceStep(const JsonNode& node) : replacement_(node.string_or("replacement", "\xe2\x96\x81")) {
    if (replacement_.empty()) node.at("replacement").fail("is empty");
    const bool add = node.boolean_or("add_prefix_space", true);
    strip_ = node.string_or("prepend_scheme", add ? "always" : "never") != "never";
  }
  void apply(Parts& parts) const override {
    for (std::size_t i = 0; i < parts.size(); ++i) replace_all(parts[i], replacement_, i == 0 && strip_ ? "" : " ");
  }

 private:
  std::string replacement_;
  bool strip_;
};

class WordPieceStep final : public JsonDecoderStep {
 public:
  explicit WordPieceStep(const JsonNode& node)
      : prefix_(node.string_or("prefix", "##")), clean_up_(node.boolean_or("cleanup", true)) {}
  void apply(Parts& parts) const override {
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (i > 0) {
        if (parts[i].starts_with(prefix_)) parts[i].erase(0, prefix_.size());
        else parts[i].insert(0, " ");
      }
      if (clean_up_) clean_up(parts[i]);
    }
  }

 private:
  std::string prefix_;
  bool clean_up_;
};

class ByteFallbackStep final : public JsonDecoderStep {
 public:
  void apply(Parts& parts) const override {
    for (std::string& part : parts) {
      if (const int byte = byte_of_spelling(part); byte >= 0) part.assign(1, static_cast<char>(byte));
    }
  }
};

class FuseStep final : public JsonDecoderStep {
 public:
  void apply(Parts& parts) const override {
    std::string all;
    for (const std::string& part : parts) all += part;
    parts.assign(1, std::move(all));
  }
  [[nodiscard]] bool joins() const noexcept override { return true; }
};

class StripStep final : public JsonDecoderStep {
 public:
  explicit StripStep(const JsonNode& node) : content_(node.at("content").string()) {
    constexpr std::int64_t most = 1 << 20;
    if (content_.empty() || decode_point(content_).size != content_.size()) {
      node.at("content").fail("is not a single character");
    }
    start_ = node.find("start") ? node.at("start").integer(0, most) : 0;
    stop_ = node.find("stop") ? node.at("stop").integer(0, most) : 0;
  }
  void apply(Parts& parts) const override {
    for (std::string& part : parts) {
      std::string_view text = part;
      for (std::int64_t i = 0; i < start_ && text.starts_with(content_); ++i) text.remove_prefix(content_.size());
      for (std::int64_t i = 0; i < stop_ && text.ends_with(content_); ++i) text.remove_suffix(content_.size());
      if (text.size() != part.size()) part = std::string(text);
    }
  }
  [[nodiscard]] bool touches_start_only() const noexcept override { return stop_ == 0 && start_ <= 1; }

 private:
  std::string content_;
  std::int64_t start_ = 0, stop_ = 0;
};

class ReplaceStep final : public JsonDecoderStep {
 public:
  explicit ReplaceStep(const JsonNode& node) : pattern_(node.at("pattern")), content_(node.at("content").string()) {}
  void apply(Parts& parts) const override {
    for (std::string& part : parts) {
      if (const std::string* literal = pattern_.literal()) {
        replace_all(part, *literal, content_);
        continue;
      }
      // Expressions need UTF-8.
      if (!is_utf8(part)) continue;
      std::string out;
      std::size_t last = 0;
      pattern_.matches(part, [&](std::size_t begin, std::size_t end) {
        out.append(part, last, begin - last).append(content_);
        last = end;
      });
      part = out.append(part, last);
    }
  }

 private:
  static bool is_utf8(std::string_view text) noexcept {
    for (; !text.empty(); text.remove_prefix(decode_point(text).size)) {
      if (decode_point(text).value == 0xfffd && !text.starts_with("\xef\xbf\xbd")) return false;
    }
    return true;
  }
  JsonPattern pattern_;
  std::string content_;
};

class BytePairStep final : public JsonDecoderStep {
 public:
  explicit BytePairStep(const JsonNode& node) : suffix_(node.string_or("suffix", "</w>")) {}
  void apply(Parts& parts) const override {
    for (std::size_t i = 0; i < parts.size(); ++i) replace_all(parts[i], suffix_, i + 1 == parts.size() ? "" : " ");
  }
  [[nodiscard]] bool part_by_part() const noexcept override { return false; }

 private:
  std::string suffix_;
};

class CtcStep final : public JsonDecoderStep {
 public:
  explicit CtcStep(const JsonNode& node)
      : pad_(node.string_or("pad_token", "<pad>")),
        delimiter_(node.string_or("word_delimiter_token", "|")),
        clean_up_(node.boolean_or("cleanup", true)) {}
  void apply(Parts& parts) const override {
    Parts kept;
    const std::string* last = nullptr;
    for (const std::string& part : parts) {
      if (last != nullptr && *last == part) continue;
      last = &part;
      std::string text = part;
      replace_all(text, pad_, "");
      if (clean_up_) {
        clean_up(text);
        replace_all(text, delimiter_, " ");
      }
      if (!text.empty()) kept.push_back(std::move(text));
    }
    parts.swap(kept);
  }
  [[nodiscard]] bool part_by_part() const noexcept override { return false; }

 private:
  std::string pad_, delimiter_;
  bool clean_up_;
};

class JoinWithSpaces final : public JsonDecoderStep {
 public:
  void apply(Parts& parts) const override {
    for (std::size_t i = 1; i < parts.size(); ++i) parts[i].insert(0, " ");
  }
};

}  // namespace

JsonDecoder::JsonDecoder() { steps_.push_back(std::make_unique<JoinWithSpaces>()); }

JsonDecoder::JsonDecoder(const JsonNode& node) {
  add(node);
  check_streaming();
}

void JsonDecoder::add(const JsonNode& node) {
  const std::string& type = node.at("type").string();
  if (type == "Sequence") {
    const JsonNode list = node.at("decoders");
    for (std::size_t i = 0; i < list.array_size(); ++i) add(list.at(i));
    return;
  }
  if (type == "ByteLevel") steps_.push_back(std::make_unique<ByteLevelStep>());
  else if (type == "Metaspace") steps_.push_back(std::make_unique<MetaspaceStep>(node));
  else if (type == "WordPiece") steps_.push_back(std::make_unique<WordPieceStep>(node));
  else if (type == "ByteFallback") steps_.push_back(std::make_unique<ByteFallbackStep>());
  else if (type == "Fuse") steps_.push_back(std::make_unique<FuseStep>());
  else if (type == "Strip") steps_.push_back(std::make_unique<StripStep>(node));
  else if (type == "Replace") steps_.push_back(std::make_unique<ReplaceStep>(node));
  else if (type == "BPEDecoder") steps_.push_back(std::make_unique<BytePairStep>(node));
  else if (type == "CTC") steps_.push_back(std::make_unique<CtcStep>(node));
  else {
    node.unsupported("decoder '" + printable(type, 80) +
                     "' is not implemented; known are ByteLevel, Metaspace, WordPiece, ByteFallback, Fuse, Strip, "
                     "Replace, BPEDecoder, CTC and Sequence");
  }
}

void JsonDecoder::check_streaming() {
  bool joined = false;
  for (const auto& step : steps_) {
    if (joined) streams_ = streams_ && (step->joins() || step->touches_start_only());
    else streams_ = streams_ && step->part_by_part();
    joined = joined || step->joins();
  }
}

std::string JsonDecoder::decode(std::vector<std::string> parts) const {
  for (const auto& step : steps_) step->apply(parts);
  std::string text;
  for (const std::string& part : parts) text += part;
  return text;
}

}  // namespace skald::inline v0::detail
