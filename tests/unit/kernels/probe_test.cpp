#include <cmath>

#include <skald/core/error.hpp>
#include <skald/kernels/probe.hpp>

#include "support/catch.hpp"

using namespace skald;

TEST_CASE("kernels.probe: every instruction set that runs here gives finite positive rates") {
  const auto executor = make_tbb_executor(2);
  for (const Isa isa : available_isas()) {
    const ProbeOptions options{.isa = isa, .bytes = 1 << 20, .repetitions = 1};
    for (const double rate : {measure_bandwidth(executor, options), measure_int8_peak(executor, options),
                              measure_f32_peak(executor, options), measure_bf16_peak(executor, options)}) {
      CHECK(std::isfinite(rate));
      CHECK(rate > 0);
    }
  }
}

TEST_CASE("kernels.probe: an instruction set that is not available is refused") {
  if (available_isas().back() == Isa::avx512bf16) return;
  CHECK_THROWS_AS(measure_f32_peak(make_tbb_executor(1), {.isa = Isa::avx512bf16}), UnsupportedError);
}
