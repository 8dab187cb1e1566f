#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>
#include <skald/text/chat_template.hpp>
#include <skald/text/tokenizer.hpp>

#include "support/catch.hpp"
#include "support/recording_backend.hpp"
#include "support/model_parts.hpp"

using namespace skald;
using namespace skald_test;

namespace {

LoadOptions recording(const RecordingBackendPtr& backend) { return {.backend = backend}; }

// All weights as the backend got them and all vectors, in the order of the bindings.
std::vector<std::vector<std::byte>> contents(const Model& model) {
  std::vector<std::vector<std::byte>> result;
  for (const TensorBinding& binding : tensor_bindings(model.spec())) {
    if (const auto* weight = model.weight(binding.role, binding.layer))
      result.push_back(dynamic_cast<const RecordedWeight&>(*weight).codes);
    if (const auto* vector = model.vector(binding.role, binding.layer)) {
      const auto bytes = std::as_bytes(std::span(vector, static_cast<std::size_t>(binding.shape[0])));
      result.emplace_back(bytes.begin(), bytes.end());
    }
  }
  return result;
}

std::vector<std::vector<std::byte>> expected_contents(const TinyModel& model, const ModelSpec& spec) {
  std::vector<std::vector<std::byte>> result;
  for (const TensorBinding& binding : tensor_bindings(spec)) {
    TinyModel copy = model;
    result.push_back(copy.tensor(binding.name).bytes);  // vectors are stored as f32 here
  }
  return result;
}

struct TemporaryFile {
  explicit TemporaryFile(const std::vector<std::byte>& bytes)
      : path((std::filesystem::temp_directory_path() / ("skald_model_load_" + std::to_string(::getpid()) + ".gguf")).string()) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  std::string path;
};

}  // namespace

TEST_CASE("model.load: weights and vectors are the same from every kind of source") {
  for (const DType type : {DType::f32, DType::q8_0, DType::f16}) {
    CAPTURE(to_string(type));
    const TinyModel tiny = tiny_model({.type = type});
    const auto bytes = tiny.to_bytes();
    const auto backend = make_recording_backend();

    const Model from_span = Model::load(AnyByteSource(SpanSource(bytes), "span"), recording(backend));
    const auto expected = expected_contents(tiny, from_span.spec());
    CHECK(contents(from_span) == expected);

    std::vector<std::byte> shifted(13, std::byte{0x5A});
    shifted.insert(shifted.end(), bytes.begin(), bytes.end());
    shifted.insert(shifted.end(), 7, std::byte{0x5A});
    const AnyByteSource whole(SpanSource(shifted), "archive");
    const AnyByteSource slice(SliceSource(whole, 13, bytes.size()), "slice");
    std::atomic<int> reads = 0;
    const CallbackSource callback(bytes.size(), [&](std::uint64_t offset, std::span<std::byte> out) {
      ++reads;
      std::memcpy(out.data(), bytes.data() + offset, out.size());
    });
    const TemporaryFile file(bytes);
    for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
      LoadOptions options = recording(backend);
      options.layout = layout;
      for (const Model& model : {Model::load(slice, options), Model::load(AnyByteSource(callback, "callback"), options),
                                 Model::load(file.path, options), Model::load(map_file(file.path), options)}) {
        CHECK(contents(model) == expected);
        CHECK(model.fingerprint() == from_span.fingerprint());
        CHECK(model.layout() == layout);
      }
    }
    CHECK(reads > 0);
  }
}

TEST_CASE("model.load: rows of a mapped file are used in place, packed weights never are") {
  const auto bytes = tiny_model().to_bytes();
  const auto backend = make_recording_backend();
  const TemporaryFile file(bytes);
  LoadOptions options = recording(backend);
  static_cast<void>(Model::load(file.path, options));
  CHECK(backend->mapped_weights() == 0);
  options.layout = WeightLayout::rows;
  const Model model = Model::load(file.path, options);
  CHECK(backend->mapped_weights() == 2 + 2 * 7);
  options.map = false;
  static_cast<void>(Model::load(file.path, options));
  CHECK(backend->mapped_weights() == 2 + 2 * 7);
}

TEST_CASE("model.load: vectors stored as f16 and bf16 become f32") {
  TinyModel tiny = tiny_model();
  tiny.set_tensor("output_norm.weight", {32}, DType::f16, 1.0F);
  tiny.set_tensor("blk.0.attn_norm.weight", {32}, DType::bf16, 1.0F);
  const Model model = Model::load(source_of(tiny), recording(make_recording_backend()));
  std::vector<float> values(32);
  decode_row(DType::f16, tiny.tensor("output_norm.weight").bytes, values);
  CHECK(std::vector<float>(model.vector(Role::final_norm), model.vector(Role::final_norm) + 32) == values);
  decode_row(DType::bf16, tiny.tensor("blk.0.attn_norm.weight").bytes, values);
  const float* norm = model.vector(Role::attention_norm, 0);
  CHECK(std::vector<float>(norm, norm + 32) == values);
}

