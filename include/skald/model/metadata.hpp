#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Many strings in one block: a vocabulary costs its characters plus 8 bytes per entry. Elements are read as
/// std::string_view, which live as long as the array is neither changed nor destroyed.
class StringArray {
 public:
  StringArray() = default;
  /// Copies the strings of any range.
  template <class Range>
  requires(!std::same_as<std::remove_cvref_t<Range>, StringArray> && requires(const Range& range) {
    std::string_view(*std::begin(range));
  }) explicit StringArray(const Range& strings) {
    for (const auto& text : strings) push_back(text);
  }

  [[nodiscard]] std::size_t size() const noexcept { return ends_.size(); }
  [[nodiscard]] bool empty() const noexcept { return ends_.empty(); }
  /// Element `index`, unchecked.
  [[nodiscard]] std::string_view operator[](std::size_t index) const noexcept {
    const std::uint64_t begin = index == 0 ? 0 : ends_[index - 1];
    return std::string_view(characters_)
        .substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(ends_[index] - begin));
  }
  void push_back(std::string_view text) {
    characters_.append(text);
    ends_.push_back(characters_.size());
  }
  /// Appends an element of `length` bytes and returns its bytes to be filled.
  [[nodiscard]] std::span<char> append(std::size_t length) {
    const std::size_t begin = characters_.size();
    characters_.resize(begin + length);
    ends_.push_back(characters_.size());
    return {characters_.data() + begin, length};
  }
  void reserve(std::size_t count) { ends_.reserve(count); }
  void shrink_to_fit() { characters_.shrink_to_fit(); }
  friend bool operator==(const StringArray&, const StringArray&) = default;

  class Iterator {
   public:
    using iterator_category = std::random_access_iterator_tag;
    using value_type = std::string_view;
    using difference_type = std::ptrdiff_t;
    using pointer = void;
    using reference = std::string_view;
    Iterator() = default;
    Iterator(const StringArray* array, std::size_t index) noexcept : array_(array), index_(index) {}
    std::string_view operator*() const noexcept { return (*array_)[index_]; }
    std::string_view operator[](difference_type n) const noexcept { return *(*this + n); }
    Iterator& operator++() noexcept { return *this += 1; }
    Iterator operator++(int) noexcept { return std::exchange(*this, *this + 1); }
    Iterator& operator--() noexcept { return *this -= 1; }
    Iterator operator--(int) noexcept { return std::exchange(*this, *this - 1); }
    Iterator& operator+=(difference_type n) noexcept {
      index_ += static_cast<std::size_t>(n);
      return *this;
    }
    Iterator& operator-=(difference_type n) noexcept { return *this += -n; }
    friend Iterator operator+(Iterator it, difference_type n) noexcept { return it += n; }
    friend Iterator operator+(difference_type n, Iterator it) noexcept { return it += n; }
    friend Iterator operator-(Iterator it, difference_type n) noexcept { return it -= n; }
    friend difference_type operator-(Iterator a, Iterator b) noexcept {
      return static_cast<difference_type>(a.index_) - static_cast<difference_type>(b.index_);
    }
    friend bool operator==(Iterator a, Iterator b) noexcept { return a.index_ == b.index_; }
    friend auto operator<=>(Iterator a, Iterator b) noexcept { return a.index_ <=> b.index_; }

   private:
    const StringArray* array_ = nullptr;
    std::size_t index_ = 0;
  };
  [[nodiscard]] Iterator begin() const noexcept { return {this, 0}; }
  [[nodiscard]] Iterator end() const noexcept { return {this, size()}; }

 private:
  std::string characters_;
  std::vector<std::uint64_t> ends_;  // where each element ends in characters_
};

/// Array of one element type. The order of the alternatives is that of the type ids of the GGUF specification
/// (github.com/ggml-org/ggml, docs/gguf.md), so `values.index()` is the id of the element type.
struct MetadataArray {
  using Values = std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                              std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                              std::vector<float>, std::vector<bool>, StringArray, std::vector<MetadataArray>,
                              std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;
  Values values{};

  [[nodiscard]] std::size_t size() const {
    return std::visit([](const auto& elements) { return elements.size(); }, values);
  }
  friend bool operator==(const MetadataArray&, const MetadataArray&) = default;
};

/// One metadata value; `index()` is its GGUF type id.
using MetadataValue = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t,
                                   float, bool, std::string, MetadataArray, std::uint64_t, std::int64_t, double>;

/// Type of a value in words: "u32", "string", "array of string".
[[nodiscard]] SKALD_API std::string type_name(const MetadataValue& value);

