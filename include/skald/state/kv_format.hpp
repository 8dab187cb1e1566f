#pragma once

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
static_assert(KvFormat<KvF32> && KvFormat<KvF16> && KvFormat<KvBF16> && KvFormat<KvQ8> && KvFormat<KvQ4>);

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
class SKALD_API AnyKvFormat {
 public:
  AnyKvFormat() : AnyKvFormat(KvF16{}) {}
  template <class F>
    requires(!std::same_as<F, AnyKvFormat>) && KvFormat<F>
  AnyKvFormat(const F& format) : dtype_(format.dtype()) {}  // NOLINT(google-explicit-constructor)
  /// Formats are "f32", "f16", "bf16", "q8_0" and "q4_0". @throws UnsupportedError listing these; UsageError for rules that
  /// are none.
  explicit AnyKvFormat(std::string_view spec);
  /// Of what no rule is about.
  [[nodiscard]] DType dtype() const noexcept { return dtype_; }
  /// Of a KV head of a layer.
  [[nodiscard]] DType dtype(std::int32_t layer, std::int32_t head) const noexcept;
  /// The layer whose keys and values a layer's queries read: itself, unless a rule says otherwise.
  [[nodiscard]] std::int32_t source(std::int32_t layer) const noexcept;
  /// Where layers read a later one, a token needs what that layer made of the tokens before: 0, the default, computes tokens
  /// one by one, which is exact; n computes those of a batch together, n times over, each time with the keys and values of
  /// the time before. That is exact from as many iterations on as there are tokens, before that an approximation.
  [[nodiscard]] std::int32_t iterations() const noexcept { return iterations_; }
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
  static std::int32_t parse_number(std::string_view text, std::string_view rule);
  static std::vector<Range> parse_ranges(std::string_view text, std::string_view rule);
  static DType parse(std::string_view name);
  DType dtype_;
  std::vector<Rule> rules_{};
  std::int32_t iterations_ = 0;
};
static_assert(KvFormat<AnyKvFormat>);

}  // namespace skald::inline v0
