// Documents ordered by a classifier over query and document.
#include <cmath>

#include <skald/generate/rerank.hpp>
#include <skald/model/plan.hpp>
#include <skald/text/tokenizer.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"

using namespace skald;
using namespace skald_test;

namespace {

/// A decoder with a classifier whose first layer has `dense` rows (0: none), of matrices in a format.
TinyModel with_classifier(std::int64_t dense, std::int64_t labels, DType type = DType::f32) {
  TinyModel model = tiny_model();
  if (dense > 0) {
    model.set_tensor("cls.weight", {32, dense}, type);
    model.set_tensor("cls.bias", {dense});
  }
  if (labels > 0) {
    model.set_tensor("cls.output.weight", {dense > 0 ? dense : 32, labels}, type);
    model.set_tensor("cls.output.bias", {labels});
  }
  model.set("llama.pooling_type", std::uint32_t{4});
  return model;
}

Model loaded(const TinyModel& model) { return Model::load(source_of(model), {.backend = make_reference_backend()}); }

std::vector<double> matrix_of(const TinyModel& model, const std::string& name) {
  TinyModel copy = model;
  const auto& tensor = copy.tensor(name);
  std::vector<float> row(static_cast<std::size_t>(tensor.dims[0]));
  const std::size_t bytes = row_bytes(tensor.type, row.size());
  std::vector<double> result;
  for (std::size_t at = 0; at < tensor.bytes.size(); at += bytes) {
    decode_row(tensor.type, std::span(tensor.bytes).subspan(at, bytes), row);
    result.insert(result.end(), row.begin(), row.end());
  }
  return result;
}

std::vector<double> layer(const TinyModel& model, const std::string& name, const std::vector<double>& x) {
  const auto weight = matrix_of(model, name + ".weight");
  auto result = matrix_of(model, name + ".bias");
  for (std::size_t r = 0; r < result.size(); ++r)
    for (std::size_t i = 0; i < x.size(); ++i) result[r] += weight[r * x.size() + i] * x[i];
  return result;
}

const std::vector<std::string> documents{"the heron", "a stone in the sea", "oh", "the other thirteen", "oh"};

}  // namespace

TEST_CASE("generate.rerank: the logits are those of the classifier's layers over the last hidden state") {
  for (const auto& [dense, labels] : std::vector<std::pair<int, int>>{{32, 3}, {0, 2}, {32, 0}, {64, 1}})
    for (const DType type : {DType::f32, DType::f16, DType::q8_0}) {
      CAPTURE(dense, labels, to_string(type));
      const TinyModel tiny = with_classifier(dense, labels, type);
      const Model model = loaded(tiny);
      const Decoder<> decoder(model, {.kv = {.format = "f32"}});
      const std::vector<TokenId> tokens{1, 70, 80, 90, 100};
      auto session = decoder.new_session();
      std::vector<float> hidden;
      Batch batch;
      batch.add(session, tokens, LogitsWanted::none);
      ForwardOptions pass;
      pass.hidden = &hidden;
      static_cast<void>(decoder.forward(batch, pass));
      std::vector<double> x(hidden.end() - 32, hidden.end());
      if (dense > 0) {
        x = layer(tiny, "cls", x);
        for (double& value : x) value = std::tanh(value);
      }
      if (labels > 0) x = layer(tiny, "cls.output", x);
      const auto logits = embed(decoder, std::span<const TokenId>(tokens));
      REQUIRE(logits.size() == x.size());
      for (std::size_t i = 0; i < x.size(); ++i) CHECK(logits[i] == Approx(x[i]).margin(2e-5));
      CHECK(plan(read_gguf(source_of(tiny)), {.backend = make_reference_backend()}).vectors == model.info().vector_bytes);
    }
}

TEST_CASE("generate.rerank: a classifier orders documents by their scores, which do not depend on one another") {
  const Model model = loaded(with_classifier(32, 1));
  const Decoder<> decoder(model, {.parallel = 3});
  const auto result = rerank(decoder, "where is the heron", documents);
  REQUIRE(result.scores.size() == documents.size());
  REQUIRE(result.order.size() == documents.size());
  for (std::size_t i = 1; i < result.order.size(); ++i)
    CHECK(result.scores[result.order[i - 1]] >= result.scores[result.order[i]]);
  CHECK(result.scores[2] == result.scores[4]);
  CHECK(std::find(result.order.begin(), result.order.end(), 2u) < std::find(result.order.begin(), result.order.end(), 4u));
  CHECK(result.scores[0] != result.scores[1]);
  for (std::size_t i = 0; i < documents.size(); ++i)
    CHECK(rerank(decoder, "where is the heron", std::span(documents).subspan(i, 1)).scores[0] == result.scores[i]);
  CHECK(rerank(decoder, "the sea", documents).scores[0] != result.scores[0]);
  CHECK(rerank(decoder, "the sea", {}).order.empty());
}

