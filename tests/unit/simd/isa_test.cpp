#include <cstdlib>
#include <string>

#include <skald/core/error.hpp>
#include <skald/simd/isa.hpp>

#include "support/catch.hpp"

using namespace skald;

namespace {
/// Sets SKALD_FORCE_ISA for the lifetime of the object.
class ForcedIsa {
 public:
  explicit ForcedIsa(const char* value) {
    if (const char* before = std::getenv("SKALD_FORCE_ISA")) before_ = before;
    setenv("SKALD_FORCE_ISA", value, 1);
  }
  ~ForcedIsa() { before_.empty() ? unsetenv("SKALD_FORCE_ISA") : setenv("SKALD_FORCE_ISA", before_.c_str(), 1); }
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;

 private:
  std::string before_;
};
}  // namespace

TEST_CASE("simd.isa: names convert both ways") {
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512vnni, Isa::avx512bf16})
    CHECK(isa_from_name(to_string(isa)) == isa);
  CHECK_FALSE(isa_from_name("AVX2").has_value());
  CHECK_FALSE(isa_from_name("").has_value());
}

TEST_CASE("simd.isa: the available instruction sets ascend from the baseline and agree with the compiler's view") {
  const auto isas = available_isas();
  REQUIRE_FALSE(isas.empty());
  CHECK(isas.front() == Isa::baseline);
  for (std::size_t i = 1; i < isas.size(); ++i) CHECK(isas[i - 1] < isas[i]);
#if defined(__x86_64__)
  __builtin_cpu_init();
  CHECK((isas.back() >= Isa::avx2) == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  CHECK((isas.back() >= Isa::avx512) == (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                                         __builtin_cpu_supports("avx512dq")));
#endif
}

TEST_CASE("simd.isa: SKALD_FORCE_ISA chooses, and refuses what does not exist") {
  for (const Isa isa : available_isas()) {
    const ForcedIsa forced(std::string(to_string(isa)).c_str());
    CHECK(default_isa() == isa);
  }
  {
    const ForcedIsa forced("");
    CHECK(default_isa() == available_isas().back());
  }
  const ForcedIsa forced("avx9000");
  try {
    (void)default_isa();
    FAIL("an unknown instruction set was accepted");
  } catch (const UnsupportedError& error) {
    CHECK(error.message().find("avx9000") != std::string::npos);
    CHECK(error.message().find("baseline") != std::string::npos);
  }
}

TEST_CASE("simd.isa: the processor has a name") { CHECK_FALSE(processor_name().empty()); }
