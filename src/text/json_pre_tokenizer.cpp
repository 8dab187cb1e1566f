#include <algorithm>
#include <utility>

#include "text/byte_level.hpp"
#include "text/json_pattern.hpp"
#include "text/json_words.hpp"
#include "text/unicode.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::string_view gpt2_words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What becomes of the matches of a pattern and of the gaps between them.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior read_behavior(const JsonNode& node) {
  const std::string& name = node.string();
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  node.unsupported("behavior '" + printable(name, 80) +
                   "' is not known; known are Removed, Isolated, MergedWithPrevious, MergedWithNext and Contiguous");
}

struct Segment {
  std::uint32_t begin, end;
  bool match;
};

// Joins neighbours of the list as the behavior asks.
void join_segments(std::vector<Segment>& segments, Behavior behavior) {
  std::vector<Segment> joined;
  bool previous = false;
  const auto forward = [&](auto&& joins, bool from_right) {
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const Segment segment = segments[from_right ? segments.size() - 1 - i : i];
      if (joins(segment) && !joined.empty()) {
        if (from_right) joined.back().begin = segment.begin;
        else joined.back().end = segment.end;
      } else {
        joined.push_back(segment);
      }
      previous = segment.match;
    }
    if (from_right) std::ranges::reverse(joined);
  };
  switch (behavior) {
    case Behavior::removed:
    case Behavior::isolated: return;
    case Behavior::contiguous: forward([&](const Segment& s) { return s.match == previous; }, false); break;
    case Behavior::merged_with_previous: forward([&](const Segment& s) { return s.match && !previous; }, false); break;
    case Behavior::merged_with_next: forward([&](const Segment& s) { return s.match && !previous; }, true); break;
  }
  segments.swap(joined);
}

// Splits every word at the segments that `segment(text, add)` finds in it; `add(begin, end, match)` takes them in
// order.
template <class Segmenter>
void split_words(JsonWords& words, Behavior behavior, bool invert, Segmenter&& segment) {
  std::vector<JsonWords::Word> result;
  result.reserve(words.words.size());
  std::vector<Segment> segments;
  for (const JsonWords::Word& word : words.words) {
    segments.clear();
    const std::string_view text = std::string_view(words.text).substr(word.begin, word.end - word.begin);
    segment(text, [&](std::size_t begin, std::size_t end, bool match) {
      segments.push_back({word.begin + static_cast<std::uint32_t>(begin), word.begin + static_cast<std::uint32_t>(end),
                          match != invert});
    });
    join_segments(segments, behavior);
    for (const Segment& part : segments) {
      if (part.begin == part.end || (behavior == Behavior::removed && part.match)) continue;
      result.push_back({part.begin, part.end, word.at_start && part.begin == word.begin});
    }
  }
  words.words.swap(result);
}

void split_at_pattern(JsonWords& words, const JsonPattern& pattern, Behavior behavior, bool invert) {
  split_words(words, behavior, invert, [&](std::string_view text, auto&& add) {
    std::size_t last = 0;
    pattern.matches(text, [&](std::size_t begin, std::size_t end) {
      if (begin != last) add(last, begin, false);
      add(begin, end, true);
      last = end;
    });
    if (last != text.size()) add(last, text.size(), false);
  });
}

// Every code point of the class is a match of its own.
template <class Class>
void split_at_points(JsonWords& words, Behavior behavior, Class&& is_member) {
  split_words(words, behavior, false, [&](std::string_view text, auto&& add) {
    std::size_t last = 0;
    for (std::size_t at = 0; at < text.size();) {
      const DecodedPoint point = decode_point(text.substr(at));
      if (is_member(point.value)) {
        if (last != at) add(last, at, false);
        add(at, at + point.size, true);
        last = at + point.size;
      }
      at += point.size;
    }
    if (last != text.size()) add(last, text.size(), false);
  });
}

bool is_bert_punctuation(CodePoint point) noexcept {
  if (point < 0x80) {
    return (point >= '!' && point <= '/') || (point >= ':' && point <= '@') || (point >= '[' && point <= '`') ||
           (point >= '{' && point <= '~');
  }
  return is_punctuation(point);
}

