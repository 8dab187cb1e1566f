// Logits and greedy continuations of the reference data, on the reference backend and on every instruction set of the
// cpu backend.
#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include <skald/decoder/decoder.hpp>
#include <skald/simd/isa.hpp>

#include "support/shared_data.hpp"

namespace {

using nlohmann::json;

struct Tolerance {
  double max_abs = 0;
  double rms = 0;  // 0: not checked
};

struct Comparison {
  double max_abs = 0;
  double rms = 0;
};

Comparison compare(std::span<const float> found, const std::vector<float>& expected) {
  REQUIRE(found.size() == expected.size());
  Comparison result;
  double sum = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double difference = std::abs(static_cast<double>(found[i]) - expected[i]);
    result.max_abs = std::max(result.max_abs, difference);
    sum += difference * difference;
  }
  result.rms = std::sqrt(sum / static_cast<double>(std::max<std::size_t>(found.size(), 1)));
  return result;
}

std::vector<skald::AnyBackend> backends() {
  std::vector<skald::AnyBackend> list{skald::make_reference_backend()};
  for (const auto isa : skald::available_isas())
    list.push_back(skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa))));
  return list;
}

std::string title(const skald::AnyBackend& backend) { return backend->info().name + " " + backend->info().isa; }

std::vector<float> all_logits(skald::Session& session, const std::vector<skald::TokenId>& tokens) {
  const auto logits = session.forward(tokens, skald::LogitsWanted::all);
  const auto first = logits.row(0).data();
  return {first, first + logits.rows() * logits.vocabulary()};
}

/// Checks one model file against its golden files.
void check_golden(const std::string& folder, const std::string& model_file, const std::string& name,
                  const std::string& reference_suffix, Tolerance tolerance, double greedy_margin,
                  const skald::AnyBackend& backend) {
  INFO(name << " on " << title(backend));
  const auto description = json::parse(skald_test::read_text(skald_test::shared_path(folder + "/" + name + ".json")));
  const auto model = skald::Model::load(skald_test::shared_path(model_file), {.backend = backend});
  const skald::Decoder decoder(model, {.kv = {.format = "f32"}});
  int k = 0;
  for (const auto& prompt : description.at("prompts")) {
    const auto tokens = prompt.get<std::vector<skald::TokenId>>();
    auto session = decoder.new_session();
    const auto found = all_logits(session, tokens);
    const auto path = folder + "/" + name + ".p" + std::to_string(++k) + reference_suffix;
    if (!std::filesystem::exists(skald_test::shared_path(path))) continue;
    const auto result = compare(found, skald_test::read_floats(skald_test::shared_path(path)));
    INFO("prompt " << k << ": max " << result.max_abs << ", rms " << result.rms);
    CHECK(result.max_abs <= tolerance.max_abs);
    if (tolerance.rms > 0) CHECK(result.rms <= tolerance.rms);
    if (k < 2 || !description.contains("greedy_ids")) continue;
    // Greedy continuation of prompt 2, fed token by token.
    const auto greedy = description.at("greedy_ids").get<std::vector<skald::TokenId>>();
    const auto margins = description.at("greedy_margins").get<std::vector<double>>();
    std::vector<float> row(found.end() - model.spec().vocabulary, found.end());
    for (std::size_t i = 0; i < greedy.size(); ++i) {
      const auto best = static_cast<skald::TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
      if (margins[i] > greedy_margin) CHECK(best == greedy[i]);
      const auto next = session.forward({&greedy[i], 1}).last();
      row.assign(next.begin(), next.end());
    }
  }
}

}  // namespace

