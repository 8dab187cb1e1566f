#include <skald/state/coupled.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <skald/core/error.hpp>
#include <skald/core/file.hpp>
#include <skald/core/random.hpp>
#include <skald/state/archive.hpp>

namespace skald::inline v0 {

namespace {

constexpr const char* where = "state.coupled";
constexpr std::string_view magic = "skald-codebooks";
constexpr std::uint32_t format_version = 1;

void check(const CoupledShape& shape, std::int32_t heads, std::int32_t dims) {
  if (shape.bits < 1 || shape.bits > 12 || shape.channels < 1 || shape.channels > 64)
    throw UsageError(where, "codes of " + std::to_string(shape.bits) + " bits for " + std::to_string(shape.channels) +
                                " channels; 1 to 12 bits and 1 to 64 channels are allowed");
  if (heads < 0 || heads > 65536 || dims < 0 || dims > 65536) throw UsageError(where, "impossible heads or dimensions");
}

std::uint64_t hash_of(std::span<const std::byte> bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const auto byte : bytes) {
    hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3ull;
    hash ^= hash >> 31;
  }
  return hash;
}

/// k-means of one group: samples [channel][token], centroids [channel][k].
class Means {
 public:
  Means(std::int32_t channels, std::size_t k, std::size_t tokens, std::vector<float> samples)
      : channels_(static_cast<std::size_t>(channels)),
        k_(k),
        tokens_(tokens),
        samples_(std::move(samples)),
        centroids_(channels_ * k),
        halves_(k),
        scores_(k),
        nearest_(tokens) {}

  /// Centroids as [k][channel].
  std::vector<float> run(const CoupledFit& fit, std::uint64_t stream) {
    start(fit.seed, stream);
    for (int i = 0; i < fit.iterations; ++i) {
      const double error = assign();
      update();
      if (i > 0 && error >= last_error_ * 0.9995) break;
      last_error_ = error;
    }
    std::vector<float> result(channels_ * k_);
    for (std::size_t c = 0; c < channels_; ++c)
      for (std::size_t i = 0; i < k_; ++i) result[i * channels_ + c] = centroids_[c * k_ + i];
    return result;
  }

 private:
  [[nodiscard]] float sample(std::size_t c, std::size_t t) const { return samples_[c * tokens_ + t]; }

  /// Samples drawn without regard to each other, a little apart so that equal ones part.
  void start(std::uint64_t seed, std::uint64_t stream) {
    CounterRandom random(seed, stream, 0);
    for (std::size_t i = 0; i < k_; ++i) {
      const auto t = tokens_ == 0 ? 0 : static_cast<std::size_t>(random.uniform() * static_cast<double>(tokens_));
      for (std::size_t c = 0; c < channels_; ++c)
        centroids_[c * k_ + i] = tokens_ == 0 ? 0.0F : sample(c, std::min(t, tokens_ - 1));
    }
  }

  double assign() {
    for (std::size_t i = 0; i < k_; ++i) {
      float half = 0;
      for (std::size_t c = 0; c < channels_; ++c) half += 0.5F * centroids_[c * k_ + i] * centroids_[c * k_ + i];
      halves_[i] = half;
    }
    double error = 0;
    for (std::size_t t = 0; t < tokens_; ++t) {
      std::copy(halves_.begin(), halves_.end(), scores_.begin());
      double length = 0;
      for (std::size_t c = 0; c < channels_; ++c) {
        const float x = sample(c, t);
        length += static_cast<double>(x) * static_cast<double>(x);
        const float* column = centroids_.data() + c * k_;
        float* scores = scores_.data();
        for (std::size_t i = 0; i < k_; ++i) scores[i] -= x * column[i];
      }
      const auto best = std::min_element(scores_.begin(), scores_.end());
      nearest_[t] = static_cast<std::uint32_t>(best - scores_.begin());
      error += length + 2.0 * static_cast<double>(*best);
    }
    return error;
  }