TEST_CASE("model.load: vectors lie on 64-byte borders and do not overlap") {
  const Model model =
      Model::load(source_of(tiny_model({.architecture = "qwen3"})), recording(make_recording_backend()));
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> ranges;
  for (const TensorBinding& binding : tensor_bindings(model.spec()))
    if (const auto* vector = model.vector(binding.role, binding.layer)) {
      const auto begin = reinterpret_cast<std::uintptr_t>(vector);
      CHECK(begin % 64 == 0);
      ranges.emplace_back(begin, begin + static_cast<std::uintptr_t>(binding.shape[0]) * sizeof(float));
    }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) CHECK(ranges[i].first >= ranges[i - 1].second);
}

TEST_CASE("model.load: progress counts the tensors' bytes up to their total") {
  const TinyModel tiny = tiny_model({.tied = true});
  std::uint64_t total = 0;
  for (const auto& tensor : tiny.tensors) total += tensor.bytes.size();
  std::vector<Progress> reports;
  LoadOptions options = recording(make_recording_backend());
  options.progress = [&](const Progress& progress) { reports.push_back(progress); };
  static_cast<void>(Model::load(source_of(tiny), options));
  REQUIRE(reports.size() > tiny.tensors.size());
  CHECK(reports.front().done == 0);
  CHECK(reports.back().done == total);
  for (std::size_t i = 0; i < reports.size(); ++i) {
    CHECK(reports[i].stage == "load");
    CHECK(reports[i].total == total);
    if (i > 0) CHECK(reports[i].done > reports[i - 1].done);
  }
}

TEST_CASE("model.load: a stop request from the progress callback cancels at every point") {
  const auto source = source_of(tiny_model());
  const auto backend = make_recording_backend();
  std::size_t calls = 0;
  {
    LoadOptions options = recording(backend);
    options.progress = [&](const Progress&) { ++calls; };
    static_cast<void>(Model::load(source, options));
  }
  for (std::size_t at = 0; at < calls; ++at) {
    std::stop_source stop;
    std::size_t seen = 0;
    LoadOptions options = recording(backend);
    options.stop = stop.get_token();
    options.progress = [&](const Progress&) {
      if (seen++ == at) stop.request_stop();
    };
    CHECK_THROWS_AS(Model::load(source, options), CancelledError);
    CHECK(seen == at + 1);
  }
  CHECK(backend->live_weights() == 0);
  std::stop_source stop;
  stop.request_stop();
  LoadOptions options = recording(backend);
  options.stop = stop.get_token();
  CHECK_THROWS_AS(Model::load(source, options), CancelledError);
}

TEST_CASE("model.load: a stop request is seen between pieces of one large tensor") {
  // One matrix of 8 MiB: far more than is read at once.
  const TinyModel tiny = tiny_model({.layers = 1, .dim = 512, .heads = 4, .kv_heads = 2, .head_dim = 128, .ffn = 4096});
  const auto bytes = tiny.to_bytes();
  std::stop_source stop;
  std::uint64_t after = 0;
  const CallbackSource source(bytes.size(), [&](std::uint64_t offset, std::span<std::byte> out) {
    if (stop.stop_requested()) after += out.size();
    std::memcpy(out.data(), bytes.data() + offset, out.size());
    if (offset > bytes.size() / 2) stop.request_stop();
  });
  LoadOptions options = recording(make_recording_backend());
  options.stop = stop.get_token();
  CHECK_THROWS_AS(Model::load(AnyByteSource(source, "slow"), options), CancelledError);
  CHECK(after == 0);
}

TEST_CASE("model.load: exceptions of the progress callback and of the source pass through") {
  struct Mine : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  const auto bytes = tiny_model().to_bytes();
  const auto backend = make_recording_backend();
  LoadOptions options = recording(backend);
  options.progress = [](const Progress& progress) {
    if (progress.done > progress.total / 2) throw Mine("enough");
  };
  CHECK_THROWS_AS(Model::load(owning_source(bytes), options), Mine);
  CHECK(backend->live_weights() == 0);
  // A source that fails at the n-th read of tensor data, for every n.
  for (int fail_at = 0;; ++fail_at) {
    int reads = 0;
    const CallbackSource source(bytes.size(), [&](std::uint64_t offset, std::span<std::byte> out) {
      if (reads++ == fail_at) throw IoError("test", "the disk is gone");
      std::memcpy(out.data(), bytes.data() + offset, out.size());
    });
    bool loaded = false;
    try {
      const Model model = Model::load(AnyByteSource(source, "failing"), recording(backend));
      loaded = true;
    } catch (const IoError&) {
    }
    CHECK(backend->live_weights() == 0);
    if (loaded) {
      CHECK(fail_at > 20);
      break;
    }
  }
}

