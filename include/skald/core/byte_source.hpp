#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Random-access bytes: a file, a memory block, an entry of an archive, a database blob.
/// `read` fills all of `out` from `offset` or throws; it may be called from several threads at once.
template <class S>
concept ByteSource = requires(const S& source, std::uint64_t offset, std::span<std::byte> out) {
  { source.size() } -> std::convertible_to<std::uint64_t>;
  source.read(offset, out);
};

/// A ByteSource whose bytes lie in memory: `view` costs nothing and stays valid while the source lives.
template <class S>
concept ViewableByteSource = ByteSource<S> && requires(const S& source, std::uint64_t offset, std::size_t length) {
  { source.view(offset, length) } -> std::same_as<std::span<const std::byte>>;
};

/// Type-erased, shared, immutable ByteSource. Copies are cheap and refer to the same source.
class SKALD_API AnyByteSource {
 public:
  /// An empty source of size 0.
  AnyByteSource() = default;
  /// Wraps any ByteSource; `name` appears in error messages.
  template <class S>
    requires(!std::same_as<S, AnyByteSource>) && ByteSource<S>
  AnyByteSource(S source, std::string name)  // NOLINT(google-explicit-constructor)
      : self_(std::make_shared<Model<S>>(std::move(source))), name_(std::move(name)) {}

  [[nodiscard]] std::uint64_t size() const { return self_ ? self_->size() : 0; }
  /// Fills `out` from `offset`. @throws IoError if the range is not inside the source or reading fails.
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  /// The bytes in place, or an empty span if the source is not in memory or the range is outside.
  [[nodiscard]] std::span<const std::byte> view(std::uint64_t offset, std::size_t length) const;
  /// Tells the source that a range will not be needed again (mapped files give their pages back).
  void release(std::uint64_t offset, std::size_t length) const {
    if (self_) self_->release(offset, length);
  }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }

 private:
  struct Interface {
    virtual ~Interface() = default;
    [[nodiscard]] virtual std::uint64_t size() const = 0;
    virtual void read(std::uint64_t offset, std::span<std::byte> out) const = 0;
    [[nodiscard]] virtual std::span<const std::byte> view(std::uint64_t offset, std::size_t length) const = 0;
    virtual void release(std::uint64_t offset, std::size_t length) const = 0;
  };
  template <class S>
  struct Model final : Interface {
    explicit Model(S s) : source(std::move(s)) {}
    [[nodiscard]] std::uint64_t size() const override { return source.size(); }
    void read(std::uint64_t offset, std::span<std::byte> out) const override { source.read(offset, out); }
    [[nodiscard]] std::span<const std::byte> view([[maybe_unused]] std::uint64_t offset,
                                                  [[maybe_unused]] std::size_t length) const override {
      if constexpr (ViewableByteSource<S>) return source.view(offset, length);
      else return {};
    }
    void release([[maybe_unused]] std::uint64_t offset, [[maybe_unused]] std::size_t length) const override {
      if constexpr (requires { source.release(offset, length); }) source.release(offset, length);
    }
    S source;
  };
  std::shared_ptr<const Interface> self_;
  std::string name_;
};

/// Bytes that the caller keeps alive.
class SKALD_API SpanSource {
 public:
  explicit SpanSource(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return bytes_.size(); }
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  [[nodiscard]] std::span<const std::byte> view(std::uint64_t offset, std::size_t length) const noexcept;

 private:
  std::span<const std::byte> bytes_;
};

/// Bytes fetched by a function `(offset, out)`; it must be callable from several threads at once.
class CallbackSource {
 public:
  using Read = std::function<void(std::uint64_t offset, std::span<std::byte> out)>;
  CallbackSource(std::uint64_t size, Read read) : size_(size), read_(std::move(read)) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const { read_(offset, out); }

 private:
  std::uint64_t size_;
  Read read_;
};

/// A part of another source, e.g. a model stored uncompressed inside an archive.
class SKALD_API SliceSource {
 public:
  /// @throws UsageError if the range is not inside `whole`.
  SliceSource(AnyByteSource whole, std::uint64_t offset, std::uint64_t size);
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  [[nodiscard]] std::span<const std::byte> view(std::uint64_t offset, std::size_t length) const;
  void release(std::uint64_t offset, std::size_t length) const;

 private:
  AnyByteSource whole_;
  std::uint64_t offset_;
  std::uint64_t size_;
};

/// Opens a file with positioned reads: a file that shrinks meanwhile gives an IoError. @throws IoError.
[[nodiscard]] SKALD_API AnyByteSource open_file(const std::string& path);
/// Maps a file read-only. Fast, but a file that is truncated while mapped kills the process (SIGBUS): only for
/// files that nobody changes. @throws IoError.
[[nodiscard]] SKALD_API AnyByteSource map_file(const std::string& path);

}  // namespace skald::inline v0