// Writes every word anew: `rewrite(out, word, text)` appends what becomes of it.
template <class Rewrite>
void rewrite_words(JsonWords& words, Rewrite&& rewrite) {
  std::string out;
  out.reserve(words.text.size() + words.text.size() / 4);
  for (JsonWords::Word& word : words.words) {
    const auto begin = static_cast<std::uint32_t>(out.size());
    rewrite(out, word, std::string_view(words.text).substr(word.begin, word.end - word.begin));
    check_text_size(out.size(), words.most);
    word.begin = begin;
    word.end = static_cast<std::uint32_t>(out.size());
  }
  words.text.swap(out);
}

class ByteLevelSplit final : public JsonPreTokenizer {
 public:
  explicit ByteLevelSplit(const JsonNode& node)
      : add_prefix_space_(node.boolean_or("add_prefix_space", true)), pattern_(gpt2_words) {
    use_regex_ = node.boolean_or("use_regex", true);
  }
  void apply(JsonWords& words) const override {
    if (add_prefix_space_) {
      rewrite_words(words, [](std::string& out, const JsonWords::Word&, std::string_view text) {
        if (!text.starts_with(' ')) out += ' ';
        out += text;
      });
    }
    if (use_regex_) split_at_pattern(words, pattern_, Behavior::isolated, false);
    rewrite_words(words, [](std::string& out, const JsonWords::Word&, std::string_view text) {
      for (const char c : text) out += byte_level_char(static_cast<unsigned char>(c));
    });
  }

 private:
  bool add_prefix_space_, use_regex_ = true;
  JsonPattern pattern_;
};

class MetaspaceSplit final : public JsonPreTokenizer {
 public:
  explicit MetaspaceSplit(const JsonNode& node)
      : replacement_(node.string_or("replacement", "\xe2\x96\x81")), split_(node.boolean_or("split", true)) {
    if (replacement_.empty() || decode_point(replacement_).size != replacement_.size()) {
      node.at("replacement").fail("is not a single character");
    }
    const bool add = node.boolean_or("add_prefix_space", true);
    const std::string scheme = node.string_or("prepend_scheme", add ? "always" : "never");
    always_ = scheme == "always";
    first_ = scheme == "first";
    if (!always_ && !first_ && scheme != "never") {
      node.at("prepend_scheme")
          .unsupported("'" + printable(scheme, 80) + "' is not known; known are always, first and never");
    }
  }
  void apply(JsonWords& words) const override {
    rewrite_words(words, [&](std::string& out, const JsonWords::Word& word, std::string_view text) {
      const bool marked = text.starts_with(' ') || text.starts_with(replacement_);
      if (!marked && (always_ || (first_ && word.at_start))) out += replacement_;
      for (const char c : text) {
        if (c == ' ') out += replacement_;
        else out += c;
      }
    });
    if (!split_) return;
    split_words(words, Behavior::merged_with_next, false, [&](std::string_view text, auto&& add) {
      std::size_t last = 0;
      for (std::size_t at = 0; (at = text.find(replacement_, at)) != std::string_view::npos;) {
        if (last != at) add(last, at, false);
        add(at, at + replacement_.size(), true);
        last = at += replacement_.size();
      }
      if (last != text.size()) add(last, text.size(), false);
    });
  }

 private:
  std::string replacement_;
  bool split_, always_ = false, first_ = false;
};

