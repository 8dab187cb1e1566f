// Encoders of the codebook and ternary formats.
#include <skald/quant/low_bit_formats.hpp>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include <skald/core/half.hpp>

#include "quant/codebooks.hpp"
#include "quant/fit.hpp"

namespace skald::inline v0::quant {

namespace {

// --- Codebooks of whole groups: iq1, iq2, iq3 ---

constexpr std::size_t near_entries = 8;  ///< entries tried for each group

/// A codebook and, for each combination of levels, the entries nearest to it.
struct Codebook {
  int width;                    ///< elements of an entry
  int bits;                     ///< of each element's code
  int levels;                   ///< values an element may have
  std::array<int, 8> values;    ///< of the levels, ascending
  const std::uint16_t* entries;
  std::size_t count;
  const std::uint16_t* near;  ///< near_entries for each combination; element i counts levels^i
};

int entry_value(const Codebook& book, std::size_t entry, int i) noexcept {
  const int code = (book.entries[entry] >> (book.bits * i)) & ((1 << book.bits) - 1);
  return book.values[static_cast<std::size_t>(code)];
}

/// For every combination of levels the nearest entries, nearest first, lower entries first among equals.
void find_near(const Codebook& book, std::uint16_t* near) noexcept {
  std::size_t combinations = 1;
  for (int i = 0; i < book.width; ++i) combinations *= static_cast<std::size_t>(book.levels);
  // By element and level the squared distance is a table lookup.
  int squares[8][8];
  for (int a = 0; a < book.levels; ++a)
    for (int b = 0; b < book.levels; ++b) {
      const int difference = book.values[static_cast<std::size_t>(a)] - book.values[static_cast<std::size_t>(b)];
      squares[a][b] = difference * difference;
    }
  for (std::size_t combination = 0; combination < combinations; ++combination) {
    int level[8] = {};
    std::size_t rest = combination;
    for (int i = 0; i < book.width; ++i, rest /= static_cast<std::size_t>(book.levels))
      level[i] = static_cast<int>(rest % static_cast<std::size_t>(book.levels));
    int best[near_entries];
    std::uint16_t* list = near + near_entries * combination;
    std::size_t found = 0;
    for (std::size_t e = 0; e < book.count; ++e) {
      int distance = 0;
      for (int i = 0; i < book.width; ++i)
        distance += squares[level[i]][(book.entries[e] >> (book.bits * i)) & ((1 << book.bits) - 1)];
      if (found == near_entries && distance >= best[found - 1]) continue;
      std::size_t at = found < near_entries ? found++ : near_entries - 1;
      for (; at > 0 && best[at - 1] > distance; --at) {
        best[at] = best[at - 1];
        list[at] = list[at - 1];
      }
      best[at] = distance;
      list[at] = static_cast<std::uint16_t>(e);
    }
  }
}

/// The codebook with its neighbours, made on first use.
template <std::size_t Combinations>
struct NearTable {
  std::array<std::uint16_t, near_entries * Combinations> near;
  explicit NearTable(const Codebook& book) noexcept { find_near(book, near.data()); }
};
template <std::size_t Count>
Codebook pairs_book(const std::uint16_t (&entries)[Count]) noexcept {
  return {8, 2, 3, {codebooks::iq2_values[0], codebooks::iq2_values[1], codebooks::iq2_values[2]}, entries,
          Count - 1, nullptr};
}
Codebook with_near(Codebook book, const std::uint16_t* near) noexcept {
  book.near = near;
  return book;
}
const Codebook& iq2_xxs_book() noexcept {
  static const NearTable<6561> table(pairs_book(codebooks::iq2_xxs_grid));
  static const Codebook book = with_near(pairs_book(codebooks::iq2_xxs_grid), table.near.data());
  return book;
}
const Codebook& iq2_xs_book() noexcept {
  static const NearTable<6561> table(pairs_book(codebooks::iq2_xs_grid));
  static const Codebook book = with_near(pairs_book(codebooks::iq2_xs_grid), table.near.data());
  return book;
}
const Codebook& iq2_s_book() noexcept {
  static const NearTable<6561> table(pairs_book(codebooks::iq2_s_grid));
  static const Codebook book = with_near(pairs_book(codebooks::iq2_s_grid), table.near.data());
  return book;
}
const Codebook& iq1_book() noexcept {
  static const Codebook bare{8, 2, 3, {-8, 0, 8}, codebooks::iq1_grid, 2048, nullptr};
  static const NearTable<6561> table(bare);
  static const Codebook book = with_near(bare, table.near.data());
  return book;
}
const Codebook& iq3_xxs_book() noexcept {
  static const Codebook bare{4, 3, 8, {4, 12, 20, 28, 36, 44, 52, 62}, codebooks::iq3_xxs_grid, 256, nullptr};
  static const NearTable<4096> table(bare);
  static const Codebook book = with_near(bare, table.near.data());
  return book;
}
const Codebook& iq3_s_book() noexcept {
  static const Codebook bare{4, 3, 8, {1, 3, 5, 7, 9, 11, 13, 15}, codebooks::iq3_s_grid, 512, nullptr};
  static const NearTable<4096> table(bare);
  static const Codebook book = with_near(bare, table.near.data());
  return book;
}

enum class Signs { free, even, shift };

/// What a format does with a codebook.
struct GroupRules {
  const Codebook& book;
  std::size_t sub_size;  ///< elements per scale
  int sub_levels;        ///< scales are 2 s + 1, s below this
  float unit;            ///< value = scale * unit * (2 s + 1) * weight
  Signs signs;           ///< a sign per element, an even number of them per eight, or a shift of all elements by +-1
  std::size_t shift_size = 8;  ///< elements that share the shift
  float top = 0;               ///< largest weight
};

/// A coded super-block.
struct GroupCodes {
  std::uint16_t scale = 0;
  int subs[16] = {};
  std::uint16_t entries[64] = {};
  std::uint8_t signs[32] = {};    ///< per eight elements
  bool shift_down[32] = {};       ///< per eight elements
};

/// Sums of a coding with weights q: the best scale is xq / qq.
struct Coding {
  double xq = 0;
  double qq = 0;
  double error = 0;
};

struct Nearest {
  std::size_t entry;
  float error;
};

/// Nearest entry to `width` scaled targets.
Nearest nearest_entry(const Codebook& book, const float* target, const float* w) noexcept {
  std::size_t combination = 0;
  std::size_t place = 1;
  for (int i = 0; i < book.width; ++i) {
    std::size_t level = 0;
    for (std::size_t l = 1; l < static_cast<std::size_t>(book.levels); ++l)
      level += 2 * target[i] > static_cast<float>(book.values[l - 1] + book.values[l]) ? 1 : 0;
    combination += place * level;
    place *= static_cast<std::size_t>(book.levels);
  }
  Nearest best{0, 0};
  for (std::size_t n = 0; n < near_entries; ++n) {
    const std::size_t entry = book.near[near_entries * combination + n];
    float error = 0;
    for (int i = 0; i < book.width; ++i) {
      const float difference = target[i] - static_cast<float>(entry_value(book, entry, i));
      error += w[i] * (difference * difference);
    }
    if (n == 0 || error < best.error) best = {entry, error};
  }
  return best;
}

/// Signs of eight elements, and their magnitudes; with an even number of signs the magnitude that costs least is negative.
unsigned split_signs(const float* x, const float* w, Signs rule, float* magnitude) noexcept {
  unsigned signs = 0;
  for (unsigned i = 0; i < 8; ++i) {
    magnitude[i] = std::fabs(x[i]);
    signs |= x[i] < 0 ? 1U << i : 0U;
  }
  if (rule == Signs::even && std::popcount(signs) % 2 != 0) {
    unsigned least = 0;
    for (unsigned i = 1; i < 8; ++i)
      if (w[i] * magnitude[i] * magnitude[i] < w[least] * magnitude[least] * magnitude[least]) least = i;
    signs ^= 1U << least;
    magnitude[least] = -magnitude[least];
  }
  return signs;
}

/// Codes eight elements, the group `at`, of which `shift` is what all weights are moved by (Signs::shift only).
void code_eight(const GroupRules& rules, const float* x, const float* w, float inverse, float shift, std::size_t at,
                GroupCodes& out, Coding& coding) noexcept {
  const Codebook& book = rules.book;
  float magnitude[8];
  unsigned signs = 0;
  if (rules.signs == Signs::shift) std::memcpy(magnitude, x, sizeof magnitude);
  else signs = split_signs(x, w, rules.signs, magnitude);
  float target[8];
  for (int i = 0; i < 8; ++i) target[i] = magnitude[i] * inverse - shift;
  out.signs[at] = static_cast<std::uint8_t>(signs);
  out.shift_down[at] = shift < 0;
  const int parts = 8 / book.width;
  for (int part = 0; part < parts; ++part) {
    const int first = part * book.width;
    const auto nearest = nearest_entry(book, target + first, w + first);
    out.entries[at * static_cast<std::size_t>(parts) + static_cast<std::size_t>(part)] =
        static_cast<std::uint16_t>(nearest.entry);
    coding.error += static_cast<double>(nearest.error);
    for (int i = 0; i < book.width; ++i) {
      const double q = entry_value(book, nearest.entry, i) + static_cast<double>(shift);
      coding.xq += w[first + i] * q * static_cast<double>(magnitude[first + i]);
      coding.qq += w[first + i] * q * q;
    }
  }
}

/// Codes elements [begin, begin + n) with the given inverse of a weight's value.
Coding code_range(const GroupRules& rules, const float* x, const float* w, std::size_t begin, std::size_t n,
                  float inverse, GroupCodes& out) noexcept {
  Coding total;
  if (rules.signs != Signs::shift) {
    for (std::size_t i = begin; i < begin + n; i += 8)
      code_eight(rules, x + i, w + i, inverse, 0.0F, i / 8, out, total);
    return total;
  }
  for (std::size_t i = begin; i < begin + n; i += rules.shift_size) {
    GroupCodes down = out;
    Coding up_sums;
    Coding down_sums;
    for (std::size_t k = i; k < i + rules.shift_size; k += 8) {
      code_eight(rules, x + k, w + k, inverse, 1.0F, k / 8, out, up_sums);
      code_eight(rules, x + k, w + k, inverse, -1.0F, k / 8, down, down_sums);
    }
    if (down_sums.error < up_sums.error) {
      out = down;
      up_sums = down_sums;
    }
    total.xq += up_sums.xq;
    total.qq += up_sums.qq;
    total.error += up_sums.error;
  }
  return total;
}

/// Value of a weight of 1 that suits a sub-block best, >= 0.
double wanted_step(const GroupRules& rules, const float* x, const float* w, std::size_t begin) noexcept {
  float top = 0;
  for (std::size_t i = begin; i < begin + rules.sub_size; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  if (top < 0x1p-60F) return 0;
  double best_gain = 0;
  double best = 0;
  GroupCodes scratch;
  // Where the largest element lands, relative to the largest weight: from the smallest weights (for nearly constant
  // groups, which not every book has at its end) to deep clipping.
  constexpr float places[] = {0.067F, 0.25F, 0.45F, 0.6F,   0.7F,  0.825F, 0.95F, 1.075F,
                              1.2F,   1.325F, 1.45F, 1.575F, 1.7F, 1.825F, 1.95F, 2.075F};
  for (const float place : places) {
    const float inverse = rules.top * place / top;
    const auto coding = code_range(rules, x, w, begin, rules.sub_size, inverse, scratch);
    if (coding.qq > 0 && coding.xq > 0 && coding.xq * coding.xq > best_gain * coding.qq) {
      best_gain = coding.xq * coding.xq / coding.qq;
      best = coding.xq / coding.qq;
    }
  }
  return best;
}

/// Chooses the sub-scales near the wanted steps for a given block scale, and all codes. Returns the squared error.
Coding choose_groups(const GroupRules& rules, const float* x, const float* w, const double* wanted,
                     GroupCodes& out) noexcept {
  const double unit = static_cast<double>(f16_to_f32(out.scale)) * static_cast<double>(rules.unit);
  Coding total;
  for (std::size_t j = 0; j < super_block_elements / rules.sub_size; ++j) {
    const double ideal = unit > 0 ? (wanted[j] / unit - 1) / 2 : 0;
    const int middle = ideal < 0 ? 0 : ideal > rules.sub_levels ? rules.sub_levels : static_cast<int>(ideal + 0.5);
    bool any = false;
    Coding best;
    GroupCodes best_codes;
    for (int s = middle - 1; s <= middle + 1; ++s) {
      if (s < 0 || s >= rules.sub_levels) continue;
      const double step = unit * (2 * s + 1);
      GroupCodes codes = out;
      codes.subs[j] = s;
      auto coding = code_range(rules, x, w, rules.sub_size * j, rules.sub_size,
                               step > 0 ? static_cast<float>(1 / step) : 0.0F, codes);
      coding.error *= step * step;
      // Sums in units of the block's scale.
      const double factor = (2 * s + 1) * static_cast<double>(rules.unit);
      coding.xq *= factor;
      coding.qq *= factor * factor;
      if (any && coding.error >= best.error) continue;
      any = true;
      best = coding;
      best_codes = codes;
    }
    out = best_codes;
    total.xq += best.xq;
    total.qq += best.qq;
    total.error += best.error;
  }
  return total;
}

GroupCodes encode_groups(const GroupRules& rules, const float* x, const float* importance) noexcept {
  float weights[super_block_elements];
  fit::load_weights(importance, super_block_elements, weights);
  double wanted[16] = {};
  double largest = 0;
  for (std::size_t j = 0; j < super_block_elements / rules.sub_size; ++j) {
    wanted[j] = wanted_step(rules, x, weights, rules.sub_size * j);
    largest = wanted[j] > largest ? wanted[j] : largest;
  }
  GroupCodes best;
  const double scale = largest / ((2 * rules.sub_levels - 1) * static_cast<double>(rules.unit));
  best.scale = f32_to_f16(static_cast<float>(scale < 65504 ? scale : 65504));
  auto best_sums = choose_groups(rules, x, weights, wanted, best);
  for (int round = 0; round < 2; ++round) {
    const double refitted = best_sums.qq > 0 ? best_sums.xq / best_sums.qq : 0;
    if (!(refitted > 0) || refitted > 65504) break;
    GroupCodes next;
    next.scale = f32_to_f16(static_cast<float>(refitted));
    const auto sums = choose_groups(rules, x, weights, wanted, next);
    if (!(sums.error < best_sums.error)) break;
    best_sums = sums;
    best = next;
  }
  return best;
}

void put_nibbles(const int* subs, std::size_t count, std::uint8_t* out) noexcept {
  for (std::size_t j = 0; j < count; j += 2) out[j / 2] = static_cast<std::uint8_t>(subs[j] | subs[j + 1] << 4);
}
void put_word(std::uint32_t word, void* bytes, std::size_t index) noexcept {
  std::memcpy(static_cast<std::uint8_t*>(bytes) + 4 * index, &word, 4);
}
/// Four sign groups of seven bits and the scale of 32 elements.
std::uint32_t signs_and_scale(const GroupCodes& codes, std::size_t j) noexcept {
  std::uint32_t word = static_cast<std::uint32_t>(codes.subs[j]) << 28;
  for (std::size_t k = 0; k < 4; ++k) word |= static_cast<std::uint32_t>(codes.signs[4 * j + k] & 127) << (7 * k);
  return word;
}

// --- Sixteen values: iq4_nl, iq4_xs, mxfp4 ---

/// Code of the value nearest to a target. `values` ascend.
int code_of_sixteen(const std::int8_t* values, float target) noexcept {
  int code = 0;
  for (int i = 1; i < 16; ++i) code += 2 * target > static_cast<float>(values[i - 1] + values[i]) ? 1 : 0;
  return code;
}

double error_of_sixteen(const float* x, const float* w, float scale) noexcept {
  const float inverse = fit::inverse_of(scale);
  double error = 0;
  for (std::size_t i = 0; i < 32; ++i) {
    const int code = code_of_sixteen(codebooks::iq4_values, x[i] * inverse);
    const float difference = scale * static_cast<float>(codebooks::iq4_values[code]) - x[i];
    error += static_cast<double>(w[i] * (difference * difference));
  }
  return error;
}

/// Scale of 32 elements with the least squared error; its sign decides which end the largest magnitude takes.
double iq4_scale(const float* x, const float* w) noexcept {
  float extreme = 0;
  for (std::size_t i = 0; i < 32; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  if (std::fabs(extreme) < 0x1p-100F) return 0;
  double best_gain = 0;
  double best = 0;
  for (const float end : {-127.0F, 113.0F}) {
    for (int step = -6; step <= 10; ++step) {
      const float inverse = end * (1 + 0.025F * static_cast<float>(step)) / extreme;
      double xq = 0;
      double qq = 0;
      for (std::size_t i = 0; i < 32; ++i) {
        const float q = codebooks::iq4_values[code_of_sixteen(codebooks::iq4_values, x[i] * inverse)];
        xq += static_cast<double>(w[i] * q * x[i]);
        qq += static_cast<double>(w[i] * q * q);
      }
      if (qq > 0 && xq * xq > best_gain * qq) {
        best_gain = xq * xq / qq;
        best = xq / qq;
      }
    }
  }
  return best;
}

void put_sixteen(const float* x, float scale, std::uint8_t* packed) noexcept {
  const float inverse = fit::inverse_of(scale);
  for (std::size_t i = 0; i < 16; ++i)
    packed[i] = static_cast<std::uint8_t>(code_of_sixteen(codebooks::iq4_values, x[i] * inverse) |
                                          code_of_sixteen(codebooks::iq4_values, x[i + 16] * inverse) << 4);
}

std::uint16_t finite_half(double value) noexcept {
  const double limited = value > 65504 ? 65504 : value < -65504 ? -65504 : value;
  return f32_to_f16(static_cast<float>(limited));
}

/// Chooses the sub-scales of an iq4_xs block for its scale; returns the squared error and refits through `xq`, `qq`.
Coding choose_iq4_subs(const float* x, const float* w, const double* wanted, float scale, int* subs) noexcept {
  Coding total;
  for (std::size_t j = 0; j < 8; ++j) {
    const double ideal = scale != 0 ? wanted[j] / static_cast<double>(scale) : 0;
    const int middle = ideal < -32 ? -32 : ideal > 31 ? 31 : static_cast<int>(std::nearbyint(ideal));
    double best = -1;
    for (int s = middle - 1; s <= middle + 1; ++s) {
      if (s < -32 || s > 31) continue;
      const double error = error_of_sixteen(x + 32 * j, w + 32 * j, scale * static_cast<float>(s));
      if (best >= 0 && error >= best) continue;
      best = error;
      subs[j] = s;
    }
    total.error += best;
    const float inverse = fit::inverse_of(scale * static_cast<float>(subs[j]));
    for (std::size_t i = 32 * j; i < 32 * (j + 1); ++i) {
      const double q = static_cast<double>(subs[j]) *
                       codebooks::iq4_values[code_of_sixteen(codebooks::iq4_values, x[i] * inverse)];
      total.xq += w[i] * q * static_cast<double>(x[i]);
      total.qq += w[i] * q * q;
    }
  }
  return total;
}

// --- Ternary ---

/// Scale of ternary codes.
std::uint16_t ternary_scale(const float* x, const float* importance) noexcept {
  float weights[super_block_elements];
  fit::load_weights(importance, super_block_elements, weights);
  const double scale = std::fabs(fit::symmetric_scale(x, weights, super_block_elements, -1, 1));
  return finite_half(scale);
}

}  // namespace

void IQ2_XXS::encode(const float* x, Block* out, const float* importance) noexcept {
  const GroupRules rules{iq2_xxs_book(), 32, 16, 0.125F, Signs::even, 8, 43};
  const auto codes = encode_groups(rules, x, importance);
  out->scale = codes.scale;
  for (std::size_t j = 0; j < 8; ++j) {
    std::uint32_t indices = 0;
    for (std::size_t k = 0; k < 4; ++k) indices |= static_cast<std::uint32_t>(codes.entries[4 * j + k]) << (8 * k);
    put_word(indices, out->codes, 2 * j);
    put_word(signs_and_scale(codes, j), out->codes, 2 * j + 1);
  }
}

void IQ2_XS::encode(const float* x, Block* out, const float* importance) noexcept {
  const GroupRules rules{iq2_xs_book(), 16, 16, 0.125F, Signs::even, 8, 43};
  const auto codes = encode_groups(rules, x, importance);
  out->scale = codes.scale;
  for (std::size_t k = 0; k < 32; ++k)
    out->codes[k] = static_cast<std::uint16_t>(codes.entries[k] | (codes.signs[k] & 127) << 9);
  put_nibbles(codes.subs, 16, out->scales);
}

void IQ2_S::encode(const float* x, Block* out, const float* importance) noexcept {
  const GroupRules rules{iq2_s_book(), 16, 16, 0.125F, Signs::free, 8, 43};
  const auto codes = encode_groups(rules, x, importance);
  std::memset(out, 0, sizeof(*out));
  out->scale = codes.scale;
  for (std::size_t k = 0; k < 32; ++k) {
    out->codes[k] = static_cast<std::uint8_t>(codes.entries[k] & 255);
    out->signs[k] = codes.signs[k];
    auto& high = out->high_bits[k / 4];
    high = static_cast<std::uint8_t>(high | (codes.entries[k] >> 8) << (2 * (k % 4)));
  }
  put_nibbles(codes.subs, 16, out->scales);
}

void IQ3_XXS::encode(const float* x, Block* out, const float* importance) noexcept {
  const GroupRules rules{iq3_xxs_book(), 32, 16, 0.25F, Signs::even, 8, 62};
  const auto codes = encode_groups(rules, x, importance);
  out->scale = codes.scale;
  for (std::size_t k = 0; k < 64; ++k) out->codes[k] = static_cast<std::uint8_t>(codes.entries[k]);
  for (std::size_t j = 0; j < 8; ++j) put_word(signs_and_scale(codes, j), out->signs_and_scales, j);
}

void IQ3_S::encode(const float* x, Block* out, const float* importance) noexcept {
  const GroupRules rules{iq3_s_book(), 32, 16, 1.0F, Signs::free, 8, 15};
  const auto codes = encode_groups(rules, x, importance);
  std::memset(out, 0, sizeof(*out));
  out->scale = codes.scale;
  for (std::size_t k = 0; k < 64; ++k) {
    out->codes[k] = static_cast<std::uint8_t>(codes.entries[k] & 255);
    auto& high = out->high_bits[k / 8];
    high = static_cast<std::uint8_t>(high | (codes.entries[k] >> 8) << (k % 8));
  }
  std::memcpy(out->signs, codes.signs, sizeof out->signs);
  put_nibbles(codes.subs, 8, out->scales);
}

void IQ1_S::encode(const float* x, Block* out, const float* importance) noexcept {
  const GroupRules rules{iq1_book(), 32, 8, 0.125F, Signs::shift, 32, 9};
  const auto codes = encode_groups(rules, x, importance);
  out->scale = codes.scale;
  for (std::size_t j = 0; j < 8; ++j) {
    unsigned field = static_cast<unsigned>(codes.subs[j]) << 12 | (codes.shift_down[4 * j] ? 0x8000U : 0U);
    for (std::size_t k = 0; k < 4; ++k) {
      out->codes[4 * j + k] = static_cast<std::uint8_t>(codes.entries[4 * j + k] & 255);
      field |= static_cast<unsigned>(codes.entries[4 * j + k] >> 8) << (3 * k);
    }
    out->fields[j] = static_cast<std::uint16_t>(field);
  }
}

void IQ1_M::encode(const float* x, Block* out, const float* importance) noexcept {
  const GroupRules rules{iq1_book(), 16, 8, 0.125F, Signs::shift, 8, 9};
  const auto codes = encode_groups(rules, x, importance);
  std::memset(out, 0, sizeof(*out));
  for (std::size_t k = 0; k < 32; ++k) {
    out->codes[k] = static_cast<std::uint8_t>(codes.entries[k] & 255);
    const unsigned high = static_cast<unsigned>(codes.entries[k] >> 8) | (codes.shift_down[k] ? 8U : 0U);
    out->high_bits[k / 2] = static_cast<std::uint8_t>(out->high_bits[k / 2] | high << (4 * (k % 2)));
  }
  for (std::size_t n = 0; n < 4; ++n) {
    unsigned number = (static_cast<unsigned>(codes.scale) >> (4 * n) & 15U) << 12;
    for (std::size_t j = 0; j < 4; ++j) number |= static_cast<unsigned>(codes.subs[4 * n + j]) << (3 * j);
    const auto stored = static_cast<std::uint16_t>(number);
    std::memcpy(out->scales + 2 * n, &stored, 2);
  }
}

void IQ4_NL::encode(const float* x, Block* out, const float* importance) noexcept {
  float weights[simple_block_elements];
  fit::load_weights(importance, simple_block_elements, weights);
  out->scale = finite_half(iq4_scale(x, weights));
  put_sixteen(x, f16_to_f32(out->scale), out->codes);
}

void IQ4_XS::encode(const float* x, Block* out, const float* importance) noexcept {
  float weights[super_block_elements];
  fit::load_weights(importance, super_block_elements, weights);
  double wanted[8];
  double extreme = 0;
  for (std::size_t j = 0; j < 8; ++j) {
    wanted[j] = iq4_scale(x + 32 * j, weights + 32 * j);
    if (std::fabs(wanted[j]) > std::fabs(extreme)) extreme = wanted[j];
  }
  int subs[8] = {};
  out->scale = finite_half(extreme / -32);
  auto sums = choose_iq4_subs(x, weights, wanted, f16_to_f32(out->scale), subs);
  for (int round = 0; round < 2 && sums.qq > 0; ++round) {
    const std::uint16_t scale = finite_half(sums.xq / sums.qq);
    int next[8];
    const auto next_sums = choose_iq4_subs(x, weights, wanted, f16_to_f32(scale), next);
    if (!(next_sums.error < sums.error)) break;
    out->scale = scale;
    sums = next_sums;
    std::memcpy(subs, next, sizeof subs);
  }
  unsigned high = 0;
  std::memset(out->scales_low, 0, sizeof out->scales_low);
  for (std::size_t j = 0; j < 8; ++j) {
    const auto stored = static_cast<unsigned>(subs[j] + 32);
    out->scales_low[j / 2] = static_cast<std::uint8_t>(out->scales_low[j / 2] | (stored & 15) << (4 * (j % 2)));
    high |= (stored >> 4) << (2 * j);
    put_sixteen(x + 32 * j, f16_to_f32(out->scale) * static_cast<float>(subs[j]), out->codes + 16 * j);
  }
  out->scales_high = static_cast<std::uint16_t>(high);
}

void MXFP4::encode(const float* x, Block* out, const float* importance) noexcept {
  // The magnitudes; negative values have their code plus 8.
  constexpr float middles[7] = {0.5F, 1.5F, 2.5F, 3.5F, 5.0F, 7.0F, 10.0F};
  float weights[simple_block_elements];
  fit::load_weights(importance, simple_block_elements, weights);
  float top = 0;
  for (std::size_t i = 0; i < simple_block_elements; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  // Weights are twice the stored values: 12 at most, of which 8 is the power of two.
  const int first = top > 0 ? std::ilogb(top) - 3 + 128 : 0;
  double best = -1;
  for (int exponent = first - 1; exponent <= first + 1; ++exponent) {
    if (exponent < 0 || exponent > 252) continue;  // beyond 252 the largest weights would overflow
    const double scale = std::ldexp(1.0, exponent - 128);
    std::uint8_t codes[16] = {};
    double error = 0;
    for (std::size_t i = 0; i < simple_block_elements; ++i) {
      const double target = std::fabs(static_cast<double>(x[i])) / scale;
      int code = 0;
      for (const float middle : middles) code += target > static_cast<double>(middle) ? 1 : 0;
      const double difference = scale * codebooks::mxfp4_values[code] - std::fabs(static_cast<double>(x[i]));
      error += static_cast<double>(weights[i]) * difference * difference;
      const unsigned signed_code = static_cast<unsigned>(code) | (x[i] < 0 && code != 0 ? 8U : 0U);
      codes[i % 16] = static_cast<std::uint8_t>(codes[i % 16] | signed_code << (i < 16 ? 0 : 4));
    }
    if (best >= 0 && error >= best) continue;
    best = error;
    out->exponent = static_cast<std::uint8_t>(exponent);
    std::memcpy(out->codes, codes, sizeof codes);
  }
  if (best < 0) std::memset(out, 0, sizeof(*out));  // too small for the smallest exponent
}

void TQ2_0::encode(const float* x, Block* out, const float* importance) noexcept {
  std::memset(out, 0, sizeof(*out));
  out->scale = ternary_scale(x, importance);
  const float inverse = fit::inverse_of(f16_to_f32(out->scale));
  for (std::size_t i = 0; i < super_block_elements; ++i) {
    const auto code = static_cast<unsigned>(fit::code_of(x[i], inverse, -1, 1) + 1);
    auto& byte = out->codes[32 * (i / 128) + i % 32];
    byte = static_cast<std::uint8_t>(byte | code << (2 * (i % 128 / 32)));
  }
}

void TQ1_0::encode(const float* x, Block* out, const float* importance) noexcept {
  out->scale = ternary_scale(x, importance);
  const float inverse = fit::inverse_of(f16_to_f32(out->scale));
  const auto digit = [&](std::size_t i) { return static_cast<unsigned>(fit::code_of(x[i], inverse, -1, 1) + 1); };
  // A number of five digits becomes the byte whose leading digits it is: rounded up in units of 1 / 243.
  const auto byte_of = [](unsigned number) { return static_cast<std::uint8_t>((number * 256 + 242) / 243); };
  for (std::size_t m = 0; m < 48; ++m) {
    const std::size_t stride = m < 32 ? 32 : 16;
    const std::size_t start = m < 32 ? m : 160 + m - 32;
    unsigned number = 0;
    for (std::size_t n = 0; n < 5; ++n) number = 3 * number + digit(start + stride * n);
    out->digits[m] = byte_of(number);
  }
  for (std::size_t m = 0; m < 4; ++m) {
    unsigned number = 0;
    for (std::size_t n = 0; n < 4; ++n) number = 3 * number + digit(240 + m + 4 * n);
    out->last_digits[m] = byte_of(3 * number);
  }
}

}  // namespace skald::inline v0::quant