  /// Centroids that nothing is nearest to move beside the one that most is nearest to.
  void update() {
    std::vector<double> sums(channels_ * k_);
    std::vector<std::size_t> counts(k_);
    for (std::size_t t = 0; t < tokens_; ++t) {
      ++counts[nearest_[t]];
      for (std::size_t c = 0; c < channels_; ++c) sums[c * k_ + nearest_[t]] += static_cast<double>(sample(c, t));
    }
    for (std::size_t i = 0; i < k_; ++i)
      for (std::size_t c = 0; c < channels_ && counts[i] > 0; ++c)
        centroids_[c * k_ + i] = static_cast<float>(sums[c * k_ + i] / static_cast<double>(counts[i]));
    for (std::size_t i = 0; i < k_; ++i) {
      if (counts[i] > 0) continue;
      const auto most = static_cast<std::size_t>(std::max_element(counts.begin(), counts.end()) - counts.begin());
      if (counts[most] < 2) break;
      const auto t = static_cast<std::size_t>(std::find(nearest_.begin(), nearest_.end(), most) - nearest_.begin());
      for (std::size_t c = 0; c < channels_; ++c)
        centroids_[c * k_ + i] = t < tokens_ ? 0.5F * (centroids_[c * k_ + most] + sample(c, t)) : 0.0F;
      counts[i] = counts[most] / 2;
      counts[most] -= counts[i];
      if (t < tokens_) nearest_[t] = static_cast<std::uint32_t>(i);
    }
  }

  std::size_t channels_, k_, tokens_;
  std::vector<float> samples_, centroids_, halves_, scores_;
  std::vector<std::uint32_t> nearest_;
  double last_error_ = std::numeric_limits<double>::infinity();
};

}  // namespace

CoupledCodebook::CoupledCodebook(const CoupledShape& shape, std::int32_t heads, std::int32_t dims,
                                 std::span<const float> values, const CoupledFit& fit, const AnyExecutor& executor)
    : shape_(shape), heads_(heads), dims_(dims) {
  check(shape, heads, dims);
  const auto channels = static_cast<std::size_t>(heads) * static_cast<std::size_t>(dims);
  const std::size_t tokens = channels == 0 ? 0 : values.size() / channels;
  for (const float v : values)
    if (!std::isfinite(v)) throw NumericError(where, "a key or value to learn from is not finite");
  const std::size_t k = std::size_t{1} << shape.bits;
  const std::size_t table = k * static_cast<std::size_t>(shape.channels);
  const auto tables = static_cast<std::size_t>(heads) * static_cast<std::size_t>(groups());
  centroids_.resize(tables * table);
  executor.run(static_cast<int>(tables), [&](int index) {
    const auto head = static_cast<std::size_t>(index) / static_cast<std::size_t>(groups());
    const auto first =
        static_cast<std::size_t>(index) % static_cast<std::size_t>(groups()) * static_cast<std::size_t>(shape.channels);
    std::vector<float> samples(static_cast<std::size_t>(shape.channels) * tokens, 0.0F);
    for (std::size_t c = 0; c < static_cast<std::size_t>(shape.channels); ++c) {
      if (first + c >= static_cast<std::size_t>(dims)) break;
      const auto row = values.subspan((head * static_cast<std::size_t>(dims) + first + c) * tokens, tokens);
      std::copy(row.begin(), row.end(), samples.begin() + static_cast<std::ptrdiff_t>(c * tokens));
    }
    const auto found = Means(shape.channels, k, tokens, std::move(samples)).run(fit, static_cast<std::uint64_t>(index));
    std::copy(found.begin(), found.end(),
              centroids_.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(index) * table));
  });
  prepare();
}

CoupledCodebook::CoupledCodebook(const CoupledShape& shape, std::int32_t heads, std::int32_t dims,
                                 std::vector<float> centroids)
    : shape_(shape), heads_(heads), dims_(dims), centroids_(std::move(centroids)) {
  check(shape, heads, dims);
  const auto expected =
      static_cast<std::size_t>(heads) * static_cast<std::size_t>(groups()) * static_cast<std::size_t>(shape.channels)
      << shape.bits;
  if (centroids_.size() != expected)
    throw UsageError(where,
                     std::to_string(centroids_.size()) + " numbers, " + std::to_string(expected) + " are needed");
  for (const float v : centroids_)
    if (!std::isfinite(v)) throw NumericError(where, "a centroid is not finite");
  prepare();
}

