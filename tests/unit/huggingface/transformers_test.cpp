// Small models with made-up weights: the numbers that transformers 4.44 gives for the same, in double where it can.
#include <algorithm>

#include <nlohmann/json.hpp>

#include <skald/decoder/embed.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/model/huggingface/directory.hpp>

#include "support/huggingface_folder.hpp"

namespace {

using namespace skald;
using skald_test::PlainTensor;
using skald_test::TemporaryFolder;
using nlohmann::json;
using Shapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

/// The values that the oracle's model has under this name: a linear congruence that begins with a hash of the name.
PlainTensor made_up(const std::string& name, const std::vector<std::int64_t>& shape) {
  std::uint64_t state = 0x9E3779B97F4A7C15u;
  for (const char c : name) state = (state ^ static_cast<std::uint64_t>(c)) * 0x100000001B3u;
  std::string lower = name;
  std::ranges::transform(lower, lower.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  const bool norm = lower.find("norm") != std::string::npos && name.ends_with("weight");
  PlainTensor tensor{shape, {}};
  std::int64_t count = 1;
  for (const auto extent : shape) count *= extent;
  for (std::int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    tensor.values.push_back((norm ? 1.0F : 0.0F) + static_cast<float>(static_cast<double>(state >> 40) / (1 << 24) - 0.5));
  }
  return tensor;
}

void write_folder(const TemporaryFolder& folder, const Shapes& shapes, const json& config) {
  std::map<std::string, PlainTensor> tensors;
  for (const auto& [name, shape] : shapes) tensors.emplace(name, made_up(name, shape));
  skald_test::write_tensors(folder, tensors);
  folder.write("config.json", config.dump());
}

json common() {
  return {{"vocab_size", 24}, {"hidden_size", 16}, {"intermediate_size", 32}, {"num_hidden_layers", 2},
          {"num_attention_heads", 2}};
}

json encoder_config(const std::string& type, const std::string& activation, std::int64_t positions) {
  json config = common();
  config["model_type"] = type;
  config["hidden_act"] = activation;
  config["layer_norm_eps"] = type == "bert" ? 1e-12 : 1e-5;
  config["max_position_embeddings"] = positions;
  return config;
}

Shapes encoder_shapes(const std::string& prefix, std::int64_t positions, std::int64_t types) {
  Shapes shapes{{prefix + "embeddings.word_embeddings.weight", {24, 16}},
                {prefix + "embeddings.position_embeddings.weight", {positions, 16}},
                {prefix + "embeddings.token_type_embeddings.weight", {types, 16}}};
  const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    shapes.push_back({name + ".weight", {out, in}});
    shapes.push_back({name + ".bias", {out}});
  };
  const auto norm = [&](const std::string& name) {
    shapes.push_back({name + ".weight", {16}});
    shapes.push_back({name + ".bias", {16}});
  };
  norm(prefix + "embeddings.LayerNorm");
  for (const std::string layer : {"0", "1"}) {
    const std::string p = prefix + "encoder.layer." + layer + ".";
    for (const char* part : {"query", "key", "value"}) linear(p + "attention.self." + part, 16, 16);
    linear(p + "attention.output.dense", 16, 16);
    norm(p + "attention.output.LayerNorm");
    linear(p + "intermediate.dense", 32, 16);
    linear(p + "output.dense", 16, 32);
    norm(p + "output.LayerNorm");
  }
  return shapes;
}

void add_linear(Shapes& shapes, const std::string& name, std::int64_t out, std::int64_t in) {
  shapes.push_back({name + ".weight", {out, in}});
  shapes.push_back({name + ".bias", {out}});
}

const std::vector<TokenId> tokens{2, 7, 19, 4, 11, 3, 21, 9, 5, 3};

std::vector<float> vector_of(const Model& model, std::int64_t second, EmbedOptions options) {
  const Decoder<> decoder(model, {.kv = {.format = "f32"}});
  const TextPair pair{tokens, second};
  return embed(decoder, std::span(&pair, 1), options).values;
}

void check_near(const std::vector<float>& found, const std::vector<double>& expected, double margin) {
  REQUIRE(found.size() >= expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO(i << ": " << found[i] << " for " << expected[i]);
    CHECK(std::abs(static_cast<double>(found[i]) - expected[i]) <= margin);
  }
}

/// Written as one GGUF file and opened again.
ModelFile through_gguf(const ModelFile& file, const TemporaryFolder& folder) {
  GgufWriter writer;
  writer.set_all(file.metadata());
  for (const TensorInfo& tensor : file.tensors())
    writer.add_tensor(tensor.name, tensor.type,
                      {tensor.dims.begin(), tensor.dims.begin() + static_cast<std::ptrdiff_t>(tensor.rank)},
                      [&](std::uint64_t offset, std::span<std::byte> out) { file.read(tensor, offset, out); });
  writer.write_file(folder.of("model.gguf"));
  return open_model(folder.of("model.gguf"));
}

}  // namespace

