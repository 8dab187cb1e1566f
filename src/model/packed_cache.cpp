#include "model/packed_cache.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include <sys/stat.h>

#include <fmt/format.h>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "model.packed_cache";
constexpr std::string_view magic = "SKPACKED";
constexpr std::uint32_t format_version = 1;
constexpr std::size_t fixed_bytes = 40;
constexpr std::size_t checksum_at = 32;
constexpr std::uint64_t most_header_bytes = std::uint64_t{64} << 20;
constexpr std::size_t longest_string = 4096;

class Writer {
 public:
  template <class T>
  void number(T value) {
    const auto bits = static_cast<std::uint64_t>(value);
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::byte>(bits >> (8 * i) & 0xFF));
  }
  void text(std::string_view value) {
    number(static_cast<std::uint32_t>(value.size()));
    raw(value);
  }
  void raw(std::string_view value) {
    const auto bytes = std::as_bytes(std::span(value.data(), value.size()));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}
  template <class T>
  T number() {
    std::uint64_t bits = 0;
    const auto from = take(sizeof(T));
    for (std::size_t i = 0; i < sizeof(T); ++i) bits |= static_cast<std::uint64_t>(from[i]) << (8 * i);
    return static_cast<T>(bits);
  }
  std::string text() {
    const auto length = number<std::uint32_t>();
    if (length > longest_string) fail(fmt::format("a string of {} bytes, allowed are {}", length, longest_string));
    const auto from = take(length);
    return {reinterpret_cast<const char*>(from.data()), from.size()};
  }
  /// A count of things that take at least `least` bytes each.
  std::size_t count(std::size_t least) {
    const auto n = number<std::uint32_t>();
    if (n > (bytes_.size() - at_) / least) fail(fmt::format("{} entries do not fit into the header", n));
    return n;
  }
  [[noreturn]] void fail(std::string message) const {
    throw FormatError(where, std::move(message), {.file = file_, .offset = at_});
  }

 private:
  std::span<const std::byte> take(std::size_t n) {
    if (n > bytes_.size() - at_) fail("the header ends too early");
    at_ += n;
    return bytes_.subspan(at_ - n, n);
  }
  std::span<const std::byte> bytes_;
  const std::string& file_;
  std::size_t at_ = 0;
};

std::uint64_t aligned(std::uint64_t n) { return (n + packed_alignment - 1) / packed_alignment * packed_alignment; }

std::uint64_t checksum_of(std::span<const std::byte> bytes) {
  PackedChecksum sum;
  sum.add(bytes);
  return sum.value();
}

}  // namespace

void PackedChecksum::add(std::span<const std::byte> bytes) noexcept {
  constexpr std::uint64_t factor = 0x9E3779B97F4A7C15u;
  length_ += bytes.size();
  auto lanes = lanes_;
  const auto mix = [&](const std::byte* from) {
    std::array<std::uint64_t, 8> words;
    std::memcpy(words.data(), from, sizeof words);
    for (std::size_t i = 0; i < 8; ++i) lanes[i] = std::rotl((lanes[i] ^ words[i]) * factor, 29);
  };
  std::size_t at = 0;
  for (; at + 64 <= bytes.size(); at += 64) mix(bytes.data() + at);
  if (at < bytes.size()) {
    std::array<std::byte, 64> rest{};
    std::memcpy(rest.data(), bytes.data() + at, bytes.size() - at);
    mix(rest.data());
  }
  lanes_ = lanes;
}

std::uint64_t PackedChecksum::value() const noexcept {
  std::uint64_t h = length_;
  for (const std::uint64_t lane : lanes_) {
    h = (h ^ lane ^ (lane >> 32)) * 0xBF58476D1CE4E5B9u;
    h ^= h >> 29;
  }
  return h;
}