TEST_CASE("model.load: a memory budget below the need is refused before anything is allocated") {
  const auto source = source_of(tiny_model());
  const auto backend = make_recording_backend();
  const MemoryPlan planned = plan(read_gguf(source), {.backend = backend});
  const std::uint64_t need = planned.weights + planned.vectors + planned.tokenizer;
  for (const std::uint64_t budget : {std::uint64_t{0}, need / 2, need - 1}) {
    LoadOptions options = recording(backend);
    options.memory_budget = budget;
    try {
      static_cast<void>(Model::load(source, options));
      FAIL("accepted");
    } catch (const OutOfMemoryError& error) {
      CHECK(error.message().find(std::to_string(need) + " bytes") != std::string::npos);
      CHECK(error.message().find(std::to_string(budget) + " bytes") != std::string::npos);
    }
  }
  CHECK(backend->allocations() == 0);
  LoadOptions options = recording(backend);
  options.memory_budget = need;
  CHECK_NOTHROW(Model::load(source, options));
  CHECK(backend->allocations() > 0);
}

TEST_CASE("model.load: a format that the backend refuses is an error that names the tensor") {
  const auto backend = make_recording_backend();
  backend->refuse(DType::q8_0);
  try {
    static_cast<void>(Model::load(source_of(tiny_model({.type = DType::q8_0})), recording(backend)));
    FAIL("accepted");
  } catch (const UnsupportedError& error) {
    CHECK(error.context().tensor == "token_embd.weight");
    CHECK(error.message().find("q8_0") != std::string::npos);
  }
  CHECK(backend->allocations() == 0);
}

TEST_CASE("model.load: copies share one model, and outlive the original") {
  const auto backend = make_recording_backend();
  std::optional<Model> copy;
  {
    Model model = Model::load(source_of(tiny_model()), recording(backend));
    copy = model;
    const Model moved = std::move(model);
    CHECK(model.weight(Role::head) == moved.weight(Role::head));  // NOLINT(bugprone-use-after-move): moving shares
  }
  CHECK(copy->weight(Role::head)->rows() == tiny_vocabulary);
  CHECK(backend->live_weights() == 16);
  copy.reset();
  CHECK(backend->live_weights() == 0);
}

TEST_CASE("model.load: says what was loaded") {
  TinyModel tiny = tiny_model({.type = DType::q8_0});
  tiny.set_tensor("output.weight", {32, tiny_vocabulary}, DType::f16);
  const Model model = Model::load(source_of(tiny), recording(make_recording_backend()));
  const ModelInfo& info = model.info();
  std::uint64_t parameters = 0;
  std::uint64_t bytes = 0;
  for (const auto& tensor : tiny.tensors) {
    std::uint64_t elements = 1;
    for (const auto extent : tensor.dims) elements *= static_cast<std::uint64_t>(extent);
    parameters += elements;
    bytes += tensor.bytes.size();
  }
  CHECK(info.file == "tiny.gguf");
  CHECK(info.name == "tiny");
  CHECK(info.architecture == "llama");
  CHECK(info.parameters == parameters);
  CHECK(info.file_bytes == bytes);
  REQUIRE(info.formats.size() == 2);
  CHECK(info.formats[0].first == "q8_0");
  CHECK(info.formats[1] == std::pair<std::string, std::uint64_t>{"f16", 32 * tiny_vocabulary});
  CHECK(info.load_seconds > 0);
  CHECK(std::vector(model.weight_types().begin(), model.weight_types().end()) == std::vector{DType::f16, DType::q8_0});
  CHECK(info.description.find("llama") != std::string::npos);
  CHECK(info.description.find("q8_0") != std::string::npos);
  CHECK(model.metadata().contains("llama.block_count"));
  CHECK_FALSE(model.metadata().contains("tokenizer.ggml.tokens"));
}

TEST_CASE("model.load: an embedding table multiplies only if it is the head as well") {
  for (const bool tied : {false, true}) {
    TinyModel tiny = tiny_model({.tied = tied});
    tiny.set_tensor("token_embd.weight", {32, tiny_vocabulary}, DType::q8_0);
    const Model model = Model::load(source_of(tiny), recording(make_recording_backend()));
    CHECK(model.weight_types().size() == (tied ? 2U : 1U));
    CHECK(model.weight_types().front() == DType::f32);
  }
}

