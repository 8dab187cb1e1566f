#include <skald/model/metadata.hpp>

#include <array>
#include <cmath>
#include <limits>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::array<std::string_view, 13> type_names = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                         "bool", "string", "array", "u64", "i64", "f64"};
static_assert(type_names.size() == std::variant_size_v<MetadataValue>);
static_assert(type_names.size() == std::variant_size_v<MetadataArray::Values>);

template <class T>
constexpr bool is_integer = std::is_integral_v<T> && !std::is_same_v<T, bool>;

template <class T>
std::string range_text(T min, T max) {
  return std::to_string(min) + " to " + std::to_string(max);
}

[[noreturn]] void fail_type(const Metadata& metadata, std::string_view key, const MetadataValue& value,
                            std::string_view allowed) {
  metadata.fail(key, "found " + type_name(value) + ", allowed is " + std::string(allowed));
}

template <class T>
T integer_value(const Metadata& metadata, const Metadata::Entry& entry, T min, T max) {
  return std::visit(
      [&](const auto& value) -> T {
        using V = std::remove_cvref_t<decltype(value)>;
        if constexpr (is_integer<V>) {
          if (std::cmp_less(value, min) || std::cmp_greater(value, max))
            metadata.fail(entry.key, "found " + std::to_string(value) + ", allowed is " + range_text(min, max));
          return static_cast<T>(value);
        } else {
          fail_type(metadata, entry.key, entry.value, "an integer");
        }
      },
      entry.value);
}

template <class T>
T float_value(const Metadata& metadata, const Metadata::Entry& entry) {
  double value = 0;
  if (const auto* single = std::get_if<float>(&entry.value)) value = static_cast<double>(*single);
  else if (const auto* wide = std::get_if<double>(&entry.value)) value = *wide;
  else fail_type(metadata, entry.key, entry.value, "f32 or f64");
  if (!std::isfinite(value))
    metadata.fail(entry.key, "found " + std::to_string(value) + ", allowed is a finite number");
  if (std::abs(value) > static_cast<double>(std::numeric_limits<T>::max()))
    metadata.fail(entry.key, "found " + std::to_string(value) + ", which does not fit f32");
  return static_cast<T>(value);
}

template <class T>
const T& exact_value(const Metadata& metadata, const Metadata::Entry& entry, std::string_view allowed) {
  if (const auto* value = std::get_if<T>(&entry.value)) return *value;
  fail_type(metadata, entry.key, entry.value, allowed);
}

template <class To, class From>
constexpr bool converts_element =
    (is_integer<To> && is_integer<From>) ||
    (std::is_floating_point_v<To> && std::is_floating_point_v<From>) || std::is_same_v<To, From>;

template <class T>
constexpr std::string_view allowed_array() {
  if constexpr (is_integer<T>) return "an array of integers";
  else if constexpr (std::is_floating_point_v<T>) return "an array of f32 or f64";
  else if constexpr (std::is_same_v<T, bool>) return "an array of bool";
  else return "an array of string";
}

