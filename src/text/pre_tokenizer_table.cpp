#include "text/pre_tokenizer_table.hpp"

#include <algorithm>
#include <array>

namespace skald::inline v0::detail {
namespace {

// The expressions are those of the tokenizer definitions that the models were published with, as engines for GGUF
// files understand them. Steps apply one after the other, each inside the words of the step before.
// [^\P{L}a-z] reads "a letter, but not a to z".

// Contractions, then runs of letters, numbers and other characters with a space before them (GPT-2, 2019).
constexpr std::string_view gpt2_words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

#define SKALD_CONTRACTIONS R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))"
#define SKALD_TAIL R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define SKALD_HAN \
  R"(\x{3400}-\x{4dbf}\x{4e00}-\x{9fff}\x{f900}-\x{faff}\x{20000}-\x{2a6df}\x{2a700}-\x{2ebef}\x{2f800}-\x{2fa1f})"

// ~ counts neither as punctuation nor as a symbol here: the reference vectors are made that way.
#define SKALD_CJK_AWARE_WORDS                                                                     \
  R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|(?:~|[^\r\n\p{L}\p{P}\p{S}])?[\p{L}\p{M}]+)" \
  R"(| ?(?:(?!~)[\p{P}\p{S}])++[\r\n]*)" SKALD_TAIL

constexpr std::array fallback{
    SplitStep{SplitKind::matches, R"([\p{P}$+<=>^~|]+)"},
    SplitStep{SplitKind::matches, gpt2_words},
    SplitStep{SplitKind::matches, R"(\p{N}+)"},
    SplitStep{SplitKind::matches, R"([0-9][0-9][0-9])"},
};
constexpr std::array gpt2{SplitStep{SplitKind::matches, gpt2_words}};
constexpr std::array llama3{SplitStep{SplitKind::matches, SKALD_CONTRACTIONS
                                      R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)" SKALD_TAIL}};
constexpr std::array qwen2{SplitStep{
    SplitKind::matches, SKALD_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)" SKALD_TAIL}};
constexpr std::array bailingmoe{
    SplitStep{SplitKind::matches, SKALD_CONTRACTIONS
              R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"}};
constexpr std::array seed_coder{SplitStep{
    SplitKind::matches, SKALD_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+)" SKALD_TAIL}};
constexpr std::array starcoder{
    SplitStep{SplitKind::matches, R"(\p{N})"},
    SplitStep{SplitKind::matches, gpt2_words},
};
constexpr std::array falcon{
    SplitStep{SplitKind::matches, R"([\p{P}$+<=>^~|`]+)"},
    SplitStep{SplitKind::matches, gpt2_words},
    SplitStep{SplitKind::matches, R"([0-9][0-9][0-9])"},
};
// Scripts with upper and lower case, as ranges.
constexpr std::string_view cased_letters =
    R"(\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af})"
    R"(\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1})"
    R"(\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5})"
    R"(\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a})"
    R"(\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b})"
    R"(\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc})"
    R"(\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107})"
    R"(\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134})"
    R"(\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4})"
    R"(\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787})"
    R"(\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a})"
    R"(\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2})"
    R"(\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+)";
// U+0800 to U+9FA5 and Hangul, without the white space in between.
constexpr std::string_view asian_letters =
    R"([\x{800}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff})"
    R"(\x{3001}-\x{9fa5}\x{ac00}-\x{d7ff}]+)";
constexpr std::array deepseek_llm{
    SplitStep{SplitKind::matches, R"([\r\n])"},
    SplitStep{SplitKind::matches, cased_letters},
    SplitStep{SplitKind::matches, R"(\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3001}\x{3002}]+)"},
    // \s+$, but starting only where a run starts: otherwise every run is scanned once per character.
    SplitStep{SplitKind::matches, R"((?<![\s])\s++\z)"},
    SplitStep{SplitKind::matches, asian_letters},
    SplitStep{SplitKind::matches, R"(\p{N}+)"},
};
constexpr std::array deepseek_coder{
    SplitStep{SplitKind::matches, R"([\r\n])"},    SplitStep{SplitKind::matches, R"(\s?\p{L}+)"},
    SplitStep{SplitKind::matches, R"(\s?\p{P}+)"}, SplitStep{SplitKind::matches, asian_letters},
    SplitStep{SplitKind::matches, R"(\p{N})"},
};
constexpr std::array deepseek_v3{
    SplitStep{SplitKind::matches, R"(\p{N}{1,3})"},
    SplitStep{SplitKind::matches, R"([\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+)"},
    SplitStep{SplitKind::matches, SKALD_CJK_AWARE_WORDS},
};
constexpr std::array afmoe{
    SplitStep{SplitKind::number_groups, R"(\p{N}+)"},
    SplitStep{SplitKind::matches,
              R"([\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{8c48}-\x{faff}\x{3040}-\x{309f}\x{30a0}-\x{30ff})"
              R"(\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{e40}-\x{e7f}\x{e80}-\x{eff}\x{1780}-\x{17ff})"
              R"(\x{1000}-\x{109f}\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+)"},
    SplitStep{SplitKind::matches, SKALD_CJK_AWARE_WORDS},
};
constexpr std::string_view bloom_words = R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+)";
constexpr std::array bloom{SplitStep{SplitKind::matches, bloom_words}};
constexpr std::array viking{
    SplitStep{SplitKind::matches, bloom_words},
    SplitStep{SplitKind::matches, R"(\p{N})"},
};
// Upper case means "no a to z" and lower case "no A to Z", for letters of all scripts.
constexpr std::array tekken{SplitStep{
    SplitKind::matches, R"([^\r\n\p{L}\p{N}]?[^\P{L}a-z]*[^\P{L}A-Z]+|[^\r\n\p{L}\p{N}]?[^\P{L}a-z]+[^\P{L}A-Z]*|\p{N})"
                        R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*)" SKALD_TAIL}};
constexpr std::array gpt4o{SplitStep{SplitKind::matches,
                                     R"([^\r\n\p{L}\p{N}]?[^\P{L}a-z]*[^\P{L}A-Z]+(?:)" SKALD_CONTRACTIONS
                                     R"()?|[^\r\n\p{L}\p{N}]?[^\P{L}a-z]+[^\P{L}A-Z]*(?:)" SKALD_CONTRACTIONS
                                     R"()?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" SKALD_TAIL}};
constexpr std::array kimi_k2{SplitStep{SplitKind::matches, "[" SKALD_HAN R"(]+|[^\r\n\p{L}\p{N}]?[^\P{L})" SKALD_HAN
                                                           "]+(?:" SKALD_CONTRACTIONS
                                                           R"()?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)" SKALD_TAIL}};
constexpr std::array chameleon{
    SplitStep{SplitKind::matches, R"(<sentinel:[0-9]+>)"},    SplitStep{SplitKind::matches, R"(IMGIMG[A-I]{1,4}Z)"},
    SplitStep{SplitKind::matches, R"([\t\n]|    |  )"},       SplitStep{SplitKind::matches, R"(\p{N})"},
    SplitStep{SplitKind::matches, R"([\p{P}!-/:-@\[-`{-~])"}, SplitStep{SplitKind::matches, gpt2_words},
};
constexpr std::array superbpe{
    SplitStep{SplitKind::matches, R"(\p{N}+)"},
    SplitStep{SplitKind::thousands, ""},
};

#undef SKALD_CONTRACTIONS
#undef SKALD_TAIL
#undef SKALD_HAN
#undef SKALD_CJK_AWARE_WORDS

using B = SplitBehaviour;
constexpr PreTokenizerTraits plain{};
constexpr PreTokenizerTraits keeps_spaces{.clean_up_spaces = false};
constexpr PreTokenizerTraits llama3_traits{.add_bos = true, .whole_words = true};
constexpr PreTokenizerTraits tekken_traits{.add_bos = true, .whole_words = true, .clean_up_spaces = false};
constexpr PreTokenizerTraits chameleon_traits{.add_bos = true, .clean_up_spaces = false};

constexpr PreTokenizerEntry entries[] = {
    {"default", B::fallback, plain},
    {"llama3", B::llama3, llama3_traits},
    {"llama-v3", B::llama3, llama3_traits},
    {"llama-bpe", B::llama3, llama3_traits},
    {"falcon3", B::llama3, llama3_traits},
    {"falcon-h1", B::llama3, llama3_traits},
    {"pixtral", B::llama3, llama3_traits},
    {"midm-2.0", B::llama3, llama3_traits},
    {"lfm2", B::llama3, llama3_traits},
    {"dbrx", B::llama3, plain},
    {"smaug-bpe", B::llama3, plain},
    {"glm4", B::llama3, plain},
    {"chatglm-bpe", B::llama3, plain},
    {"deepseek-llm", B::deepseek_llm, keeps_spaces},
    {"deepseek-coder", B::deepseek_coder, keeps_spaces},
    {"deepseek-v3", B::deepseek_v3, keeps_spaces},
    {"hunyuan-dense", B::deepseek_v3, keeps_spaces},
    {"falcon", B::falcon, plain},
    {"starcoder", B::starcoder, plain},
    {"refact", B::starcoder, plain},
    {"command-r", B::starcoder, keeps_spaces},
    {"smollm", B::starcoder, keeps_spaces},
    {"codeshell", B::starcoder, plain},
    {"exaone", B::starcoder, plain},
    {"minerva-7b", B::starcoder, plain},
    {"gpt-2", B::gpt2, plain},
    {"phi-2", B::gpt2, plain},
    {"jina-es", B::gpt2, plain},
    {"jina-de", B::gpt2, plain},
    {"jina-v2-es", B::gpt2, plain},
    {"jina-v2-de", B::gpt2, plain},
    {"jina-v1-en", B::gpt2, plain},
    {"jina-v2-code", B::gpt2, plain},
    {"roberta-bpe", B::gpt2, plain},
    {"gigachat", B::gpt2, plain},
    {"a.x-4.0", B::gpt2, plain},
    {"mellum", B::gpt2, plain},
    {"exaone4", B::gpt2, plain},
    {"mpt", B::gpt2, plain},
    {"olmo", B::gpt2, plain},
    {"jais", B::gpt2, plain},
    {"trillion", B::gpt2, keeps_spaces},
    {"granite-docling", B::gpt2, keeps_spaces},
    {"qwen2", B::qwen2, keeps_spaces},
    {"deepseek-r1-qwen", B::qwen2, keeps_spaces},
    {"megrez", B::qwen2, plain},
    {"stablelm2", B::qwen2, plain},
    {"hunyuan", B::qwen2, keeps_spaces},
    {"grok-2", B::qwen2, keeps_spaces},
    {"poro-chat", B::bloom, keeps_spaces},
    {"bloom", B::bloom, plain},
    {"gpt3-finnish", B::bloom, plain},
    {"viking", B::viking, keeps_spaces},
    {"tekken", B::tekken, tekken_traits},
    {"gpt-4o", B::gpt4o, keeps_spaces},
    {"llama4", B::gpt4o, keeps_spaces},
    {"minimax-m2", B::gpt4o, keeps_spaces},
    {"chameleon", B::chameleon, chameleon_traits},
    {"superbpe", B::superbpe, keeps_spaces},
    {"bailingmoe", B::bailingmoe, keeps_spaces},
    {"bailingmoe2", B::bailingmoe, keeps_spaces},
    {"llada-moe", B::bailingmoe, keeps_spaces},
    {"seed-coder", B::seed_coder, keeps_spaces},
    {"kimi-k2", B::kimi_k2, keeps_spaces},
    {"afmoe", B::afmoe, keeps_spaces},
};

}  // namespace

const PreTokenizerEntry* find_pre_tokenizer(std::string_view name) noexcept {
  const auto* found = std::ranges::find(entries, name, &PreTokenizerEntry::name);
  return found == std::ranges::end(entries) ? nullptr : found;
}

std::string pre_tokenizer_names() {
  std::string names;
  for (const PreTokenizerEntry& entry : entries) names.append(names.empty() ? "" : ", ").append(entry.name);
  return names;
}

std::span<const SplitStep> pre_tokenizer_steps(SplitBehaviour behaviour) noexcept {
  switch (behaviour) {
    case B::fallback: return fallback;
    case B::gpt2: return gpt2;
    case B::llama3: return llama3;
    case B::qwen2: return qwen2;
    case B::starcoder: return starcoder;
    case B::falcon: return falcon;
    case B::deepseek_llm: return deepseek_llm;
    case B::deepseek_coder: return deepseek_coder;
    case B::deepseek_v3: return deepseek_v3;
    case B::bloom: return bloom;
    case B::viking: return viking;
    case B::tekken: return tekken;
    case B::gpt4o: return gpt4o;
    case B::chameleon: return chameleon;
    case B::superbpe: return superbpe;
    case B::bailingmoe: return bailingmoe;
    case B::seed_coder: return seed_coder;
    case B::kimi_k2: return kimi_k2;
    case B::afmoe: return afmoe;
  }
  return {};
}

}  // namespace skald::inline v0::detail