TEST_CASE("huggingface.classifier: BERT's pooler and classifier give the logits of both texts' token types") {
  const TemporaryFolder folder("classifier");
  json config = encoder_config("bert", "gelu", 16);
  config["architectures"] = {"BertForSequenceClassification"};
  config["id2label"] = {{"0", "LABEL_0"}, {"1", "LABEL_1"}, {"2", "LABEL_2"}};
  Shapes shapes = encoder_shapes("bert.", 16, 2);
  add_linear(shapes, "bert.pooler.dense", 16, 16);
  add_linear(shapes, "classifier", 3, 16);
  write_folder(folder, shapes, config);
  const std::vector<double> of_pair{0.06766145968043069, -0.9354579599399375, 0.3091576947351068};
  const std::vector<double> of_one{0.9056898355484009, -0.057653993368148804, -0.3636583685874939};
  const ModelFile opened = open_model(folder.path());
  for (const ModelFile& file : {opened, through_gguf(opened, folder)}) {
    const Model model = Model::load(file);
    CHECK(model.info().unused.empty());
    CHECK(model.info().unused_keys.empty());
    REQUIRE(model.classifier() != nullptr);
    CHECK(model.spec().pooling == Pooling::rank);
    CHECK(model.classifier()->spec().labels == std::vector<std::string>{"LABEL_0", "LABEL_1", "LABEL_2"});
    check_near(vector_of(model, 6, {}), of_pair, 5e-6);
    check_near(vector_of(model, -1, {}), of_one, 5e-6);
    CHECK(vector_of(model, -1, {.pooling = Pooling::mean}).size() == 16);
    CHECK_THROWS_AS(vector_of(model, -1, {.dims = 2}), UsageError);
    CHECK_THROWS_AS(vector_of(model, 11, {}), UsageError);
  }
}

TEST_CASE("huggingface.classifier: RoBERTa's positions begin behind the padding token, its classifier has two layers") {
  const TemporaryFolder folder("roberta");
  json config = encoder_config("xlm-roberta", "gelu", 18);
  config["architectures"] = {"XLMRobertaForSequenceClassification"};
  config["pad_token_id"] = 1;
  config["id2label"] = {{"0", "LABEL_0"}};
  Shapes shapes = encoder_shapes("roberta.", 18, 1);
  add_linear(shapes, "classifier.dense", 16, 16);
  add_linear(shapes, "classifier.out_proj", 1, 16);
  write_folder(folder, shapes, config);
  const Model model = Model::load(folder.path());
  CHECK(model.info().unused.empty());
  CHECK(model.spec().context_length == 16);
  check_near(vector_of(model, 6, {}), {-0.3559956549317445}, 5e-6);
  json other = config;
  other["pad_token_id"] = 40;
  other["max_position_embeddings"] = 90;
  folder.write("config.json", other.dump());
  CHECK_THROWS_AS(open_model(folder.path()), FormatError);
}

