#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <skald/core/dtype.hpp>
#include <skald/core/error.hpp>
#include <skald/kernels/kv_layout.hpp>

namespace skald::inline v0 {

/// How keys and values are stored. `dtype()` names the element format of a page.
template <class F>
concept KvFormat = std::copyable<F> && requires(const F& format) {
  { format.dtype() } -> std::same_as<DType>;
};

/// 32-bit floats: the format to compare others with.
struct KvF32 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::f32; }
};
/// IEEE binary16: half the bytes, the default.
struct KvF16 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::f16; }
};
/// bfloat16: half the bytes, full range of exponents.
struct KvBF16 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::bf16; }
};
/// Eight bits per element and a binary16 scale per token and 32 elements: about half the bytes of f16.
struct KvQ8 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::q8_0; }
};
/// Four bits per element and a binary16 scale per token and 32 elements: about a quarter of the bytes of f16.
struct KvQ4 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::q4_0; }
};
/// Four bits per element, a binary16 scale and a binary16 minimum per token and 32 elements: the error is at most half a step.
struct KvQ4Over {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::q4_1; }
};
/// Any of these in slow memory, of which a token reads `tokens`, in chunks of so many tokens per layer. @see AnyKvFormat
struct KvChunks {
  DType type = DType::f16;
  std::int32_t tokens = 0;
  std::vector<std::int32_t> sizes{};  ///< of layer 0, 1, ..., the last one of all that follow; empty: a page. As from measure_chunk_tokens
  [[nodiscard]] DType dtype() const noexcept { return type; }
};
static_assert(KvFormat<KvF32> && KvFormat<KvF16> && KvFormat<KvBF16> && KvFormat<KvQ8> && KvFormat<KvQ4> && KvFormat<KvQ4Over>);

/// The type-erased twin, chosen by name, for each layer and KV head if wanted.
///
/// A specification is a format, then rules, of which later ones come before earlier ones:
///   "q8_0"                            all keys and values
///   "q4_0;layers 0-1=f16"             the first two layers differ
///   "q4_0;heads 0,3=q8_0"             two KV heads of every layer
///   "f16;layers 2-9 heads 1=q4_0"     one KV head of some layers
///   "f16;layers 0-6=layer 7"          layers without keys and values of their own: their queries read those of layer 7
///                                     (LCKV, Wu and Tu 2024, arXiv 2405.10637)
///   "f16;layers 0-6=layer 7;iterations=3"   see `iterations`
///   "q4_0;residual=64"                the newest 64 tokens (up to a page more) stay f16; "residual=64 f32": f32
///   "f16;values=128"                  values in slow memory, of which each head of a token fetches the 128 that weigh most
///   "f16;chunks=256"                  keys and values in slow memory, of which a token reads 256 tokens: the chunks whose
///                                     summaries promise most (LeoAM, Sun et al. 2025, arXiv 2506.20187)
///   "f16;chunks=256 of 64,32"         chunks of 64 tokens in layer 0, of 32 in all others; a page if nothing is said
///   "f16;segments=prompt"             the prompt in pages of its own, which forks share to the last token
class SKALD_API AnyKvFormat {
 public:
  AnyKvFormat() : AnyKvFormat(KvF16{}) {}
  template <class F>
    requires(!std::same_as<F, AnyKvFormat>) && KvFormat<F>
  AnyKvFormat(const F& format) : dtype_(format.dtype()) {}  // NOLINT(google-explicit-constructor)
  /// @throws UsageError if no token is read or chunks are empty.
  AnyKvFormat(const KvChunks& format);  // NOLINT(google-explicit-constructor)
  /// Formats are "f32", "f16", "bf16", "q8_0", "q4_0" and "q4_1". @throws UnsupportedError listing these; UsageError for rules that
  /// are none.
  explicit AnyKvFormat(std::string_view spec);
  /// Of what no rule is about.
  [[nodiscard]] DType dtype() const noexcept { return dtype_; }
  /// Of a KV head of a layer.
  [[nodiscard]] DType dtype(std::int32_t layer, std::int32_t head) const noexcept;
  /// The layer whose keys and values a layer's queries read: itself, unless a rule says otherwise.
  [[nodiscard]] std::int32_t source(std::int32_t layer) const noexcept;
  /// True if some layers may read another's.
  [[nodiscard]] bool shares_layers() const noexcept {
    return std::any_of(rules_.begin(), rules_.end(), [](const Rule& rule) { return rule.source >= 0; });
  }
  /// Where layers read a later one, a token needs what that layer made of the tokens before: 0, the default, computes tokens
  /// one by one, which is exact; n computes those of a batch together, n times over, each time with the keys and values of
  /// the time before. That is exact from as many iterations on as there are tokens, before that an approximation.
  [[nodiscard]] std::int32_t iterations() const noexcept { return iterations_; }
  /// Tokens at the end that stay as they are where the format is coded; 0: none. A page is encoded when so many full ones
  /// follow, counted in tokens: a multiple of the page's.
  [[nodiscard]] std::int64_t residual() const noexcept { return residual_; }
  /// What they are stored as: f32, f16 or bf16.
  [[nodiscard]] DType residual_dtype() const noexcept { return residual_dtype_; }
  /// Values lie in slow memory, and a token fetches so many for each head; 0: they lie beside the keys.
  [[nodiscard]] std::int64_t fetched_values() const noexcept { return fetched_values_; }
  /// Keys and values lie in slow memory, and a token that sees more than so many reads the chunks that promise most, this many
  /// tokens at the most; 0: no.
  [[nodiscard]] std::int64_t read_tokens() const noexcept { return read_tokens_; }
  /// Tokens of a layer's chunks; 0: a page.
  [[nodiscard]] std::int32_t chunk_tokens(std::int32_t layer) const noexcept {
    if (chunk_tokens_.empty()) return 0;
    return chunk_tokens_[std::min(static_cast<std::size_t>(layer), chunk_tokens_.size() - 1)];
  }
  /// True if prompt and answer have pages of their own.
  [[nodiscard]] bool segments() const noexcept { return segments_; }
  /// The specification in one spelling.
  [[nodiscard]] std::string name() const;
  /// @throws IncompatibleError if a rule is about a layer or head that a model of so many does not have; `kv_heads` is the largest
  /// number of any layer.
  void check(std::int32_t layers, std::int32_t kv_heads) const;

 private:
  struct Range {
    std::int32_t first = 0;
    std::int32_t last = 0;
    friend bool operator==(const Range&, const Range&) = default;
  };
  struct Rule {
    std::vector<Range> layers{};  // empty: all
    std::vector<Range> heads{};   // empty: all
    DType dtype = DType::f16;
    std::int32_t source = -1;  // if not negative, the rule is about this and not about a type
  };
  void add_rule(std::string_view text);
  void parse_chunks(std::string_view text, std::string_view rule);
  static std::int32_t parse_number(std::string_view text, std::string_view rule);
  static std::vector<Range> parse_ranges(std::string_view text, std::string_view rule);
  static DType parse(std::string_view name);
  DType dtype_;
  std::vector<Rule> rules_{};
  std::int32_t iterations_ = 0;
  std::int32_t residual_ = 0;
  std::int32_t fetched_values_ = 0;
  std::int32_t read_tokens_ = 0;
  std::vector<std::int32_t> chunk_tokens_{};
  DType residual_dtype_ = DType::f16;
  bool segments_ = false;
};
static_assert(KvFormat<AnyKvFormat>);

}  // namespace skald::inline v0
