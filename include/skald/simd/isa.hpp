#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Instruction sets that the kernels are compiled for, in ascending order of preference.
enum class Isa : std::uint8_t {
  baseline,    ///< what every processor of the target has (x86-64: SSE2)
  avx2,        ///< AVX2, FMA, F16C, BMI2
  avx512,      ///< AVX-512 F, BW, DQ, VL, CD
  avx512vnni,  ///< the same and VNNI
  avx512bf16,  ///< the same and BF16: products with bf16 weights round activations to bf16
};

[[nodiscard]] SKALD_API std::string_view to_string(Isa isa) noexcept;
[[nodiscard]] SKALD_API std::optional<Isa> isa_from_name(std::string_view name) noexcept;
/// Instruction sets that are compiled in and that this processor and operating system support (CPUID and XGETBV),
/// ascending. Never empty.
[[nodiscard]] SKALD_API std::vector<Isa> available_isas();
/// The instruction set used when none is asked for: the environment variable SKALD_FORCE_ISA if set, else the last of
/// available_isas(). @throws UnsupportedError if SKALD_FORCE_ISA names one that is unknown or not available.
[[nodiscard]] SKALD_API Isa default_isa();
/// Name of the processor, e.g. "AMD EPYC 9554".
[[nodiscard]] SKALD_API std::string_view processor_name();

}  // namespace skald::inline v0