void CoupledCodebook::prepare() {
  const std::size_t k = std::size_t{1} << shape_.bits;
  const auto channels = static_cast<std::size_t>(shape_.channels);
  const std::size_t tables = centroids_.size() / (k * channels);
  columns_.resize(centroids_.size());
  halves_.assign(tables * k, 0.0F);
  for (std::size_t t = 0; t < tables; ++t)
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t c = 0; c < channels; ++c) {
        const float v = centroids_[(t * k + i) * channels + c];
        columns_[(t * channels + c) * k + i] = v;
        halves_[t * k + i] += 0.5F * v * v;
      }
}

std::uint32_t CoupledCodebook::code(const std::byte* codes, std::int32_t group) const noexcept {
  const auto bits = static_cast<std::size_t>(shape_.bits);
  const std::size_t at = static_cast<std::size_t>(group) * bits;
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < (at % 8 + bits + 7) / 8; ++i)
    word |= std::to_integer<std::uint32_t>(codes[at / 8 + i]) << (8 * i);
  return word >> (at % 8) & ((1U << bits) - 1);
}

void CoupledCodebook::encode(std::int32_t head, const float* x, std::byte* codes) const noexcept {
  std::fill_n(codes, row_bytes(), std::byte{0});
  const std::size_t k = std::size_t{1} << shape_.bits;
  constexpr std::size_t block = 256;  // scores at once
  float scores[block];
  for (std::int32_t g = 0; g < groups(); ++g) {
    const auto table =
        static_cast<std::size_t>(head) * static_cast<std::size_t>(groups()) + static_cast<std::size_t>(g);
    const float* halves = halves_.data() + table * k;
    const float* columns = columns_.data() + table * k * static_cast<std::size_t>(shape_.channels);
    const std::int32_t count = std::min(shape_.channels, dims_ - g * shape_.channels);
    const float* from = x + std::ptrdiff_t{g} * shape_.channels;
    std::size_t best = 0;
    float least = std::numeric_limits<float>::infinity();
    for (std::size_t first = 0; first < k; first += block) {
      const std::size_t n = std::min(block, k - first);
      std::copy_n(halves + first, n, scores);
      for (std::int32_t c = 0; c < count; ++c) {
        const float* column = columns + static_cast<std::size_t>(c) * k + first;
        for (std::size_t i = 0; i < n; ++i) scores[i] -= from[c] * column[i];
      }
      for (std::size_t i = 0; i < n; ++i)
        if (scores[i] < least) {
          least = scores[i];
          best = first + i;
        }
    }
    const std::size_t at = static_cast<std::size_t>(g) * static_cast<std::size_t>(shape_.bits);
    const auto bits = static_cast<std::uint32_t>(best) << (at % 8);
    for (std::size_t i = 0; i < (at % 8 + static_cast<std::size_t>(shape_.bits) + 7) / 8; ++i)
      codes[at / 8 + i] |= static_cast<std::byte>(bits >> (8 * i) & 255U);
  }
}

void CoupledCodebook::decode(std::int32_t head, const std::byte* codes, float* x) const noexcept {
  const std::size_t k = std::size_t{1} << shape_.bits;
  const auto channels = static_cast<std::size_t>(shape_.channels);
  for (std::int32_t g = 0; g < groups(); ++g) {
    const auto table =
        static_cast<std::size_t>(head) * static_cast<std::size_t>(groups()) + static_cast<std::size_t>(g);
    const float* from = centroids_.data() + (table * k + code(codes, g)) * channels;
    const std::int32_t count = std::min(shape_.channels, dims_ - g * shape_.channels);
    std::copy_n(from, count, x + std::ptrdiff_t{g} * shape_.channels);
  }
}

void CoupledCodebook::products(std::int32_t head, const float* query, std::span<float> table) const noexcept {
  const std::size_t k = std::size_t{1} << shape_.bits;
  std::fill(table.begin(), table.end(), 0.0F);
  for (std::int32_t g = 0; g < groups(); ++g) {
    const auto index =
        static_cast<std::size_t>(head) * static_cast<std::size_t>(groups()) + static_cast<std::size_t>(g);
    const float* columns = columns_.data() + index * k * static_cast<std::size_t>(shape_.channels);
    const std::int32_t count = std::min(shape_.channels, dims_ - g * shape_.channels);
    for (std::int32_t c = 0; c < count; ++c)
      for (std::size_t i = 0; i < k; ++i)
        table[static_cast<std::size_t>(g) * k + i] +=
            query[std::ptrdiff_t{g} * shape_.channels + c] * columns[static_cast<std::size_t>(c) * k + i];
  }
}

