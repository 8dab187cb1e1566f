#include <new>
#include <string>

#include <skald/core/error.hpp>
#include <skald/model/model.hpp>

#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/model_parts.hpp"

using namespace skald;
using namespace skald_test;

TEST_CASE("model.load: any allocation may fail, nothing leaks, and the next load works") {
  TinyModel tiny = tiny_model();
  tiny.set("tokenizer.chat_template", std::string("{% for m in messages %}{{ m.content }}{% endfor %}"));
  const AnyByteSource source = source_of(tiny);
  const LoadOptions options{.backend = make_reference_backend()};
  const auto expected = Model::load(source, options).fingerprint();
  std::uint64_t calls = 0;
  {
    const AllocationCounter counter;
    static_cast<void>(Model::load(source, options));
    calls = counter.calls();
    CHECK(counter.live_bytes() == 0);
  }
  REQUIRE(calls > 100);
  std::uint64_t refused = 0;
  std::uint64_t leaked = 0;
  std::uint64_t other = 0;
  // Every one at first; the many alike of the vocabulary in steps.
  for (std::uint64_t n = 1; n <= calls; n += n < 200 ? 1 : 13) {
    AllocationCounter counter;
    counter.fail_at(n);
    try {
      static_cast<void>(Model::load(source, options));
    } catch (const OutOfMemoryError&) {
      ++refused;
    } catch (const std::bad_alloc&) {
      ++refused;  // before the load began, or while the error was made
    } catch (...) {
      ++other;
    }
    counter.fail_at(0);
    if (counter.live_bytes() != 0) ++leaked;
  }
  CHECK(refused > 100);
  CHECK(leaked == 0);
  CHECK(other == 0);
  CHECK(Model::load(source, options).fingerprint() == expected);
}