template <class T, class From>
T element_value(const Metadata& metadata, const Metadata::Entry& entry, std::size_t index, From element) {
  if constexpr (is_integer<T>) {
    if (!std::in_range<T>(element))
      metadata.fail(entry.key, "element " + std::to_string(index) + " is " + std::to_string(element) + ", allowed is " +
                                   range_text(std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  }
  return static_cast<T>(element);
}

template <class T>
std::vector<T> array_value(const Metadata& metadata, const Metadata::Entry& entry) {
  const auto& array = exact_value<MetadataArray>(metadata, entry, allowed_array<T>());
  return std::visit(
      [&](const auto& elements) -> std::vector<T> {
        using Elements = std::remove_cvref_t<decltype(elements)>;
        if constexpr (std::is_same_v<Elements, StringArray>) {
          if constexpr (std::is_same_v<T, std::string>) return {elements.begin(), elements.end()};
          else fail_type(metadata, entry.key, entry.value, allowed_array<T>());
        } else {
          using From = typename Elements::value_type;
          if constexpr (std::is_same_v<T, From>) {
            return elements;
          } else if constexpr (converts_element<T, From>) {
            std::vector<T> result;
            result.reserve(elements.size());
            for (std::size_t i = 0; i < elements.size(); ++i)
              result.push_back(element_value<T>(metadata, entry, i, elements[i]));
            return result;
          } else {
            fail_type(metadata, entry.key, entry.value, allowed_array<T>());
          }
        }
      },
      array.values);
}

}  // namespace

std::string type_name(const MetadataValue& value) {
  std::string result(type_names[value.index()]);
  const auto* array = std::get_if<MetadataArray>(&value);
  while (array) {
    result += " of ";
    result += type_names[array->values.index()];
    const auto* nested = std::get_if<std::vector<MetadataArray>>(&array->values);
    array = nested && !nested->empty() ? &nested->front() : nullptr;
  }
  return result;
}

const Metadata::Entry* Metadata::find(std::string_view key) const {
  const auto at = index_.find(key);
  return at == index_.end() ? nullptr : &entries_[at->second];
}

const Metadata::Entry& Metadata::require(std::string_view key) const {
  if (const auto* entry = find(key)) return *entry;
  throw FormatError("model.metadata", "the required key is missing", {.file = file_, .key = std::string(key)});
}

const MetadataValue& Metadata::at(std::string_view key) const { return require(key).value; }

bool Metadata::insert(std::string key, MetadataValue value, std::optional<std::uint64_t> offset) {
  const auto [at, added] = index_.try_emplace(key, entries_.size());
  if (!added) return false;
  try {
    entries_.push_back({std::move(key), std::move(value), offset});
  } catch (...) {
    index_.erase(at);
    throw;
  }
  return true;
}

void Metadata::set(std::string key, MetadataValue value) {
  if (const auto at = index_.find(key); at != index_.end()) {
    entries_[at->second].value = std::move(value);
    entries_[at->second].offset.reset();
  } else {
    insert(std::move(key), std::move(value));
  }
}

void Metadata::fail(std::string_view key, std::string_view message) const {
  ErrorContext context{.file = file_, .key = std::string(key)};
  if (const auto* entry = find(key)) context.offset = entry->offset;
  throw FormatError("model.metadata", message, std::move(context));
}

std::uint64_t Metadata::get_u64(std::string_view key, std::uint64_t min, std::uint64_t max) const {
  return integer_value(*this, require(key), min, max);
}
std::int64_t Metadata::get_i64(std::string_view key, std::int64_t min, std::int64_t max) const {
  return integer_value(*this, require(key), min, max);
}
float Metadata::get_f32(std::string_view key) const { return float_value<float>(*this, require(key)); }
double Metadata::get_f64(std::string_view key) const { return float_value<double>(*this, require(key)); }
bool Metadata::get_bool(std::string_view key) const { return exact_value<bool>(*this, require(key), "bool"); }
const std::string& Metadata::get_string(std::string_view key) const {
  return exact_value<std::string>(*this, require(key), "string");
}
const StringArray& Metadata::get_strings(std::string_view key) const {
  const auto& entry = require(key);
  const auto& array = exact_value<MetadataArray>(*this, entry, "an array of string");
  if (const auto* strings = std::get_if<StringArray>(&array.values)) return *strings;
  fail_type(*this, key, entry.value, "an array of string");
}
template <MetadataElement T>
std::vector<T> Metadata::get_array(std::string_view key) const {
  return array_value<T>(*this, require(key));
}

std::optional<std::uint64_t> Metadata::find_u64(std::string_view key, std::uint64_t min, std::uint64_t max) const {
  return contains(key) ? std::optional(get_u64(key, min, max)) : std::nullopt;
}
std::optional<std::int64_t> Metadata::find_i64(std::string_view key, std::int64_t min, std::int64_t max) const {
  return contains(key) ? std::optional(get_i64(key, min, max)) : std::nullopt;
}
std::optional<float> Metadata::find_f32(std::string_view key) const {
  return contains(key) ? std::optional(get_f32(key)) : std::nullopt;
}
std::optional<double> Metadata::find_f64(std::string_view key) const {
  return contains(key) ? std::optional(get_f64(key)) : std::nullopt;
}
std::optional<bool> Metadata::find_bool(std::string_view key) const {
  return contains(key) ? std::optional(get_bool(key)) : std::nullopt;
}
const std::string* Metadata::find_string(std::string_view key) const {
  return contains(key) ? &get_string(key) : nullptr;
}
const StringArray* Metadata::find_strings(std::string_view key) const {
  return contains(key) ? &get_strings(key) : nullptr;
}
template <MetadataElement T>
std::optional<std::vector<T>> Metadata::find_array(std::string_view key) const {
  return contains(key) ? std::optional(get_array<T>(key)) : std::nullopt;
}

#define SKALD_INSTANTIATE(T)                                                        \
  template SKALD_API std::vector<T> Metadata::get_array<T>(std::string_view) const; \
  template SKALD_API std::optional<std::vector<T>> Metadata::find_array<T>(std::string_view) const
SKALD_INSTANTIATE(std::uint8_t);
SKALD_INSTANTIATE(std::int8_t);
SKALD_INSTANTIATE(std::uint16_t);
SKALD_INSTANTIATE(std::int16_t);
SKALD_INSTANTIATE(std::uint32_t);
SKALD_INSTANTIATE(std::int32_t);
SKALD_INSTANTIATE(std::uint64_t);
SKALD_INSTANTIATE(std::int64_t);
SKALD_INSTANTIATE(float);
SKALD_INSTANTIATE(double);
SKALD_INSTANTIATE(bool);
SKALD_INSTANTIATE(std::string);
#undef SKALD_INSTANTIATE

}  // namespace skald::inline v0