TEST_CASE("model.load: the fingerprint tells models apart") {
  const auto print = [](const TinyModel& model) {
    return Model::load(source_of(model), recording(make_recording_backend())).fingerprint();
  };
  const auto base = print(tiny_model());
  CHECK(print(tiny_model()) == base);
  TinyModel norm = tiny_model();
  norm.tensor("blk.1.ffn_norm.weight").bytes[5] ^= std::byte{1};
  CHECK(print(norm) != base);
  TinyModel matrix = tiny_model();
  matrix.tensor("blk.1.ffn_up.weight").bytes[5] ^= std::byte{1};
  CHECK(print(matrix) != base);
  TinyModel hyper = tiny_model();
  hyper.set("llama.rope.freq_base", 20000.0F);
  CHECK(print(hyper) != base);
  TinyModel renamed = tiny_model();
  renamed.set("general.name", std::string("another name"));
  CHECK(print(renamed) == base);
}

TEST_CASE("model.load: comes with the tokenizer, unless told not to") {
  const Model with = Model::load(source_of(tiny_model()), recording(make_recording_backend()));
  REQUIRE(with.has_tokenizer());
  CHECK(with.tokenizer().size() == tiny_vocabulary);
  CHECK(with.tokenizer().decode(with.tokenizer().encode("the inn", {.add_special = false})) == "the inn");
  LoadOptions options = recording(make_recording_backend());
  options.tokenizer = false;
  const Model without = Model::load(source_of(tiny_model()), options);
  CHECK_FALSE(without.has_tokenizer());
  CHECK_THROWS_AS(without.tokenizer(), UsageError);
  TinyModel bare = tiny_model();
  std::erase_if(bare.metadata, [](const auto& pair) { return pair.first.starts_with("tokenizer."); });
  const Model no_vocabulary = Model::load(source_of(bare), recording(make_recording_backend()));
  CHECK_FALSE(no_vocabulary.has_tokenizer());
  CHECK_THROWS_AS(no_vocabulary.tokenizer(), UsageError);
  for (const char* kind : {"no_vocab", "none"}) {
    TinyModel said = bare;
    said.metadata.emplace_back("tokenizer.ggml.model", std::string(kind));
    CHECK_FALSE(Model::load(source_of(said), recording(make_recording_backend())).has_tokenizer());
  }
}

TEST_CASE("model.load: comes with the chat template, which knows the begin and end tokens") {
  TinyModel tiny = tiny_model();
  CHECK(Model::load(source_of(tiny), recording(make_recording_backend())).chat_template() == nullptr);
  tiny.set(
      "tokenizer.chat_template",
      std::string("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"));
  const Model model = Model::load(source_of(tiny), recording(make_recording_backend()));
  REQUIRE(model.chat_template() != nullptr);
  CHECK(model.chat_template()->apply({.messages = {{.role = "user", .content = "hi"}}}) == "<s>[user]hi</s>");
  LoadOptions options = recording(make_recording_backend());
  options.tokenizer = false;
  CHECK(Model::load(source_of(tiny), options).chat_template() == nullptr);
}

TEST_CASE("model.load: a chat template that is refused disables chat only, and says why when asked for") {
  const auto check = [](MetadataValue value, ErrorCode code) {
    TinyModel tiny = tiny_model();
    tiny.set("tokenizer.chat_template", std::move(value));
    std::vector<std::string> warnings;
    LoadOptions options = recording(make_recording_backend());
    options.log = [&](const LogEvent& event) {
      if (event.level == LogLevel::warning) warnings.emplace_back(event.message);
    };
    const Model model = Model::load(source_of(tiny), options);
    CHECK(model.has_tokenizer());
    CHECK(warnings.size() == 1);
    for (int i = 0; i < 2; ++i) {
      try {
        static_cast<void>(model.chat_template());
        FAIL_CHECK("no error");
      } catch (const Error& error) {
        CHECK(error.code() == code);
        CHECK(error.context().file == "tiny.gguf");
        CHECK(error.context().key == "tokenizer.chat_template");
      }
    }
  };
  check(std::string("{% if %}"), ErrorCode::format);
  check(std::string("{{ messages"), ErrorCode::format);
  check(std::uint32_t{7}, ErrorCode::format);
}

TEST_CASE("model.load: uses the cpu backend unless told otherwise") {
  const auto source = source_of(tiny_model());
  const Model model = Model::load(source);
  CHECK(model.backend()->info().name == "cpu");
  CHECK(model.info().weight_bytes == plan(read_gguf(source)).weights);
}
