#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace skald::inline v0::huggingface {

/// How a tensor of a folder becomes one of a GGUF file.
enum class Form : std::uint8_t {
  as_is,
  rotary_q,      ///< rows of each query head from halves to pairs
  rotary_k,      ///< the same over key heads
  transpose,     ///< matrices stored [inputs, outputs]; vectors as they are
  plus_one,      ///< f32, each element plus one
  head_qkv,      ///< fused, for each head its q, k and v rows: all q, all k, all v
  group_qkv,     ///< fused, for each KV head its query heads, its k, its v: all q, all k, all v
  concat,        ///< several tensors, joined by '+', below each other
  experts,       ///< one tensor per expert, stacked
  query_heads,   ///< one tensor per query head, stacked
  key_heads,     ///< one tensor per key head, stacked
  flat,          ///< [1, n] as [n]
  stack_first,   ///< [e, 2n, m]: the first n rows of each matrix
  stack_second,  ///< the others
  halves_first,  ///< [2n, m]: the first n rows
  halves_second,
  after_padding,  ///< rows behind that of the padding token, which counts no position (RoBERTa)
  even_rows,      ///< [e, 2n, m] of quantized rows, or [e, m, 2n] of plain elements: rows, or columns, 0, 2, 4 ... of each matrix
  odd_rows,       ///< the others
  even_elements,  ///< [e, 2n]: elements 0, 2, 4 ... of each row
  odd_elements,
  stack_back,  ///< [e, n, m] of quantized rows as it is; [e, m, n] of plain elements: each matrix transposed
};

/// `from` has "{}" for the layer and "{e}" for the expert or head, no prefix like "model.", and no ".weight" or ".bias" unless
/// only that one is meant (which `to` may say alone).
struct Rule {
  std::string_view from;
  std::string_view to;
  Form form = Form::as_is;
};

struct Family {
  std::string_view model_type;    ///< in config.json
  std::string_view architecture;  ///< in GGUF files
  std::span<const Rule> rules;
  bool tied_by_default = false;  ///< when config.json does not say, the head is the embedding
};

/// Sorted by model_type.
[[nodiscard]] std::span<const Family> families() noexcept;
[[nodiscard]] const Family* find_family(std::string_view model_type) noexcept;

/// What names may begin with.
inline constexpr std::string_view prefixes[] = {
    "language_model.model.", "model.language_model.", "language_model.", "model.", "transformer.", "gpt_neox.", "bert.", "roberta."};
/// Of models that classify texts (`…ForSequenceClassification`), applied after those of the family.
[[nodiscard]] std::span<const Rule> classifier_rules() noexcept;
/// Tensors that are no weights: buffers that old versions saved, and heads that are not used.
[[nodiscard]] bool is_ignored(std::string_view name, bool classifies) noexcept;

}  // namespace skald::inline v0::huggingface
