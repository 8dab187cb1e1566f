#include <string>
#include <string_view>

#include <fmt/format.h>

#include <skald/backend/backend.hpp>
#include <skald/core/error.hpp>
#include <skald/core/spec_string.hpp>

namespace skald::inline v0 {

AnyBackend make_backend(std::string_view text) {
  constexpr std::string_view where = "backend.make_backend";
  SpecString spec(text);
  if (spec.name() == "reference") {
    spec.finish();
    return make_reference_backend();
  }
  if (spec.name() != "cpu") {
    detail::throw_error(ErrorCode::usage, where,
                        fmt::format("no backend is called '{}'; there are: cpu, reference", printable(spec.name())));
  }
  CpuOptions options;
  options.isa = spec.text("isa", "");
  options.threads = static_cast<int>(spec.integer("threads", 0, 0, 4096));
  const std::string pages = spec.text("huge_pages", "on");
  if (pages != "on" && pages != "off") {
    detail::throw_error(ErrorCode::usage, where, fmt::format("huge_pages is '{}'; on or off", printable(pages)));
  }
  options.huge_pages = pages == "on";
  spec.finish();
  return make_cpu_backend(options);
}

}  // namespace skald::inline v0