/// Types that arrays are converted to by Metadata::get_array.
template <class T>
concept MetadataElement = std::same_as<T, std::uint8_t> || std::same_as<T, std::int8_t> ||
    std::same_as<T, std::uint16_t> || std::same_as<T, std::int16_t> || std::same_as<T, std::uint32_t> ||
    std::same_as<T, std::int32_t> || std::same_as<T, float> || std::same_as<T, bool> || std::same_as<T, std::string> ||
    std::same_as<T, std::uint64_t> || std::same_as<T, std::int64_t> || std::same_as<T, double>;

/// Key-value pairs of a model file, in file order, with typed access.
///
/// `get_…` throws FormatError if the key is missing; `find_…` returns nothing then. Both throw FormatError if the
/// value has another type or does not fit, naming the file, key, byte offset, the type found and those allowed.
/// Integers are accepted in any integer type whose value fits, since files differ in the widths that they use.
class SKALD_API Metadata {
 public:
  struct Entry {
    std::string key;
    MetadataValue value;
    std::optional<std::uint64_t> offset{};  ///< where the value lies in the file
  };

  Metadata() = default;
  /// Empty metadata; `file` appears in error messages.
  explicit Metadata(std::string file) : file_(std::move(file)) {}

  [[nodiscard]] const std::string& file() const noexcept { return file_; }
  [[nodiscard]] std::span<const Entry> entries() const noexcept { return entries_; }
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] bool contains(std::string_view key) const { return find(key) != nullptr; }
  /// The entry of a key, or nullptr.
  [[nodiscard]] const Entry* find(std::string_view key) const;
  /// The value of a key. @throws FormatError if it is missing.
  [[nodiscard]] const MetadataValue& at(std::string_view key) const;

  /// Adds a pair, false (and no change) if the key is already there.
  bool insert(std::string key, MetadataValue value, std::optional<std::uint64_t> offset = {});
  /// Adds a pair or replaces its value.
  void set(std::string key, MetadataValue value);

  /// Integer within [min, max]. @throws FormatError.
  [[nodiscard]] std::uint64_t get_u64(std::string_view key, std::uint64_t min = 0,
                                      std::uint64_t max = UINT64_MAX) const;
  [[nodiscard]] std::int64_t get_i64(std::string_view key, std::int64_t min = INT64_MIN,
                                     std::int64_t max = INT64_MAX) const;
  [[nodiscard]] std::uint32_t get_u32(std::string_view key, std::uint32_t min = 0,
                                      std::uint32_t max = UINT32_MAX) const {
    return static_cast<std::uint32_t>(get_u64(key, min, max));
  }
  /// Finite number stored as f32 or f64. @throws FormatError, also for NaN and infinities.
  [[nodiscard]] float get_f32(std::string_view key) const;
  [[nodiscard]] double get_f64(std::string_view key) const;
  [[nodiscard]] bool get_bool(std::string_view key) const;
  [[nodiscard]] const std::string& get_string(std::string_view key) const;
  /// Strings in place, without a copy.
  [[nodiscard]] const StringArray& get_strings(std::string_view key) const;
  /// A copy of an array as elements of type T: integers from any integer type where every value fits, float and
  /// double from either (not checked for NaN), bool and std::string from their own type only.
  template <MetadataElement T>
  [[nodiscard]] std::vector<T> get_array(std::string_view key) const;

  [[nodiscard]] std::optional<std::uint64_t> find_u64(std::string_view key, std::uint64_t min = 0,
                                                      std::uint64_t max = UINT64_MAX) const;
  [[nodiscard]] std::optional<std::int64_t> find_i64(std::string_view key, std::int64_t min = INT64_MIN,
                                                     std::int64_t max = INT64_MAX) const;
  [[nodiscard]] std::optional<std::uint32_t> find_u32(std::string_view key, std::uint32_t min = 0,
                                                      std::uint32_t max = UINT32_MAX) const {
    const auto value = find_u64(key, min, max);
    return value ? std::optional(static_cast<std::uint32_t>(*value)) : std::nullopt;
  }
  [[nodiscard]] std::optional<float> find_f32(std::string_view key) const;
  [[nodiscard]] std::optional<double> find_f64(std::string_view key) const;
  [[nodiscard]] std::optional<bool> find_bool(std::string_view key) const;
  /// nullptr if missing.
  [[nodiscard]] const std::string* find_string(std::string_view key) const;
  /// nullptr if missing.
  [[nodiscard]] const StringArray* find_strings(std::string_view key) const;
  template <MetadataElement T>
  [[nodiscard]] std::optional<std::vector<T>> find_array(std::string_view key) const;

  /// Throws FormatError with the file, the key and the offset of its value: for checks made by the caller.
  [[noreturn]] void fail(std::string_view key, std::string_view message) const;

 private:
  [[nodiscard]] const Entry& require(std::string_view key) const;

  std::string file_;
  std::vector<Entry> entries_;
  std::map<std::string, std::size_t, std::less<>> index_;  // a tree: hostile keys cannot make it slow
};

}  // namespace skald::inline v0