std::optional<std::vector<PackedIdentity::File>> stamp_files(std::span<const AnyByteSource> sources) {
  std::vector<PackedIdentity::File> files;
  for (const AnyByteSource& source : sources) {
    struct stat status {};
    if (::stat(source.name().c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return {};
    if (static_cast<std::uint64_t>(status.st_size) != source.size()) return {};
    files.push_back({source.size(), std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec});
  }
  if (files.empty()) return {};
  return files;
}

std::uint64_t place_entries(PackedHeader& header) {
  std::uint64_t at = encode_header(header, 0).size();
  for (PackedEntry& entry : header.entries) {
    entry.offset = at;
    at = aligned(at + entry.bytes);
  }
  return at;
}

std::vector<std::byte> encode_header(const PackedHeader& header, std::uint64_t file_bytes) {
  Writer payload;
  const PackedIdentity& identity = header.identity;
  payload.text(identity.version);
  payload.text(identity.layout);
  for (const std::uint64_t word : identity.fingerprint) payload.number(word);
  payload.number(static_cast<std::uint32_t>(identity.files.size()));
  for (const auto& file : identity.files) {
    payload.number(file.bytes);
    payload.number(file.changed_ns);
  }
  payload.number(static_cast<std::uint32_t>(header.entries.size()));
  for (const PackedEntry& entry : header.entries) {
    payload.text(entry.role);
    payload.number(entry.layer);
    payload.text(entry.type);
    for (const std::int64_t n : {entry.rows, entry.cols, entry.matrices}) payload.number(n);
    for (const std::uint64_t n : {entry.offset, entry.bytes, entry.checksum}) payload.number(n);
  }
  const std::uint64_t header_bytes = aligned(fixed_bytes + payload.bytes().size());
  Writer all;
  all.raw(magic);
  all.number(format_version);
  all.number(std::uint32_t{0});
  all.number(header_bytes);
  all.number(file_bytes);
  all.number(std::uint64_t{0});
  auto& bytes = all.bytes();
  bytes.insert(bytes.end(), payload.bytes().begin(), payload.bytes().end());
  bytes.resize(static_cast<std::size_t>(header_bytes));
  Writer sum;
  sum.number(checksum_of(bytes));
  std::copy(sum.bytes().begin(), sum.bytes().end(), bytes.begin() + checksum_at);
  return std::move(bytes);
}

PackedHeader read_packed_header(const AnyByteSource& file) {
  std::array<std::byte, fixed_bytes> fixed{};
  const auto refuse = [&](std::string message) {
    throw FormatError(where, std::move(message), {.file = file.name()});
  };
  if (file.size() < fixed.size()) refuse(fmt::format("{} bytes are too few for a header", file.size()));
  file.read(0, fixed);
  if (std::memcmp(fixed.data(), magic.data(), magic.size()) != 0) refuse("it is not a file of packed weights");
  Reader start{std::span<const std::byte>(fixed).subspan(magic.size()), file.name()};
  if (const auto version = start.number<std::uint32_t>(); version != format_version)
    refuse(fmt::format("its format has version {}, this library reads {}", version, format_version));
  (void)start.number<std::uint32_t>();
  const auto header_bytes = start.number<std::uint64_t>();
  const auto file_bytes = start.number<std::uint64_t>();
  const auto sum = start.number<std::uint64_t>();
  if (file_bytes != file.size()) refuse(fmt::format("it has {} bytes, its header says {}", file.size(), file_bytes));
  if (header_bytes < fixed_bytes || header_bytes > std::min(most_header_bytes, file_bytes))
    refuse(fmt::format("its header says that it has {} bytes itself", header_bytes));
  std::vector<std::byte> bytes(static_cast<std::size_t>(header_bytes));
  file.read(0, bytes);
  std::fill_n(bytes.begin() + checksum_at, 8, std::byte{0});
  if (checksum_of(bytes) != sum) refuse("its header is damaged: the checksum is another");

  Reader reader(std::span<const std::byte>(bytes).subspan(fixed_bytes), file.name());
  PackedHeader header;
  header.identity.version = reader.text();
  header.identity.layout = reader.text();
  for (std::uint64_t& word : header.identity.fingerprint) word = reader.number<std::uint64_t>();
  header.identity.files.resize(reader.count(16));
  for (auto& each : header.identity.files) {
    each.bytes = reader.number<std::uint64_t>();
    each.changed_ns = reader.number<std::int64_t>();
  }
  header.entries.resize(reader.count(60));
  for (PackedEntry& entry : header.entries) {
    entry.role = reader.text();
    entry.layer = reader.number<std::int32_t>();
    entry.type = reader.text();
    for (std::int64_t* n : {&entry.rows, &entry.cols, &entry.matrices}) *n = reader.number<std::int64_t>();
    for (std::uint64_t* n : {&entry.offset, &entry.bytes, &entry.checksum}) *n = reader.number<std::uint64_t>();
    if (entry.offset < header_bytes || entry.offset % packed_alignment != 0 || entry.offset > file_bytes ||
        entry.bytes > file_bytes - entry.offset)
      reader.fail(fmt::format("a weight of {} bytes at {} in a file of {}", entry.bytes, entry.offset, file_bytes));
  }
  return header;
}

std::string identity_difference(const PackedIdentity& found, const PackedIdentity& wanted) {
  if (found.version != wanted.version)
    return fmt::format("it was written by version {} of the library, this is {}", printable(found.version),
                       wanted.version);
  if (found.layout != wanted.layout)
    return fmt::format("its layout is '{}', this backend's is '{}'", printable(found.layout), wanted.layout);
  if (found.files != wanted.files) return "the model file has changed: another size or time";
  if (found.fingerprint != wanted.fingerprint) return "it belongs to another model: the fingerprint differs";
  return {};
}

std::string entry_difference(const PackedEntry& found, const PackedEntry& wanted) {
  const auto words = [](const PackedEntry& entry) {
    return fmt::format("{} of layer {}: {} {} x {} in {}, {} bytes", printable(entry.role), entry.layer,
                       printable(entry.type), entry.rows, entry.cols, entry.matrices, entry.bytes);
  };
  const std::string is = words(found);
  const std::string should = words(wanted);
  return is == should ? std::string() : fmt::format("it holds {}; needed is {}", is, should);
}

}  // namespace skald::inline v0