TEST_CASE("huggingface.classifier: a decoder is scored at its last token") {
  const TemporaryFolder folder("score");
  json config = common();
  config["model_type"] = "qwen2";
  config["hidden_act"] = "silu";
  config["rms_norm_eps"] = 1e-6;
  config["rope_theta"] = 10000.0;
  config["num_key_value_heads"] = 1;
  config["max_position_embeddings"] = 64;
  config["architectures"] = {"Qwen2ForSequenceClassification"};
  Shapes shapes{{"model.embed_tokens.weight", {24, 16}}, {"model.norm.weight", {16}}, {"score.weight", {2, 16}}};
  for (const std::string layer : {"0", "1"}) {
    const std::string p = "model.layers." + layer + ".";
    add_linear(shapes, p + "self_attn.q_proj", 16, 16);
    add_linear(shapes, p + "self_attn.k_proj", 8, 16);
    add_linear(shapes, p + "self_attn.v_proj", 8, 16);
    shapes.push_back({p + "self_attn.o_proj.weight", {16, 16}});
    shapes.push_back({p + "mlp.gate_proj.weight", {32, 16}});
    shapes.push_back({p + "mlp.up_proj.weight", {32, 16}});
    shapes.push_back({p + "mlp.down_proj.weight", {16, 32}});
    shapes.push_back({p + "input_layernorm.weight", {16}});
    shapes.push_back({p + "post_attention_layernorm.weight", {16}});
  }
  write_folder(folder, shapes, config);
  const Model model = Model::load(folder.path());
  CHECK(model.info().unused.empty());
  check_near(vector_of(model, -1, {}), {1.0418641948561043, -1.5199091712018835}, 5e-6);
  std::erase_if(shapes, [](const auto& each) { return each.first == "score.weight"; });
  write_folder(folder, shapes, config);
  CHECK_THROWS_AS(open_model(folder.path()), FormatError);
}

TEST_CASE("huggingface.classifier: the activation is the one that config.json names, also in a GGUF file made of it") {
  // First elements of the first token's state; the two differ by up to 9e-5.
  const std::vector<double> exact{-1.2375378708101819, -0.2409897894622306, 0.7733987604779723, -0.4288558739368794};
  const std::vector<double> approximate{-1.2375900775697877, -0.24090379729866584, 0.7734001194560434,
                                        -0.42894340127239283};
  Shapes shapes = encoder_shapes("", 16, 2);
  for (const auto& [name, expected] : {std::pair{"gelu", exact}, std::pair{"gelu_new", approximate}}) {
    const TemporaryFolder folder("activation");
    write_folder(folder, shapes, encoder_config("bert", name, 16));
    const ModelFile opened = open_model(folder.path());
    for (const ModelFile& file : {opened, through_gguf(opened, folder)})
      for (const char* backend : {"reference", "cpu"}) {
        CAPTURE(name, backend);
        const Model model = Model::load(file, {.backend = make_backend(backend)});
        CHECK(model.info().unused_keys.empty());
        check_near(vector_of(model, 6, {.pooling = Pooling::cls, .normalize = false}), expected, 8e-6);
      }
  }
  const TemporaryFolder folder("activation");
  write_folder(folder, shapes, encoder_config("bert", "quick_gelu", 16));
  CHECK_THROWS_AS(open_model(folder.path()), UnsupportedError);
}

namespace {

/// Tensors of a decoder with Llama's names.
Shapes decoder_shapes(const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& more) {
  Shapes shapes{{"model.embed_tokens.weight", {24, 16}}, {"model.norm.weight", {16}}};
  for (const std::string layer : {"0", "1"}) {
    const std::string p = "model.layers." + layer + ".";
    shapes.push_back({p + "self_attn.q_proj.weight", {16, 16}});
    shapes.push_back({p + "self_attn.k_proj.weight", {8, 16}});
    shapes.push_back({p + "self_attn.v_proj.weight", {8, 16}});
    shapes.push_back({p + "self_attn.o_proj.weight", {16, 16}});
    shapes.push_back({p + "mlp.gate_proj.weight", {32, 16}});
    shapes.push_back({p + "mlp.up_proj.weight", {32, 16}});
    shapes.push_back({p + "mlp.down_proj.weight", {16, 32}});
    shapes.push_back({p + "input_layernorm.weight", {16}});
    for (const auto& [name, shape] : more) shapes.push_back({p + name, shape});
  }
  return shapes;
}

std::vector<float> last_logits(const ModelFile& file) {
  const Model model = Model::load(file);
  CHECK(model.info().unused.empty());
  const Decoder<> decoder(model, {.kv = {.format = "f32"}});
  auto session = decoder.new_session();
  const auto row = session.forward(tokens).last();
  return {row.begin(), row.end()};
}

json decoder_config(const std::string& type) {
  json config = common();
  config["model_type"] = type;
  config["hidden_act"] = "silu";
  config["layer_norm_eps"] = 1e-5;
  config["num_key_value_heads"] = 1;
  config["max_position_embeddings"] = 64;
  return config;
}

}  // namespace

