#include <skald/simd/isa.hpp>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>

#include <skald/core/error.hpp>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define SKALD_X86 1
#endif

namespace skald::inline v0 {

namespace {

constexpr std::array isa_names{std::string_view("baseline"), std::string_view("avx2"), std::string_view("avx512"),
                               std::string_view("avx512vnni"), std::string_view("avx512bf16")};

#if defined(SKALD_X86)
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned sub_leaf = 0) {
  Registers r;
  if (!__get_cpuid_count(leaf, sub_leaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

/// Register state that the operating system saves (XCR0); 0 if it does not say.
std::uint64_t saved_state(const Registers& leaf1) {
  if (((leaf1.c >> 27) & 1u) == 0) return 0;  // OSXSAVE
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

constexpr bool all(std::uint64_t value, std::uint64_t mask) { return (value & mask) == mask; }

/// The highest instruction set of processor and system. A level needs all lower ones.
Isa detect() {
  const Registers leaf1 = cpuid(1), leaf7 = cpuid(7);
  const std::uint64_t state = saved_state(leaf1);
  constexpr std::uint64_t ymm_state = 0x6;   // XMM and YMM
  constexpr std::uint64_t zmm_state = 0xE6;  // and opmask, upper ZMM0-15, ZMM16-31
  constexpr unsigned avx_fma_f16c = (1u << 28) | (1u << 12) | (1u << 29);
  constexpr unsigned avx2_bmi2 = (1u << 5) | (1u << 8);
  constexpr unsigned avx512 = (1u << 16) | (1u << 17) | (1u << 28) | (1u << 30) | (1u << 31);  // F, DQ, CD, BW, VL
  constexpr unsigned vnni = 1u << 11;
  constexpr unsigned bf16 = 1u << 5;
  if (!all(state, ymm_state) || !all(leaf1.c, avx_fma_f16c) || !all(leaf7.b, avx2_bmi2)) return Isa::baseline;
#if defined(SKALD_NO_AVX512)
  static_cast<void>(zmm_state), static_cast<void>(avx512), static_cast<void>(vnni), static_cast<void>(bf16);
  return Isa::avx2;
#else
  if (!all(state, zmm_state) || !all(leaf7.b, avx512)) return Isa::avx2;
  if (!all(leaf7.c, vnni)) return Isa::avx512;
  return all(cpuid(7, 1).a, bf16) ? Isa::avx512bf16 : Isa::avx512vnni;
#endif
}

std::string read_processor_name() {
  std::string name;
  if (cpuid(0x80000000u).a >= 0x80000004u) {
    for (unsigned leaf = 0x80000002u; leaf <= 0x80000004u; ++leaf) {
      const Registers r = cpuid(leaf);
      std::array<char, 16> part{};
      std::memcpy(part.data(), &r, sizeof(r));
      name.append(part.data(), part.size());
    }
  }
  if (const auto zero = name.find('\0'); zero != std::string::npos) name.resize(zero);
  const auto first = name.find_first_not_of(' ');
  if (first == std::string::npos) return "x86-64 processor";
  return name.substr(first, name.find_last_not_of(' ') - first + 1);
}
#else
Isa detect() { return Isa::baseline; }
std::string read_processor_name() { return "processor"; }
#endif

Isa highest_isa() {
  static const Isa isa = detect();
  return isa;
}

}  // namespace

std::string_view to_string(Isa isa) noexcept {
  const auto index = static_cast<std::size_t>(isa);
  return index < isa_names.size() ? isa_names[index] : std::string_view("unknown");
}

std::optional<Isa> isa_from_name(std::string_view name) noexcept {
  for (std::size_t i = 0; i < isa_names.size(); ++i)
    if (isa_names[i] == name) return static_cast<Isa>(i);
  return std::nullopt;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i <= static_cast<int>(highest_isa()); ++i) isas.push_back(static_cast<Isa>(i));
  return isas;
}

Isa default_isa() {
  const char* forced = std::getenv("SKALD_FORCE_ISA");
  if (!forced || !*forced) return highest_isa();
  const auto isa = isa_from_name(forced);
  if (isa && *isa <= highest_isa()) return *isa;
  std::string message = "SKALD_FORCE_ISA is '" + printable(forced) + "'; available are";
  for (const Isa available : available_isas()) message += " " + std::string(to_string(available));
  throw UnsupportedError("simd.default_isa", message);
}

std::string_view processor_name() {
  static const std::string name = read_processor_name();
  return name;
}

}  // namespace skald::inline v0
