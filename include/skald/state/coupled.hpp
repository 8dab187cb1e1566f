#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <skald/config.hpp>
#include <skald/core/executor.hpp>

namespace skald::inline v0 {

/// How channels are coupled: groups of `channels` neighbours share one code of `bits` bits, so an element takes
/// bits / channels. 8 and 8 are 1 bit per channel; 1 and 1 are independent 1-bit quantization.
struct CoupledShape {
  std::int32_t channels = 8;
  std::int32_t bits = 8;  ///< 1 to 12
  friend bool operator==(const CoupledShape&, const CoupledShape&) = default;
};

/// How codebooks are learned.
struct CoupledFit {
  int iterations = 12;     ///< of k-means
  std::uint64_t seed = 0;  ///< of the first centroids
};

/// Codebooks of one layer's keys or values: a table of 2^bits centroids for each head and group of channels.
class SKALD_API CoupledCodebook {
 public:
  CoupledCodebook() = default;
  /// Learns by k-means from values [head x dim][tokens]. @throws UsageError for shapes that are not allowed,
  /// NumericError.
  CoupledCodebook(const CoupledShape& shape, std::int32_t heads, std::int32_t dims, std::span<const float> values,
                  const CoupledFit& fit, const AnyExecutor& executor);
  /// From centroids [head][group][2^bits][channels]. @throws UsageError, NumericError.
  CoupledCodebook(const CoupledShape& shape, std::int32_t heads, std::int32_t dims, std::vector<float> centroids);

  [[nodiscard]] const CoupledShape& shape() const noexcept { return shape_; }
  [[nodiscard]] std::int32_t heads() const noexcept { return heads_; }
  [[nodiscard]] std::int32_t dims() const noexcept { return dims_; }
  /// Groups of a head; the last one may be filled with zeros.
  [[nodiscard]] std::int32_t groups() const noexcept { return (dims_ + shape_.channels - 1) / shape_.channels; }
  /// Bytes of a head's codes of one token: groups x bits, in whole pairs of bytes.
  [[nodiscard]] std::size_t row_bytes() const noexcept {
    return (static_cast<std::size_t>(groups()) * static_cast<std::size_t>(shape_.bits) + 15) / 16 * 2;
  }
  [[nodiscard]] std::span<const float> centroids() const noexcept { return centroids_; }

  /// The nearest centroids of a head's `dims` elements; of equally near ones the first. Writes row_bytes().
  void encode(std::int32_t head, const float* x, std::byte* codes) const noexcept;
  void decode(std::int32_t head, const std::byte* codes, float* x) const noexcept;
  /// Scalar products of every centroid with a query, [group][2^bits]; then the product with a token is the sum of one
  /// number per group: attention over codes without decoding them.
  void products(std::int32_t head, const float* query, std::span<float> table) const noexcept;
  [[nodiscard]] float dot(const std::byte* codes, std::span<const float> table) const noexcept;

 private:
  void prepare();
  [[nodiscard]] std::uint32_t code(const std::byte* codes, std::int32_t group) const noexcept;
  CoupledShape shape_;
  std::int32_t heads_ = 0;
  std::int32_t dims_ = 0;
  std::vector<float> centroids_;  // [head][group][centroid][channel]
  std::vector<float> columns_;    // [head][group][channel][centroid]
  std::vector<float> halves_;     // [head][group][centroid]: half the squared length
};

/// Codebooks of all layers: what the KV format "coupled" needs (coupled quantization, Zhang et al. 2024, arXiv
/// 2405.03917).
class SKALD_API CoupledCodebooks {
 public:
  struct Layer {
    CoupledCodebook keys{};  ///< of keys before rotation; no heads where the layer has no attention
    CoupledCodebook values{};
  };
  CoupledCodebooks(const CoupledShape& shape, std::vector<Layer> layers);

  [[nodiscard]] const CoupledShape& shape() const noexcept { return shape_; }
  [[nodiscard]] const std::vector<Layer>& layers() const noexcept { return layers_; }
  /// Bytes of all centroids.
  [[nodiscard]] std::size_t bytes() const noexcept;
  /// "coupled:channels=8,bits=8,codebooks=..." with a hash of the centroids: states of other codebooks do not fit.
  [[nodiscard]] std::string name() const;

  /// A file with a checksum, written whole or not at all. @throws IoError.
  void save(const std::string& path) const;
  /// @throws IoError, FormatError, UnsupportedError.
  static CoupledCodebooks load(const std::string& path);
  static CoupledCodebooks read(std::span<const std::byte> bytes, const std::string& name);
  [[nodiscard]] std::vector<std::byte> to_bytes() const;

 private:
  CoupledShape shape_;
  std::vector<Layer> layers_;
};

}  // namespace skald::inline v0
