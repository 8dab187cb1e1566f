// Any bytes as tokenizer.json (behind a zero byte: text to encode): refused with a skald::Error, or it encodes and
// decodes. Any bytes as tokenizer_config.json. Any bytes as text for fixed tokenizers of every model.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/text/detokenizer.hpp>
#include <skald/text/tokenizer_json.hpp>

namespace {

using namespace skald;

void check(bool condition) {
  if (!condition) std::abort();
}

void use(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool parse : {false, true}) {
    std::vector<TokenId> ids;
    try {
      ids = tokenizer.encode(text, {.parse_special = parse});
    } catch (const Error&) {  // no unknown token, or the steps make too much of the text
      continue;
    }
    for (const TokenId id : ids) check(id >= 0 && id < tokenizer.size());
    const std::string whole = tokenizer.decode(ids);
    if (!tokenizer.streams()) continue;
    StreamingDetokenizer detokenizer(tokenizer);
    std::string streamed;
    for (const TokenId id : ids) streamed += detokenizer.push(id);
    streamed += detokenizer.finish();
    check(streamed == replace_invalid_utf8(whole));
  }
}

const std::vector<Tokenizer>& fixed() {
  static const std::vector<Tokenizer> all = [] {
    std::vector<Tokenizer> tokenizers;
    for (
        const char* json :
        {R"({"added_tokens":[{"id":5,"content":"<s>","special":true,"lstrip":true},{"id":6,"content":"aa","rstrip":true}],
              "normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"},
              "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"\u0120":3,"c":4},"merges":["a b"]}})",
         R"({"normalizer":{"type":"BertNormalizer"},"pre_tokenizer":{"type":"BertPreTokenizer"},
              "decoder":{"type":"WordPiece"},"model":{"type":"WordPiece","vocab":{"[UNK]":0,"a":1,"##b":2,"##":3}}})",
         R"({"normalizer":{"type":"Sequence","normalizers":[{"type":"Nmt"},{"type":"NFKC"},
              {"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]},"pre_tokenizer":{"type":"Metaspace"},
              "decoder":{"type":"Metaspace"},"model":{"type":"Unigram","unk_id":0,
              "vocab":[["<unk>",0],["\u2581",-1],["a",-2],["ab",-3],["\u2581a",-2]]}})",
         R"({"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Whitespace"},{"type":"Digits"},
              {"type":"Punctuation","behavior":"MergedWithNext"},{"type":"Split","pattern":{"Regex":"[a-f]+"},
              "behavior":"Contiguous","invert":true}]},"model":{"type":"WordLevel","vocab":{"<unk>":0,"a":1}}})"}) {
      tokenizers.push_back(read_tokenizer_json({.tokenizer_json = json}));
    }
    return tokenizers;
  }();
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = std::min(input.find('\0'), input.size());
  for (const Tokenizer& tokenizer : fixed()) use(tokenizer, input);
  try {
    (void)read_tokenizer_config(input.substr(0, zero));
  } catch (const Error&) {
  }
  try {
    const Tokenizer tokenizer = read_tokenizer_json({.tokenizer_json = input.substr(0, zero)});
    use(tokenizer, zero < size ? input.substr(zero + 1) : std::string_view("ab  <s> \xc3\xa9"));
  } catch (const Error& error) {
    check(error.code() == ErrorCode::format || error.code() == ErrorCode::unsupported);
  }
  return 0;
}