TEST_CASE("decoder.golden: every f32 model gives the reference engine's logits and continuations", "[decoder][golden]") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const std::string name :
       {"llama2-spm", "llama3-ropefreqs", "llama-yarn", "llama-linear-bias", "mixtral", "qwen2", "qwen3", "qwen2moe",
        "qwen3moe", "granitemoe", "gpt-oss", "deepseek3", "deepseek2-legacy-kvb", "olmoe", "gemma",
        "gemma2", "gemma3", "phi2", "phi3-long", "phi3-short", "gpt2", "gptneox", "falcon", "stablelm", "starcoder2",
        "olmo2", "olmo3-swa", "command-r", "cohere2", "granite", "smollm3", "deci", "bloom", "mpt", "dream", "llada",
        "mamba", "falcon-mamba", "mamba2", "mamba2-groups", "jamba", "falcon-h1", "granitehybrid", "nemotron_h", "lfm2",
        "rwkv6", "rwkv7"}) {
    const std::string folder = "goldens/logits";
    const auto description = json::parse(skald_test::read_text(skald_test::shared_path(folder + "/" + name + ".json")));
    const auto& tolerance = description.at("tolerance_max_abs");
    // Where the reference engine is itself far from a float64 result, that result is the tight check.
    const bool exact = std::filesystem::exists(skald_test::shared_path(folder + "/" + name + ".p1.ref64.f32"));
    for (const auto& backend : backends()) {
      const std::string file = "goldens/models/" + name + ".gguf";
      if (exact)
        check_golden(folder, file, name, ".ref64.f32", {tolerance.at("vs_float64").get<double>(), 0}, 0.0, backend);
      else
        check_golden(folder, file, name, ".f32", {tolerance.at("vs_llama_cpp").get<double>(), 0}, 0.0, backend);
    }
  }
}

TEST_CASE("decoder.golden: a model of many layers that amplify rounding gives the reference engine's logits",
          "[decoder][golden]") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const auto& backend : backends())
    check_golden("goldens/logits", "goldens/models/deepseek2-lite.gguf", "deepseek2-lite", ".f32", {5e-3, 0}, 0.0,
                 backend);
}

TEST_CASE("decoder.golden: experts in MXFP4 give the reference logits", "[decoder][golden]") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const auto& backend : backends()) {
    if (backend->refuses_weight(skald::DType::mxfp4, skald::WeightLayout::packed)) continue;
    // The reference engine rounds activations to 8 bits, as the cpu backend does; float64 does not.
    const bool floats = backend->info().name == "reference";
    check_golden("goldens/logits", "goldens/models/gpt-oss-mxfp4.gguf", "gpt-oss-mxfp4",
                 floats ? ".ref64.f32" : ".f32", {floats ? 5e-4 : 1.0, 0}, floats ? 0.0 : 1.0, backend);
  }
}

TEST_CASE("decoder.golden: every weight format gives the reference logits", "[decoder][golden]") {
  if (!skald_test::have_shared("goldens/quants")) return;
  for (const auto* name : {"quant-base", "quant-F16", "quant-Q4_0", "quant-Q4_1", "quant-Q5_0", "quant-Q8_0",
                           "quant-Q4_K", "quant-Q5_K", "quant-Q6_K", "quant-Q4_K_M-mix", "quant-Q2_K", "quant-IQ4_NL",
                           "quant-MXFP4", "quant-TQ2_0", "quant-IQ3_XXS", "quant-IQ2_XXS", "quant-IQ2_S", "quant-IQ1_S",
                           "quant-Q2_K_M-mix"})
    for (const auto& backend : backends()) {
      const std::string folder = "goldens/quants/logits";
      const auto description =
          json::parse(skald_test::read_text(skald_test::shared_path(folder + "/" + name + ".json")));
      const auto& tolerance = description.at("tolerance");
      const std::string file = "goldens/quants/models/" + std::string(name) + ".gguf";
      const bool floats = backend->info().name == "reference" || std::string(name) == "quant-base" ||
                          std::string(name) == "quant-F16";
      if (floats && std::filesystem::exists(skald_test::shared_path(folder + "/" + name + ".p1.ref64.f32"))) {
        check_golden(folder, file, name, ".ref64.f32", {tolerance.at("vs_float64_max").get<double>(), 0},
                     tolerance.at("vs_llama_cpp_max").get<double>(), backend);
      } else {
        const double rms = tolerance.value("vs_llama_cpp_rms", 0.0);
        const double max = tolerance.at("vs_llama_cpp_max").get<double>();
        check_golden(folder, file, name, ".f32", {max, rms}, max, backend);
      }
    }
}