class PatternSplit final : public JsonPreTokenizer {
 public:
  PatternSplit(JsonPattern pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void apply(JsonWords& words) const override { split_at_pattern(words, pattern_, behavior_, invert_); }

 private:
  JsonPattern pattern_;
  Behavior behavior_;
  bool invert_;
};

class SpaceSplit final : public JsonPreTokenizer {
 public:
  void apply(JsonWords& words) const override { split_at_points(words, Behavior::removed, is_white_space); }
};

// Runs of word characters and runs of what is neither that nor space.
class WordSplit final : public JsonPreTokenizer {
 public:
  void apply(JsonWords& words) const override {
    split_words(words, Behavior::removed, false, [](std::string_view text, auto&& add) {
      const auto kind = [](CodePoint point) { return is_word(point) ? 2 : is_white_space(point) ? 0 : 1; };
      std::size_t last = 0;
      int last_kind = -1;
      for (std::size_t at = 0; at < text.size();) {
        const DecodedPoint point = decode_point(text.substr(at));
        const int now = kind(point.value);
        if (now != last_kind && at > 0) {
          add(last, at, last_kind == 0);
          last = at;
        }
        last_kind = now;
        at += point.size;
      }
      if (last != text.size()) add(last, text.size(), last_kind == 0);
    });
  }
};

class BertSplit final : public JsonPreTokenizer {
 public:
  void apply(JsonWords& words) const override {
    split_at_points(words, Behavior::removed, is_white_space);
    split_at_points(words, Behavior::isolated, is_bert_punctuation);
  }
};

class DigitsSplit final : public JsonPreTokenizer {
 public:
  explicit DigitsSplit(const JsonNode& node) : individual_(node.boolean_or("individual_digits", false)) {}
  void apply(JsonWords& words) const override {
    split_at_points(words, individual_ ? Behavior::isolated : Behavior::contiguous, is_number);
  }

 private:
  bool individual_;
};

class PunctuationSplit final : public JsonPreTokenizer {
 public:
  explicit PunctuationSplit(const JsonNode& node) {
    if (const auto behavior = node.find("behavior")) behavior_ = read_behavior(*behavior);
  }
  void apply(JsonWords& words) const override { split_at_points(words, behavior_, is_bert_punctuation); }

 private:
  Behavior behavior_ = Behavior::isolated;
};

class DelimiterSplit final : public JsonPreTokenizer {
 public:
  explicit DelimiterSplit(const JsonNode& node) {
    const std::string& text = node.at("delimiter").string();
    if (text.empty() || decode_point(text).size != text.size()) node.at("delimiter").fail("is not a single character");
    delimiter_ = decode_point(text).value;
  }
  void apply(JsonWords& words) const override {
    split_at_points(words, Behavior::removed, [&](CodePoint point) { return point == delimiter_; });
  }

 private:
  CodePoint delimiter_ = 0;
};

class PreTokenizerSequence final : public JsonPreTokenizer {
 public:
  explicit PreTokenizerSequence(const JsonNode& node) {
    const JsonNode list = node.at("pretokenizers");
    for (std::size_t i = 0; i < list.array_size(); ++i) steps_.push_back(read_pre_tokenizer(list.at(i)));
  }
  void apply(JsonWords& words) const override {
    for (const auto& step : steps_) step->apply(words);
  }

 private:
  std::vector<std::unique_ptr<const JsonPreTokenizer>> steps_;
};

}  // namespace

std::unique_ptr<const JsonPreTokenizer> read_pre_tokenizer(const JsonNode& node) {
  const std::string& type = node.at("type").string();
  if (type == "ByteLevel") return std::make_unique<ByteLevelSplit>(node);
  if (type == "Metaspace") return std::make_unique<MetaspaceSplit>(node);
  if (type == "Split") {
    return std::make_unique<PatternSplit>(JsonPattern(node.at("pattern")), read_behavior(node.at("behavior")),
                                          node.boolean_or("invert", false));
  }
  if (type == "Whitespace") return std::make_unique<WordSplit>();
  if (type == "WhitespaceSplit") return std::make_unique<SpaceSplit>();
  if (type == "BertPreTokenizer") return std::make_unique<BertSplit>();
  if (type == "Digits") return std::make_unique<DigitsSplit>(node);
  if (type == "Punctuation") return std::make_unique<PunctuationSplit>(node);
  if (type == "CharDelimiterSplit") return std::make_unique<DelimiterSplit>(node);
  if (type == "Sequence") return std::make_unique<PreTokenizerSequence>(node);
  node.unsupported("pre-tokenizer '" + printable(type, 80) +
                   "' is not implemented; known are ByteLevel, Metaspace, Split, Whitespace, WhitespaceSplit, "
                   "BertPreTokenizer, Digits, Punctuation, CharDelimiterSplit and Sequence");
}

}  // namespace skald::inline v0::detail
