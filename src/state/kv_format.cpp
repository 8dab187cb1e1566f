#include <skald/state/kv_format.hpp>

#include <algorithm>
#include <charconv>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "state.kv_format";

[[noreturn]] void refuse(std::string_view rule, const std::string& what) {
  throw UsageError(where, "KV format rule '" + printable(std::string(rule)) + "': " + what +
                              "; rules look like 'layers 0-3=f16', 'heads 0,2=q8_0' or 'layers 4 heads 1=q4_0'");
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

/// Takes the text up to the next of `separator` off the front.
std::string_view take(std::string_view& text, char separator) {
  const auto at = std::min(text.find(separator), text.size());
  const auto part = text.substr(0, at);
  text.remove_prefix(std::min(text.size(), at + 1));
  return part;
}

}  // namespace

AnyKvFormat::AnyKvFormat(std::string_view spec) : dtype_(parse(trimmed(take(spec, ';')))) {
  while (!spec.empty()) add_rule(trimmed(take(spec, ';')));
}

DType AnyKvFormat::parse(std::string_view name) {
  const auto type = dtype_from_name(name);
  if (!type || !KvPageLayout::supports(*type))
    throw UnsupportedError(where, "KV format '" + printable(std::string(name)) +
                                      "' is not one of f32, f16, bf16, q8_0, q4_0, q4_1");
  return *type;
}

std::vector<AnyKvFormat::Range> AnyKvFormat::parse_ranges(std::string_view text, std::string_view rule) {
  std::vector<Range> ranges;
  while (!text.empty()) {
    auto part = trimmed(take(text, ','));
    const auto number = [&] {
      std::int32_t value = 0;
      const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
      if (error != std::errc{} || value < 0) refuse(rule, "a number is missing");
      part.remove_prefix(static_cast<std::size_t>(end - part.data()));
      return value;
    };
    Range range;
    range.first = range.last = number();
    if (!part.empty() && part.front() == '-') {
      part.remove_prefix(1);
      range.last = number();
    }
    if (!part.empty() || range.last < range.first) refuse(rule, "ranges are 'first-last'");
    ranges.push_back(range);
  }
  if (ranges.empty()) refuse(rule, "a number is missing");
  return ranges;
}

std::int32_t AnyKvFormat::parse_number(std::string_view text, std::string_view rule) {
  const auto ranges = parse_ranges(text, rule);
  if (ranges.size() != 1 || ranges[0].first != ranges[0].last) refuse(rule, "one number is needed");
  return ranges[0].first;
}

AnyKvFormat::AnyKvFormat(const KvChunks& format)
    : dtype_(format.type), read_tokens_(format.tokens), chunk_tokens_(format.sizes) {
  if (format.tokens < 1 || std::any_of(format.sizes.begin(), format.sizes.end(), [](auto size) { return size < 1; }))
    throw UsageError(where, "a token reads " + std::to_string(format.tokens) + " tokens in chunks; at least 1, and none empty");
}

void AnyKvFormat::parse_chunks(std::string_view text, std::string_view rule) {
  constexpr std::string_view of = " of ";
  const auto split = text.find(of);
  read_tokens_ = parse_number(trimmed(text.substr(0, split)), rule);
  chunk_tokens_.clear();
  auto sizes = split == std::string_view::npos ? std::string_view{} : trimmed(text.substr(split + of.size()));
  if (split != std::string_view::npos && sizes.empty()) refuse(rule, "a number is missing");
  while (!sizes.empty()) chunk_tokens_.push_back(parse_number(trimmed(take(sizes, ',')), rule));
  if (read_tokens_ == 0 || std::find(chunk_tokens_.begin(), chunk_tokens_.end(), 0) != chunk_tokens_.end())
    refuse(rule, "at least one token is read, and chunks are not empty");
}