TEST_CASE("generate.rerank: of several labels the one that means relevant gives the score, and must be told") {
  TinyModel tiny = with_classifier(0, 2);
  const std::vector<float> logits{1.0F, 3.0F};
  const Model unnamed = loaded(tiny);
  CHECK_THROWS_AS(rerank(Decoder<>(unnamed), "q", documents), UsageError);
  CHECK(rerank_score(*unnamed.classifier(), logits, 1) == Approx(1.0 / (1.0 + std::exp(-2.0))));
  CHECK_THROWS_AS(rerank_score(*unnamed.classifier(), logits, 2), UsageError);
  tiny.set("llama.classifier.output_labels", MetadataArray{StringArray(std::vector<std::string>{"yes", "no"})});
  const Model named = loaded(tiny);
  CHECK(named.info().unused_keys.empty());
  CHECK(rerank_score(*named.classifier(), logits) == Approx(1.0 / (1.0 + std::exp(2.0))));
  const auto result = rerank(Decoder<>(named), "q", documents);
  for (const float score : result.scores) CHECK((score > 0.0F && score < 1.0F));
  tiny.set("llama.classifier.output_labels", MetadataArray{StringArray(std::vector<std::string>{"yes"})});
  CHECK_THROWS_AS(loaded(tiny), FormatError);
}

TEST_CASE("generate.rerank: query and document are put together as the file's template says, or with separators") {
  TinyModel tiny = with_classifier(0, 1);
  const auto pair = rerank_pair(loaded(tiny), "the", "</s>");
  const Tokenizer tokenizer = loaded(tiny).tokenizer();
  auto expected = tokenizer.encode("the");
  CHECK(expected.front() == tokenizer.bos());
  CHECK(pair.second == static_cast<std::int64_t>(expected.size()));
  const auto document = tokenizer.encode("</s>", {.add_special = false});
  CHECK(document.size() > 1);  // text, not the control token
  expected.insert(expected.end(), document.begin(), document.end());
  CHECK(pair.tokens == expected);

  tiny.set("tokenizer.chat_template.rerank", std::string("<s>q {query} d {document}</s>"));
  const Model model = loaded(tiny);
  const auto whole = [&](std::string_view text) {
    return tokenizer.encode(text, {.add_special = false, .parse_special = true});
  };
  CHECK(rerank_pair(model, "the", "a {query}").tokens == whole("<s>q the d a {query}</s>"));
  const auto guarded = rerank_pair(model, "the", "a</s>b").tokens;
  CHECK(std::count(guarded.begin(), guarded.end(), tokenizer.eos()) == 1);  // the template's own
  CHECK(guarded.back() == tokenizer.eos());
}

TEST_CASE("generate.rerank: classifiers that do not fit the network are refused by name") {
  const auto refused = [](const std::string& name, const TinyModel& model) {
    try {
      static_cast<void>(loaded(model));
      FAIL("accepted");
    } catch (const Error& error) {
      INFO(error.what());
      CHECK(std::string(error.what()).find(name) != std::string::npos);
    }
  };
  TinyModel wide = with_classifier(0, 2);
  wide.set_tensor("cls.output.weight", {33, 2});
  refused("cls.output.weight", wide);
  TinyModel bias = with_classifier(32, 2);
  bias.set_tensor("cls.bias", {31});
  refused("cls.bias", bias);
  TinyModel stack = with_classifier(0, 2);
  stack.set_tensor("cls.output.weight", {32, 2, 2});
  refused("cls.output.weight", stack);
  TinyModel nan = with_classifier(32, 2);
  const float bad = std::nanf("");
  std::memcpy(nan.tensor("cls.weight").bytes.data() + 8, &bad, sizeof(bad));
  refused("cls.weight", nan);
  TinyModel kind = with_classifier(0, 2);
  kind.set("llama.pooling_type", std::uint32_t{5});
  refused("pooling_type", kind);
  CHECK_THROWS_AS(rerank(Decoder<>(loaded(tiny_model())), "q", documents), UnsupportedError);
}