float CoupledCodebook::dot(const std::byte* codes, std::span<const float> table) const noexcept {
  float sum = 0;
  for (std::int32_t g = 0; g < groups(); ++g)
    sum += table[(static_cast<std::size_t>(g) << shape_.bits) + code(codes, g)];
  return sum;
}

CoupledCodebooks::CoupledCodebooks(const CoupledShape& shape, std::vector<Layer> layers)
    : shape_(shape), layers_(std::move(layers)) {
  check(shape, 0, 0);
  for (std::size_t l = 0; l < layers_.size(); ++l)
    if (layers_[l].keys.heads() > 0 && (layers_[l].keys.shape() != shape || layers_[l].values.shape() != shape ||
                                        layers_[l].values.heads() != layers_[l].keys.heads()))
      throw UsageError(where, "keys and values have other shapes", {.layer = static_cast<int>(l)});
}

std::size_t CoupledCodebooks::bytes() const noexcept {
  std::size_t sum = 0;
  for (const auto& layer : layers_) sum += layer.keys.centroids().size_bytes() + layer.values.centroids().size_bytes();
  return sum;
}

std::string CoupledCodebooks::name() const {
  return "coupled:channels=" + std::to_string(shape_.channels) + ",bits=" + std::to_string(shape_.bits) +
         ",codebooks=" + std::to_string(hash_of(to_bytes()));
}

std::vector<std::byte> CoupledCodebooks::to_bytes() const {
  ArchiveWriter out;
  out.text(magic);
  out.value(format_version);
  out.value(shape_.channels);
  out.value(shape_.bits);
  out.value(static_cast<std::uint32_t>(layers_.size()));
  for (const auto& layer : layers_) {
    out.value(layer.keys.heads());
    out.value(layer.keys.dims());
    out.value(layer.values.dims());
    out.array(layer.keys.centroids());
    out.array(layer.values.centroids());
  }
  out.value(hash_of(out.bytes()));
  return out.take();
}

void CoupledCodebooks::save(const std::string& path) const { write_file_atomically(path, to_bytes()); }

CoupledCodebooks CoupledCodebooks::load(const std::string& path) { return read(read_whole_file(path), path); }

CoupledCodebooks CoupledCodebooks::read(std::span<const std::byte> bytes, const std::string& name) {
  if (bytes.size() < magic.size() + 16 || std::memcmp(bytes.data() + 8, magic.data(), magic.size()) != 0)
    throw FormatError(where, "this is not a file of skald codebooks", {.file = name, .offset = 0});
  ArchiveReader in(bytes.first(bytes.size() - 8), name);
  if (in.text("magic") != magic) in.refuse("magic", "this is not a file of skald codebooks");
  if (const auto version = in.value<std::uint32_t>("version"); version != format_version)
    throw UnsupportedError(where,
                           "codebook format version " + std::to_string(version) + ", this library reads version " +
                               std::to_string(format_version),
                           {.file = name});
  std::uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + bytes.size() - 8, 8);
  if (stored != hash_of(bytes.first(bytes.size() - 8)))
    throw FormatError(where, "the checksum does not match: the data is damaged or cut off",
                      {.file = name, .offset = bytes.size() - 8});
  CoupledShape shape;
  shape.channels = in.value<std::int32_t>("channels");
  shape.bits = in.value<std::int32_t>("bits");
  const auto count = in.value<std::uint32_t>("layers");
  std::vector<Layer> layers;
  try {
    check(shape, 0, 0);
    for (std::uint32_t l = 0; l < count; ++l) {
      const auto heads = in.value<std::int32_t>("heads");
      const auto keys = in.value<std::int32_t>("head_dim_k");
      const auto values = in.value<std::int32_t>("head_dim_v");
      auto key_centroids = in.array<float>("keys");
      auto value_centroids = in.array<float>("values");
      check(shape, heads, keys);
      check(shape, heads, values);
      layers.push_back({CoupledCodebook(shape, heads, keys, std::move(key_centroids)),
                        CoupledCodebook(shape, heads, values, std::move(value_centroids))});
    }
    in.finish();
    return CoupledCodebooks(shape, std::move(layers));
  } catch (const UsageError& error) {
    in.refuse("codebooks", error.message());
  } catch (const NumericError& error) {
    in.refuse("codebooks", error.message());
  }
}

}  // namespace skald::inline v0
