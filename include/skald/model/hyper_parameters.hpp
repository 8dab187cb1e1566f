#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <skald/model/model_file.hpp>
#include <skald/model/model_spec.hpp>

namespace skald::inline v0 {

/// Reads the keys `ARCHITECTURE.name` of a file with their allowed ranges, and remembers which were asked for, so that
/// those that no reader knows can be reported. Every failure is a FormatError that names the key.
class SKALD_API HyperParameters {
 public:
  /// `file` must outlive this.
  HyperParameters(const ModelFile& file, std::string architecture);

  [[nodiscard]] const ModelFile& file() const noexcept { return file_; }
  [[nodiscard]] const Metadata& metadata() const noexcept { return file_.metadata(); }
  [[nodiscard]] const std::string& architecture() const noexcept { return architecture_; }
  [[nodiscard]] std::string key(std::string_view name) const { return architecture_ + "." + std::string(name); }
  [[nodiscard]] bool contains(std::string_view name) { return metadata().contains(asked(name)); }
  /// True if the file has the tensor `blk.LAYER.name`.
  [[nodiscard]] bool has_tensor(std::int64_t layer, std::string_view name) const;
  [[noreturn]] void fail(std::string_view name, std::string_view message) const { metadata().fail(key(name), message); }

  [[nodiscard]] std::int64_t integer(std::string_view name, std::int64_t min, std::int64_t max);
  [[nodiscard]] std::int64_t integer_or(std::string_view name, std::int64_t otherwise, std::int64_t min,
                                        std::int64_t max);
  /// A number within [min, max] (finite).
  [[nodiscard]] double number(std::string_view name, double min, double max);
  [[nodiscard]] double number_or(std::string_view name, double otherwise, double min, double max);
  [[nodiscard]] bool flag_or(std::string_view name, bool otherwise);
  [[nodiscard]] std::string text_or(std::string_view name, std::string_view otherwise);
  /// One value per layer: an array of `layers` integers, or one integer for all.
  [[nodiscard]] std::vector<std::int64_t> per_layer(std::string_view name, std::int64_t layers, std::int64_t min,
                                                    std::int64_t max);
  /// One flag per layer, or nothing if the key is missing.
  [[nodiscard]] std::vector<bool> flags_or_none(std::string_view name, std::int64_t layers);
  /// An epsilon: above 0, at most 1.
  [[nodiscard]] float epsilon(std::string_view name);

  /// Keys of this architecture that nobody asked for.
  [[nodiscard]] std::vector<std::string> unread() const;

 private:
  [[nodiscard]] std::string asked(std::string_view name);

  const ModelFile& file_;
  std::string architecture_;
  std::set<std::string, std::less<>> asked_;
};

/// f32 values of a tensor stored as f32, f16, bf16, f64, i8, i16 or i32. @throws NumericError naming the tensor if one is not finite.
[[nodiscard]] SKALD_API std::vector<float> read_vector(const ModelFile& file, const TensorInfo& tensor);

/// A rotary embedding from the keys `rope.*` and the tensors `rope_freqs.weight`, `rope_factors_long.weight` and
/// `rope_factors_short.weight`. `head_dim` is the default and the upper limit of rope.dimension_count.
[[nodiscard]] SKALD_API RopeSpec read_rope(HyperParameters& parameters, RopeKind kind, std::int64_t head_dim,
                                           std::int64_t context_length);

/// Size of the vocabulary, from the tokens, the key vocab_size and the rows of the embedding table, which must agree.
[[nodiscard]] SKALD_API std::int64_t read_vocabulary_size(HyperParameters& parameters);

/// The key block_count, checked against the tensors of the file.
[[nodiscard]] SKALD_API std::int64_t read_layer_count(HyperParameters& parameters);

}  // namespace skald::inline v0
