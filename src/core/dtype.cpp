#include <skald/core/dtype.hpp>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

struct Entry {
  DType type;
  DTypeInfo info;
};

constexpr Entry table[] = {
    {DType::f32, {"f32", 1, 4, false}},         {DType::f16, {"f16", 1, 2, false}},
    {DType::q4_0, {"q4_0", 32, 18, true}},      {DType::q4_1, {"q4_1", 32, 20, true}},
    {DType::q5_0, {"q5_0", 32, 22, true}},      {DType::q5_1, {"q5_1", 32, 24, true}},
    {DType::q8_0, {"q8_0", 32, 34, true}},      {DType::q8_1, {"q8_1", 32, 36, true}},
    {DType::q2_k, {"q2_k", 256, 84, true}},     {DType::q3_k, {"q3_k", 256, 110, true}},
    {DType::q4_k, {"q4_k", 256, 144, true}},    {DType::q5_k, {"q5_k", 256, 176, true}},
    {DType::q6_k, {"q6_k", 256, 210, true}},    {DType::q8_k, {"q8_k", 256, 292, true}},
    {DType::iq2_xxs, {"iq2_xxs", 256, 66, true}}, {DType::iq2_xs, {"iq2_xs", 256, 74, true}},
    {DType::iq3_xxs, {"iq3_xxs", 256, 98, true}}, {DType::iq1_s, {"iq1_s", 256, 50, true}},
    {DType::iq4_nl, {"iq4_nl", 32, 18, true}},  {DType::iq3_s, {"iq3_s", 256, 110, true}},
    {DType::iq2_s, {"iq2_s", 256, 82, true}},   {DType::iq4_xs, {"iq4_xs", 256, 136, true}},
    {DType::i8, {"i8", 1, 1, false}},           {DType::i16, {"i16", 1, 2, false}},
    {DType::i32, {"i32", 1, 4, false}},         {DType::i64, {"i64", 1, 8, false}},
    {DType::f64, {"f64", 1, 8, false}},         {DType::iq1_m, {"iq1_m", 256, 56, true}},
    {DType::bf16, {"bf16", 1, 2, false}},       {DType::tq1_0, {"tq1_0", 256, 54, true}},
    {DType::tq2_0, {"tq2_0", 256, 66, true}},   {DType::mxfp4, {"mxfp4", 32, 17, true}},
};

constexpr char lower(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

const DTypeInfo* find_dtype(DType type) noexcept {
  for (const auto& entry : table)
    if (entry.type == type) return &entry.info;
  return nullptr;
}

const DTypeInfo& dtype_info(DType type) {
  if (const auto* info = find_dtype(type)) return *info;
  throw UnsupportedError("core.dtype", "unknown type id " + std::to_string(static_cast<std::uint32_t>(type)));
}

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (const auto& entry : table) {
    if (entry.info.name.size() != name.size()) continue;
    bool equal = true;
    for (std::size_t i = 0; i < name.size(); ++i) equal = equal && entry.info.name[i] == lower(name[i]);
    if (equal) return entry.type;
  }
  return std::nullopt;
}

std::string_view to_string(DType type) noexcept {
  const auto* info = find_dtype(type);
  return info ? info->name : std::string_view("unknown");
}

std::size_t row_bytes(DType type, std::size_t elements) {
  const auto& info = dtype_info(type);
  if (elements % info.block_elements != 0)
    throw UsageError("core.dtype", "a row of " + std::to_string(elements) + " elements is not a multiple of the " +
                                       std::string(info.name) + " block of " + std::to_string(info.block_elements));
  return elements / info.block_elements * info.block_bytes;
}

}  // namespace skald::inline v0
