#include <array>
#include <utility>

#include "text/byte_level.hpp"
#include "text/charsmap.hpp"
#include "text/json_pattern.hpp"
#include "text/json_words.hpp"
#include "text/unicode.hpp"

namespace skald::inline v0::detail {

void check_text_size(std::size_t size, std::size_t most) {
  if (size <= most) return;
  throw FormatError("text.tokenizer_json",
                    "the steps of the tokenizer make more than " + std::to_string(most) + " bytes of a text");
}

namespace {

using Text = JsonNormalizer::Text;

// Passes every code point through a function that appends what becomes of it.
template <class Map>
void map_points(Text& text, Map&& map) {
  std::string out;
  out.reserve(text.text.size());
  for (std::string_view rest = text.text; !rest.empty();) {
    const DecodedPoint point = decode_point(rest);
    map(out, point.value, rest.substr(0, point.size));
    rest.remove_prefix(point.size);
    check_text_size(out.size(), text.most);
  }
  text.text.swap(out);
}

class NormalFormStep final : public JsonNormalizer {
 public:
  explicit NormalFormStep(NormalForm form) : form_(form) {}
  void apply(Text& text) const override { text.text = normal_form(text.text, form_); }

 private:
  NormalForm form_;
};

class LowercaseStep final : public JsonNormalizer {
 public:
  void apply(Text& text) const override {
    map_points(text, [](std::string& out, CodePoint point, std::string_view) { append_lower(out, point); });
  }
};

class StripAccentsStep final : public JsonNormalizer {
 public:
  void apply(Text& text) const override {
    map_points(text, [](std::string& out, CodePoint point, std::string_view bytes) {
      if (!is_mark(point)) out += bytes;
    });
  }
};

class ReplaceNormalizer final : public JsonNormalizer {
 public:
  explicit ReplaceNormalizer(const JsonNode& node) : pattern_(node.at("pattern")), content_(node.at("content").string()) {}
  void apply(Text& text) const override {
    std::string out;
    std::size_t last = 0;
    pattern_.matches(text.text, [&](std::size_t begin, std::size_t end) {
      out.append(text.text, last, begin - last).append(content_);
      check_text_size(out.size(), text.most);
      last = end;
    });
    if (last == 0 && out.empty()) return;
    text.text = out.append(text.text, last);
  }

 private:
  JsonPattern pattern_;
  std::string content_;
};

class PrependStep final : public JsonNormalizer {
 public:
  explicit PrependStep(const JsonNode& node) : prefix_(node.at("prepend").string()) {}
  void apply(Text& text) const override {
    if (text.text.empty()) return;
    text.text.insert(0, prefix_);
    check_text_size(text.text.size(), text.most);
  }

 private:
  std::string prefix_;
};

class StripNormalizer final : public JsonNormalizer {
 public:
  explicit StripNormalizer(const JsonNode& node)
      : left_(node.boolean_or("strip_left", true)), right_(node.boolean_or("strip_right", true)) {}
  void apply(Text& text) const override {
    std::size_t begin = std::string::npos;
    std::size_t end = 0;
    for (std::size_t at = 0; at < text.text.size();) {
      const DecodedPoint point = decode_point(std::string_view(text.text).substr(at));
      if (!is_white_space(point.value)) {
        if (begin == std::string::npos) begin = at;
        end = at + point.size;
      }
      at += point.size;
    }
    if (begin == std::string::npos) begin = end = left_ ? text.text.size() : 0;
    if (right_) text.text.resize(std::max(begin, end));
    if (!left_) return;
    if (begin > 0) text.at_start = false;
    text.text.erase(0, begin);
  }

 private:
  bool left_, right_;
};

class BertStep final : public JsonNormalizer {
 public:
  explicit BertStep(const JsonNode& node)
      : clean_(node.boolean_or("clean_text", true)),
        chinese_(node.boolean_or("handle_chinese_chars", true)),
        lower_(node.boolean_or("lowercase", true)),
        strip_(node.boolean_or("strip_accents", lower_)) {}
  void apply(Text& text) const override {
    map_points(text, [&](std::string& out, CodePoint point, std::string_view bytes) {
      const bool space = is_white_space(point);
      const bool control = is_other(point) && point != '\t' && point != '\n' && point != '\r';
      if (clean_ && (point == 0 || point == 0xfffd || control)) return;
      if (clean_ && space) out += ' ';
      else if (chinese_ && is_chinese(point)) out.append(" ").append(bytes).append(" ");
      else out += bytes;
    });
    if (strip_) {
      text.text = normal_form(text.text, NormalForm::nfd);
      map_points(text, [](std::string& out, CodePoint point, std::string_view bytes) {
        if (!is_nonspacing_mark(point)) out += bytes;
      });
    }
    if (lower_) LowercaseStep().apply(text);
  }