void AnyKvFormat::add_rule(std::string_view text) {
  const auto equals = text.find('=');
  if (equals == std::string_view::npos) refuse(text, "'=' and a format are missing");
  auto left = trimmed(text.substr(0, equals));
  const auto right = trimmed(text.substr(equals + 1));
  if (left == "iterations") {
    iterations_ = parse_number(right, text);
    return;
  }
  if (left == "residual") {
    const auto space = std::min(right.find(' '), right.size());
    residual_ = parse_number(right.substr(0, space), text);
    if (residual_ == 0) refuse(text, "a residual has at least a page of tokens");
    if (space < right.size()) residual_dtype_ = parse(trimmed(right.substr(space)));
    if (KvPageLayout{.dtype = residual_dtype_}.coded()) refuse(text, "a residual is f32, f16 or bf16");
    return;
  }
  if (left == "values") {
    fetched_values_ = parse_number(right, text);
    if (fetched_values_ == 0) refuse(text, "at least one value is fetched");
    return;
  }
  if (left == "chunks") return parse_chunks(right, text);
  if (left == "segments") {
    if (right != "prompt") refuse(text, "segments are divided by 'prompt'");
    segments_ = true;
    return;
  }
  constexpr std::string_view layers = "layers ";
  constexpr std::string_view heads = "heads ";
  constexpr std::string_view layer = "layer ";
  Rule rule;
  const auto split = left.find(heads);
  if (right.substr(0, layer.size()) == layer) {
    rule.source = parse_number(right.substr(layer.size()), text);
    if (split != std::string_view::npos) refuse(text, "all heads of a layer read the same layer");
  } else {
    rule.dtype = parse(right);
  }
  const auto before = trimmed(left.substr(0, std::min(split, left.size())));
  if (split != std::string_view::npos) rule.heads = parse_ranges(left.substr(split + heads.size()), text);
  if (!before.empty()) {
    if (before.substr(0, layers.size()) != layers) refuse(text, "it begins with neither 'layers' nor 'heads'");
    rule.layers = parse_ranges(before.substr(layers.size()), text);
  }
  if (rule.layers.empty() && rule.heads.empty()) refuse(text, "it begins with neither 'layers' nor 'heads'");
  rules_.push_back(std::move(rule));
}

DType AnyKvFormat::dtype(std::int32_t layer, std::int32_t head) const noexcept {
  const auto inside = [](const std::vector<Range>& ranges, std::int32_t value) {
    return ranges.empty() || std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) {
             return range.first <= value && value <= range.last;
           });
  };
  auto type = dtype_;
  for (const auto& rule : rules_)
    if (rule.source < 0 && inside(rule.layers, layer) && inside(rule.heads, head)) type = rule.dtype;
  return type;
}

std::int32_t AnyKvFormat::source(std::int32_t layer) const noexcept {
  auto source = layer;
  for (const auto& rule : rules_)
    for (const auto& range : rule.layers)
      if (rule.source >= 0 && range.first <= layer && layer <= range.last) source = rule.source;
  return source;
}

std::string AnyKvFormat::name() const {
  auto text = std::string(to_string(dtype_));
  const auto add = [&](const char* what, const std::vector<Range>& ranges) {
    if (ranges.empty()) return;
    text += what;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      text += (i == 0 ? "" : ",") + std::to_string(ranges[i].first);
      if (ranges[i].last != ranges[i].first) text += "-" + std::to_string(ranges[i].last);
    }
  };
  for (const auto& rule : rules_) {
    text += ";";
    add("layers ", rule.layers);
    add(rule.layers.empty() ? "heads " : " heads ", rule.heads);
    text += rule.source < 0 ? "=" + std::string(to_string(rule.dtype)) : "=layer " + std::to_string(rule.source);
  }
  if (residual_ > 0) {
    text += ";residual=" + std::to_string(residual_);
    if (residual_dtype_ != DType::f16) text += " " + std::string(to_string(residual_dtype_));
  }
  if (fetched_values_ > 0) text += ";values=" + std::to_string(fetched_values_);
  if (read_tokens_ > 0) {
    text += ";chunks=" + std::to_string(read_tokens_);
    for (std::size_t i = 0; i < chunk_tokens_.size(); ++i) text += (i == 0 ? " of " : ",") + std::to_string(chunk_tokens_[i]);
  }
  if (segments_) text += ";segments=prompt";
  if (iterations_ > 0) text += ";iterations=" + std::to_string(iterations_);
  return text;
}

void AnyKvFormat::check(std::int32_t layers, std::int32_t kv_heads) const {
  const auto within = [&](const std::vector<Range>& ranges, std::int32_t count, const char* what) {
    for (const auto& range : ranges)
      if (range.last >= count)
        throw IncompatibleError(where, "KV format '" + name() + "' has a rule for " + std::string(what) + " " +
                                           std::to_string(range.last) + "; the model has " + std::to_string(count) +
                                           ", counted from 0");
  };
  for (const auto& rule : rules_) {
    within(rule.layers, layers, "layer");
    within(rule.heads, kv_heads, "KV head");
    if (rule.source >= 0) within({{rule.source, rule.source}}, layers, "layer");
  }
}

}  // namespace skald::inline v0