TEST_CASE("huggingface.folder: StableLM's norms of queries and keys lie in a list with one for each head") {
  const TemporaryFolder folder("stablelm");
  json config = decoder_config("stablelm");
  config["partial_rotary_factor"] = 0.25;
  config["use_parallel_residual"] = true;
  config["qk_layernorm"] = true;
  Shapes shapes = decoder_shapes({{"self_attn.q_layernorm.norms.0.weight", {8}},
                                  {"self_attn.q_layernorm.norms.1.weight", {8}},
                                  {"self_attn.k_layernorm.norms.0.weight", {8}},
                                  {"input_layernorm.bias", {16}}});
  shapes.push_back({"model.norm.bias", {16}});
  shapes.push_back({"lm_head.weight", {24, 16}});
  write_folder(folder, shapes, config);
  check_near(last_logits(open_model(folder.path())),
             {-1.443350787572845, -0.6519052740673105, 0.15142904401201335, -0.5371076488392693, -0.7440212177643705},
             5e-6);
  std::erase_if(shapes, [](const auto& each) { return each.first == "model.layers.1.self_attn.q_layernorm.norms.1.weight"; });
  write_folder(folder, shapes, config);
  CHECK_THROWS_AS(open_model(folder.path()), FormatError);
}

TEST_CASE("huggingface.folder: Command R's norms of queries and keys are those of each head") {
  const TemporaryFolder folder("cohere");
  json config = decoder_config("cohere");
  config["use_qk_norm"] = true;
  config["logit_scale"] = 0.0625;
  config["eos_token_id"] = 255001;  // the class's default, which a small vocabulary does not have
  write_folder(folder, decoder_shapes({{"self_attn.q_norm.weight", {2, 8}}, {"self_attn.k_norm.weight", {1, 8}}}), config);
  check_near(last_logits(open_model(folder.path())),
             {-0.09687960892915726, 0.029868928715586662, 0.04982559382915497, 0.021706148982048035}, 5e-7);
}

TEST_CASE("huggingface.folder: MPT has linear biases and the exact GELU where config.json says neither") {
  const TemporaryFolder folder("mpt");
  const json config{{"model_type", "mpt"}, {"d_model", 16}, {"n_heads", 2}, {"n_layers", 2}, {"max_seq_len", 64},
                    {"vocab_size", 24}, {"layer_norm_epsilon", 1e-5}, {"attn_config", {{"model_type", ""}}}};
  Shapes shapes{{"transformer.wte.weight", {24, 16}}, {"transformer.norm_f.weight", {16}}};
  for (const std::string layer : {"0", "1"}) {
    const std::string p = "transformer.blocks." + layer + ".";
    shapes.push_back({p + "norm_1.weight", {16}});
    shapes.push_back({p + "norm_2.weight", {16}});
    shapes.push_back({p + "attn.Wqkv.weight", {48, 16}});
    shapes.push_back({p + "attn.out_proj.weight", {16, 16}});
    shapes.push_back({p + "ffn.up_proj.weight", {64, 16}});
    shapes.push_back({p + "ffn.down_proj.weight", {16, 64}});
  }
  write_folder(folder, shapes, config);
  check_near(last_logits(open_model(folder.path())),
             {-0.8022056818008423, 0.0037323832511901855, 2.8015658855438232, 2.2664589881896973}, 1e-5);
}