 private:
  bool clean_, chinese_, lower_, strip_;
};

class NmtStep final : public JsonNormalizer {
 public:
  void apply(Text& text) const override {
    map_points(text, [](std::string& out, CodePoint point, std::string_view bytes) {
      if ((point >= 1 && point <= 8) || point == 0xb || (point >= 0xe && point <= 0x1f) || point == 0x7f ||
          point == 0x8f || point == 0x9f) {
        return;
      }
      const bool space = point == 0x9 || point == 0xa || point == 0xc || point == 0xd || point == 0x1680 ||
                         (point >= 0x200b && point <= 0x200f) || point == 0x2028 || point == 0x2029 ||
                         point == 0x2581 || point == 0xfeff || point == 0xfffd;
      if (space) out += ' ';
      else out += bytes;
    });
  }
};

class ByteLevelNormalizer final : public JsonNormalizer {
 public:
  void apply(Text& text) const override {
    std::string out;
    for (const char c : text.text) out += byte_level_char(static_cast<unsigned char>(c));
    text.text.swap(out);
    check_text_size(text.text.size(), text.most);
  }
};

std::string decode_base64(const JsonNode& node) {
  const std::string& text = node.string();
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    int value = -1;
    if (c >= 'A' && c <= 'Z') value = c - 'A';
    else if (c >= 'a' && c <= 'z') value = c - 'a' + 26;
    else if (c >= '0' && c <= '9') value = c - '0' + 52;
    else if (c == '+') value = 62;
    else if (c == '/') value = 63;
    else if (c == '=') break;
    if (value < 0) node.fail("is not base64");
    bits = (bits << 6 | static_cast<std::uint32_t>(value)) & 0xff'ffff;
    if ((count += 6) >= 8) bytes += static_cast<char>(bits >> (count -= 8) & 0xff);
  }
  return bytes;
}

// SentencePiece's table, applied to grapheme clusters as a whole where they are short and have an entry, and else to
// their code points; the shortest entry counts. (So the library does it, unlike SentencePiece itself.)
class PrecompiledStep final : public JsonNormalizer {
 public:
  explicit PrecompiledStep(const JsonNode& node) {
    const auto member = node.find("precompiled_charsmap");
    if (!member) return;
    try {
      map_ = Charsmap(decode_base64(*member));
    } catch (const FormatError& error) {
      member->fail(error.message());
    }
  }
  void apply(Text& text) const override {
    if (map_.empty()) return;
    std::string out;
    for (std::string_view rest = text.text; !rest.empty();) {
      const std::size_t size = grapheme_size(rest);
      std::string_view cluster = rest.substr(0, size);
      rest.remove_prefix(size);
      constexpr std::size_t long_cluster = 6;
      if (cluster.size() < long_cluster) {
        if (const auto match = map_.shortest(cluster)) {
          out += match->replacement;
          cluster = {};
        }
      }
      while (!cluster.empty()) {
        const std::string_view point = cluster.substr(0, decode_point(cluster).size);
        const auto match = map_.shortest(point);
        out += match ? match->replacement : point;
        cluster.remove_prefix(point.size());
      }
      check_text_size(out.size(), text.most);
    }
    text.text = replace_invalid(out);
  }

 private:
  // Entries of a damaged table may cut code points.
  static std::string replace_invalid(const std::string& text) {
    std::string out;
    out.reserve(text.size());
    for (std::string_view rest = text; !rest.empty();) {
      const DecodedPoint point = decode_point(rest);
      append_point(out, point.value);
      rest.remove_prefix(point.size);
    }
    return out;
  }
  Charsmap map_;
};

class NormalizerSequence final : public JsonNormalizer {
 public:
  explicit NormalizerSequence(const JsonNode& node) {
    const JsonNode list = node.at("normalizers");
    for (std::size_t i = 0; i < list.array_size(); ++i) steps_.push_back(read_normalizer(list.at(i)));
  }
  void apply(Text& text) const override {
    for (const auto& step : steps_) step->apply(text);
  }

 private:
  std::vector<std::unique_ptr<const JsonNormalizer>> steps_;
};

}  // namespace

std::unique_ptr<const JsonNormalizer> read_normalizer(const JsonNode& node) {
  const std::string& type = node.at("type").string();
  if (type == "NFC") return std::make_unique<NormalFormStep>(NormalForm::nfc);
  if (type == "NFD") return std::make_unique<NormalFormStep>(NormalForm::nfd);
  if (type == "NFKC") return std::make_unique<NormalFormStep>(NormalForm::nfkc);
  if (type == "NFKD") return std::make_unique<NormalFormStep>(NormalForm::nfkd);
  if (type == "Lowercase") return std::make_unique<LowercaseStep>();
  if (type == "StripAccents") return std::make_unique<StripAccentsStep>();
  if (type == "Replace") return std::make_unique<ReplaceNormalizer>(node);
  if (type == "Prepend") return std::make_unique<PrependStep>(node);
  if (type == "Strip") return std::make_unique<StripNormalizer>(node);
  if (type == "BertNormalizer") return std::make_unique<BertStep>(node);
  if (type == "Nmt") return std::make_unique<NmtStep>();
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  if (type == "Precompiled") return std::make_unique<PrecompiledStep>(node);
  if (type == "Sequence") return std::make_unique<NormalizerSequence>(node);
  node.unsupported("normalizer '" + printable(type, 80) +
                   "' is not implemented; known are NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Replace, Prepend, "
                   "Strip, BertNormalizer, Nmt, ByteLevel, Precompiled and Sequence");
}

}  // namespace skald::inline v0::detail
