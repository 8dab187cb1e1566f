#include <skald/quant/row_codec.hpp>

#include <cmath>
#include <string>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

constexpr DType stored_types[] = {
    DType::f32,     DType::f16,   DType::q4_0,   DType::q4_1,  DType::q5_0,  DType::q5_1,   DType::q8_0,  DType::q2_k,
    DType::q3_k,    DType::q4_k,  DType::q5_k,   DType::q6_k,  DType::iq2_xxs, DType::iq2_xs, DType::iq3_xxs, DType::iq1_s,
    DType::iq4_nl,  DType::iq3_s, DType::iq2_s,  DType::iq4_xs, DType::i8,   DType::i16,    DType::i32,   DType::f64,
    DType::iq1_m,   DType::bf16,  DType::tq1_0,  DType::tq2_0, DType::mxfp4};

std::string format_number(float value) {
  std::string text = std::to_string(value);
  if (std::fabs(value) >= 1e9F || text.find_first_not_of("-0.") == std::string::npos) {
    const int exponent = std::isfinite(value) ? std::ilogb(value) : 0;
    if (std::isfinite(value)) text = "about 2^" + std::to_string(exponent);
  }
  return text;
}

}  // namespace

namespace detail {

std::size_t whole_blocks(std::string_view format, std::size_t n, std::size_t block_elements) {
  if (n % block_elements != 0)
    throw UsageError("quant.row", "a row of " + std::to_string(n) + " elements is not a multiple of the " +
                                      std::string(format) + " block of " + std::to_string(block_elements));
  return n / block_elements;
}

void check_encodable(std::string_view format, const float* x, std::size_t n, float max_magnitude,
                     const float* importance) {
  for (std::size_t i = 0; i < n; ++i) {
    // False for NaN as well.
    if (std::fabs(x[i]) <= max_magnitude) continue;
    std::string message = "element " + std::to_string(i) + " is " + format_number(x[i]) + "; ";
    if (std::isfinite(x[i])) message += std::string(format) + " takes magnitudes up to " + format_number(max_magnitude);
    else message += std::string(format) + " takes finite values only";
    throw NumericError("quant.encode", message);
  }
  if (!importance) return;
  for (std::size_t i = 0; i < n; ++i)
    if (!(std::isfinite(importance[i]) && importance[i] >= 0))
      throw NumericError("quant.encode", "importance " + std::to_string(i) + " is " + format_number(importance[i]) +
                                             "; it must be finite and not negative");
}

void check_activations(std::string_view format, ActivationKind kind, std::size_t n, const ActivationView& activations) {
  if (activations.kind != kind)
    throw UsageError("quant.dot", "a row of " + std::string(format) + " takes activations of kind " +
                                      std::string(to_string(kind)) + ", not " +
                                      std::string(to_string(activations.kind)));
  if (activations.elements != n)
    throw UsageError("quant.dot", "a row of " + std::to_string(n) + " elements met " +
                                      std::to_string(activations.elements) + " activations");
}

}  // namespace detail

const FormatOps* find_format_ops(DType type) noexcept {
  switch (type) {
    case DType::f32: return &format_ops_of<quant::F32>;
    case DType::f16: return &format_ops_of<quant::F16>;
    case DType::bf16: return &format_ops_of<quant::BF16>;
    case DType::q8_0: return &format_ops_of<quant::Q8_0>;
    case DType::q4_0: return &format_ops_of<quant::Q4_0>;
    case DType::q4_1: return &format_ops_of<quant::Q4_1>;
    case DType::q5_0: return &format_ops_of<quant::Q5_0>;
    case DType::q5_1: return &format_ops_of<quant::Q5_1>;
    case DType::q4_k: return &format_ops_of<quant::Q4_K>;
    case DType::q5_k: return &format_ops_of<quant::Q5_K>;
    case DType::q6_k: return &format_ops_of<quant::Q6_K>;
    case DType::q2_k: return &format_ops_of<quant::Q2_K>;
    case DType::q3_k: return &format_ops_of<quant::Q3_K>;
    case DType::iq4_nl: return &format_ops_of<quant::IQ4_NL>;
    case DType::iq4_xs: return &format_ops_of<quant::IQ4_XS>;
    case DType::mxfp4: return &format_ops_of<quant::MXFP4>;
    case DType::tq1_0: return &format_ops_of<quant::TQ1_0>;
    case DType::tq2_0: return &format_ops_of<quant::TQ2_0>;
    case DType::iq2_xxs: return &format_ops_of<quant::IQ2_XXS>;
    case DType::iq2_xs: return &format_ops_of<quant::IQ2_XS>;
    case DType::iq2_s: return &format_ops_of<quant::IQ2_S>;
    case DType::iq3_xxs: return &format_ops_of<quant::IQ3_XXS>;
    case DType::iq3_s: return &format_ops_of<quant::IQ3_S>;
    case DType::iq1_s: return &format_ops_of<quant::IQ1_S>;
    case DType::iq1_m: return &format_ops_of<quant::IQ1_M>;
    case DType::f64: return &format_ops_of<quant::F64>;
    case DType::i8: return &format_ops_of<quant::I8>;
    case DType::i16: return &format_ops_of<quant::I16>;
    case DType::i32: return &format_ops_of<quant::I32>;
    default: return nullptr;
  }
}

const FormatOps& format_ops(DType type) {
  if (const auto* ops = find_format_ops(type)) return *ops;
  std::string allowed;
  for (const DType known : stored_types) allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(known));
  const auto* info = find_dtype(type);
  const std::string name = info ? std::string(info->name) : "id " + std::to_string(static_cast<std::uint32_t>(type));
  throw UnsupportedError("quant.format", "no codec for the type " + name + "; there are " + allowed);
}

std::span<const DType> block_formats() noexcept { return stored_types; }

bool can_encode(DType type) noexcept { return find_format_ops(type) != nullptr; }

namespace {

const FormatOps& checked(DType type, std::size_t row_size, std::size_t elements) {
  const auto& ops = format_ops(type);
  const std::size_t needed = detail::whole_blocks(ops.name, elements, ops.block_elements) * ops.block_bytes;
  if (row_size != needed)
    throw UsageError("quant.row", "a " + std::string(ops.name) + " row of " + std::to_string(elements) +
                                      " elements takes " + std::to_string(needed) + " bytes, not " +
                                      std::to_string(row_size));
  return ops;
}

}  // namespace

void decode_row(DType type, std::span<const std::byte> row, std::span<float> out) {
  checked(type, row.size(), out.size()).decode_row(row.data(), out.data(), out.size());
}

void encode_row(DType type, std::span<const float> x, std::span<std::byte> row, std::span<const float> importance) {
  const auto& ops = checked(type, row.size(), x.size());
  if (!importance.empty() && importance.size() != x.size())
    throw UsageError("quant.encode", "importance has " + std::to_string(importance.size()) + " entries for " +
                                         std::to_string(x.size()) + " elements");
  ops.encode_row(x.data(), row.data(), x.size(), importance.empty() ? nullptr : importance.data());
}

}  // namespace skald::inline v0
