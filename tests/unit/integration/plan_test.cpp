// What a decoder is planned to take, beside what it takes.
#include <skald/decoder/plan.hpp>
#include <skald/state/coupled.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"
#include "support/gates_file.hpp"

namespace {

constexpr std::int64_t context = 320;
constexpr std::int32_t parallel = 2;

const skald_test::TinyShape shape{.layers = 3, .type = skald::DType::q8_0};

const skald::Model& model() {
  static const auto loaded = skald_test::tiny_model(shape, {.backend = skald_test::cpu_with(2)});
  return loaded;
}

skald::DecoderOptions options_of(const std::string& format, const std::string& policy) {
  skald::DecoderOptions options{.context = context, .parallel = parallel, .batch_tokens = 64};
  options.kv.format = format;
  options.kv.eviction = policy;
  options.kv.page_tokens = 16;
  return options;
}

struct Taken {
  std::size_t kv = 0, most_kv = 0, slow = 0, policies = 0, work = 0;
};

/// Of full sessions; pages at their peak.
Taken take(const skald::DecoderOptions& options) {
  const skald::Decoder decoder(model(), options);
  Taken taken;
  taken.work = decoder.memory_bytes();
  std::vector<skald::Session> sessions;
  for (std::int32_t s = 0; s < parallel; ++s) {
    auto& session = sessions.emplace_back(decoder.new_session());
    const auto tokens = skald_test::some_tokens(context, shape.vocabulary, s);
    for (std::int64_t at = 0; at < context; at += 32) {
      (void)session.forward(std::span(tokens).subspan(static_cast<std::size_t>(at), 32), skald::LogitsWanted::none);
      taken.most_kv = std::max(taken.most_kv, taken.kv + session.bytes());
    }
    taken.kv += session.bytes();
    taken.slow += session.slow_bytes();
    taken.policies += session.state().policy_bytes();
  }
  taken.work = std::max(taken.work, decoder.memory_bytes());
  return taken;
}

skald::MemoryPlan planned(const skald::DecoderOptions& options) {
  return skald::plan_decoder(model().spec(), shape.type, options, {.backend = model().backend()});
}

}  // namespace

TEST_CASE("integration.plan: formats take the bytes that were planned", "[integration]") {
  for (const std::string format :
       {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_0;layers 0=f16;heads 1=q8_0", "f16;layers 1=layer 0",
        "q4_0;residual=32", "q8_0;residual=64 f32", "f16;segments=prompt", "f16;values=48", "f32;values=16",
        "f16;chunks=64", "q8_0;chunks=64 of 16,32"}) {
    INFO(format);
    const auto options = options_of(format, "none");
    const auto plan = planned(options);
    const auto taken = take(options);
    CHECK(taken.most_kv <= plan.kv);
    const auto slack = format.find("residual") != std::string::npos || format.find("segments") != std::string::npos;
    if (!slack) CHECK(taken.kv == plan.kv);
    CHECK(taken.kv > plan.kv / 2);
    CHECK(taken.slow == plan.slow);
    CHECK((plan.slow > 0) == (format.find("values") != std::string::npos || format.find("chunks") != std::string::npos));
    CHECK(plan.policies == 0);
    CHECK(taken.policies == 0);
    CHECK(taken.work <= plan.activations + plan.techniques);
    if (plan.slow == 0) CHECK(taken.work == plan.activations);
    else CHECK(taken.work > plan.activations);
  }
}

TEST_CASE("integration.plan: eviction policies take the bytes that were planned", "[integration]") {
  for (const std::string policy :
       {"recent_pages:sinks=1,recent=3", "window:sinks=4,window=60", "h2o:budget=96", "h2o:budget=96,shares=adaptive",
        "keyformer:budget=96", "snapkv:budget=96", "rpc:interval=64", "streaming:sinks=4,window=60", "d2o:budget=96",
        "adore:budget=128,rebuild=32", "dcp"}) {
    INFO(policy);
    const auto options = options_of("f16", policy == "dcp" ? skald_test::gates_policy(shape.layers, shape.dim, 2.0F) : policy);
    const auto plan = planned(options);
    const auto taken = take(options);
    CHECK(taken.most_kv <= plan.kv);
    CHECK(taken.slow == plan.slow);
    CHECK((plan.slow > 0) == (policy.find("adore") != std::string::npos));
    CHECK(taken.policies <= plan.policies);
    // Merging needs memory for what really merges.
    if (policy.find("d2o") == std::string::npos) CHECK(taken.policies == plan.policies);
    CHECK(taken.policies > plan.policies / 2);
    CHECK(taken.work <= plan.activations + plan.techniques);
    if (policy != "dcp") CHECK(taken.work == plan.activations + plan.techniques);  // weights of gates are not in it
    CHECK(plan.total() == plan.weights + plan.vectors + plan.kv + plan.slow + plan.policies + plan.techniques +
                              plan.recurrent + plan.activations + plan.stream + plan.tokenizer);
  }
}

TEST_CASE("integration.plan: refuses what a decoder refuses", "[integration]") {
  CHECK_THROWS_AS(planned(options_of("f17", "none")), skald::Error);
  CHECK_THROWS_AS(planned(options_of("f16", "forgets")), skald::UsageError);
  CHECK_THROWS_AS(planned(options_of("coupled", "none")), skald::UsageError);
}
