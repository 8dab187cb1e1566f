// Bad files, bad snapshots, bad calls: documented errors, and everything still works afterwards.
#include <cmath>
#include <fstream>
#include <limits>

#include <skald/core/file.hpp>
#include <skald/decoder/context_file.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/model/gguf/reader.hpp>

#include "helpers.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/gguf_defects.hpp"
#include "support/model_defects.hpp"
#include "support/paths.hpp"

using namespace skald_test;

namespace {

constexpr std::uint64_t most_bytes = std::uint64_t{200} << 20;

std::vector<std::byte> bundled_model() {
  return skald::read_whole_file(skald_test::model_path("skald-tiny-q8_0.gguf"));
}

/// Loading must end with an error that names the place, within bounds of memory.
void check_refused(const skald::AnyByteSource& source, const skald::AnyBackend& backend) {
  const AllocationCounter memory;
  try {
    (void)skald::Model::load(source, {.backend = backend});
    FAIL_CHECK("accepted");
  } catch (const skald::Error& error) {
    INFO(error.what());
    CHECK(error.context().file == "hostile.gguf");
    CHECK((error.context().offset || !error.context().key.empty() || !error.context().tensor.empty()));
    CHECK(std::string(error.what()).size() <= 1024);
  } catch (const std::exception& error) {
    FAIL_CHECK("not a skald::Error: " << error.what());
  }
  CHECK(memory.peak_bytes() < most_bytes);
}

skald::AnyByteSource prefix_of(const std::vector<std::byte>& bytes, std::size_t size) {
  return {skald::SpanSource(std::span(bytes).first(size)), "hostile.gguf"};
}

/// A model file with one matrix element replaced.
std::vector<std::byte> with_element(const std::string& tensor_name, float value) {
  auto bytes = tiny_gguf({});
  const auto file = skald::read_gguf(prefix_of(bytes, bytes.size()));
  const auto* tensor = file.find(tensor_name);
  REQUIRE(tensor != nullptr);
  std::memcpy(bytes.data() + tensor->offset + 9 * sizeof(float), &value, sizeof value);
  return bytes;
}

template <class E, class F>
void check_throws_naming(const F& call, const std::string& key) {
  try {
    call();
    FAIL_CHECK("accepted");
  } catch (const E& error) {
    INFO(error.what());
    CHECK(error.context().key == key);
  }
}

const TinyShape small{.vocabulary = 64, .dim = 64, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 32, .ffn = 64};

}  // namespace

TEST_CASE("integration.hostile: the bundled model cut off anywhere is an error of bounded cost") {
  const auto bytes = bundled_model();
  const auto backend = cpu_with(2);
  CHECK_NOTHROW(skald::Model::load(prefix_of(bytes, bytes.size()), {.backend = backend}));
  for (std::size_t i = 0; i < 200; ++i) {
    const std::size_t size = i < 20 ? i * 3 : (bytes.size() - 1) * i / 199;
    INFO("cut to " << size << " of " << bytes.size() << " bytes");
    check_refused(prefix_of(bytes, size), backend);
  }
}

TEST_CASE("integration.hostile: a file cut off on disk is an error too") {
  const auto bytes = bundled_model();
  const std::string path = "integration_hostile_cut.gguf";
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(size));
    for (const auto layout : {skald::WeightLayout::packed, skald::WeightLayout::rows})
      CHECK_THROWS_AS(skald::Model::load(path, {.layout = layout}), skald::Error);
  }
  CHECK(std::remove(path.c_str()) == 0);
  CHECK_THROWS_AS(skald::Model::load(path), skald::IoError);
}

TEST_CASE("integration.hostile: every container defect of the bundled model is an error of load") {
  const auto bytes = bundled_model();
  const auto backend = cpu_with(1);
  const auto defects = container_defects(bytes);
  CHECK(defects.size() >= 60);
  for (const auto& defect : defects) {
    INFO(defect.name);
    check_refused(prefix_of(defect.bytes, defect.bytes.size()), backend);
  }
}

TEST_CASE("integration.hostile: every contradiction of hyper-parameters and tensors is an error of load") {
  const auto backend = cpu_with(1);
  for (const auto& defect : model_defects()) {
    INFO(defect.name);
    check_refused(keeping_source(defect.model.to_bytes(), "hostile.gguf"), backend);
  }
}

TEST_CASE("integration.hostile: a snapshot cut off or with a flipped bit is refused and changes nothing") {
  const auto model = tiny_model(small);
  const skald::Decoder decoder(model, {.kv = {.page_tokens = 16}});
  auto source = decoder.new_session();
  (void)source.forward(some_tokens(37, small.vocabulary));
  const auto snapshot = source.snapshot();
  auto session = decoder.new_session();
  const auto before = some_tokens(21, small.vocabulary, 9);
  (void)session.forward(before);
  session.set_random_stream(77);
  const auto pages = decoder.counters().kv_pages_used;

  std::size_t accepted = 0;
  for (std::size_t size = 0; size < snapshot.size(); size += 64) {
    try {
      session.restore(std::span(snapshot).first(size));
      ++accepted;
    } catch (const skald::Error&) {
    }
  }
  for (const std::size_t size : {snapshot.size() - 1, std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{9}})
    CHECK_THROWS_AS(session.restore(std::span(snapshot).first(size)), skald::Error);
  skald::CounterRandom random(11, 0, 0);
  for (int i = 0; i < 2000; ++i) {
    auto damaged = snapshot;
    const auto bit = random.next() % (damaged.size() * 8);
    damaged[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    try {
      session.restore(damaged);
      ++accepted;
    } catch (const skald::Error&) {
    }
  }
  CHECK(accepted == 0);
  auto longer = snapshot;
  longer.push_back(std::byte{0});
  CHECK_THROWS_AS(session.restore(longer), skald::Error);

  CHECK(decoder.counters().kv_pages_used == pages);
  CHECK(session.random_stream() == 77);
  CHECK(std::equal(session.tokens().begin(), session.tokens().end(), before.begin(), before.end()));
  CHECK(equals_fresh(decoder, session));
  session.restore(snapshot);
  CHECK(equals_fresh(decoder, session));
}

TEST_CASE("integration.hostile: a snapshot of another composition is refused, naming what differs") {
  const auto model = tiny_model(small);
  const skald::DecoderOptions base{.kv = {.page_tokens = 16}, .context = 256};
  auto source = skald::Decoder(model, base).new_session();
  (void)source.forward(some_tokens(40, small.vocabulary));
  const auto snapshot = source.snapshot();
  const auto refused = [&](const skald::Model& other, const skald::DecoderOptions& options, const std::string& key) {
    const skald::Decoder decoder(other, options);
    auto session = decoder.new_session();
    (void)session.forward(some_tokens(3, small.vocabulary));
    check_throws_naming<skald::IncompatibleError>([&] { session.restore(snapshot); }, key);
    CHECK(session.length() == 3);
    CHECK(equals_fresh(decoder, session));
  };
  auto options = base;
  options.kv.format = "f32";
  refused(model, options, "kv_format");
  options = base;
  options.kv.eviction = "recent_pages:sinks=1,recent=8";
  refused(model, options, "eviction");
  options = base;
  options.kv.page_tokens = 32;
  refused(model, options, "page_tokens");
  options = base;
  options.context = 32;
  refused(model, options, "length");
  auto shape = small;
  shape.seed = 2;
  refused(tiny_model(shape), base, "model");
  shape = small;
  shape.type = skald::DType::q8_0;
  refused(tiny_model(shape), base, "model");
  shape = small;
  shape.layers = 1;
  refused(tiny_model(shape), base, "model");
  shape = small;
  shape.kv_heads = 2;
  const auto two_heads = tiny_model(shape);
  auto grouped = skald::Decoder(two_heads, {.kv = {.heads_per_group = 2}}).new_session();
  (void)grouped.forward(some_tokens(5, small.vocabulary));
  auto apart = skald::Decoder(two_heads).new_session();
  check_throws_naming<skald::IncompatibleError>([&] { apart.restore(grouped.snapshot()); }, "heads_per_group");
  // The same model loaded again, another thread count and batch size: it fits.
  auto again = skald::Decoder(tiny_model(small, {.backend = cpu_with(1)}),
                              {.kv = {.page_tokens = 16}, .context = 256, .batch_tokens = 8})
                   .new_session();
  again.restore(snapshot);
  CHECK(same_bits(next_row(again, 1), next_row(source, 1)));
}

TEST_CASE("integration.hostile: what was computed with other rotary factors is refused") {
  auto shape = small;
  shape.long_rope_above = 128;
  const auto model = tiny_model(shape);
  const auto with_context = [&](std::int64_t context) { return skald::Decoder(model, skald::DecoderOptions{.context = context}); };
  const auto near = with_context(128);
  const auto far = with_context(129);
  CHECK(near.effective_config().rope == "short");
  CHECK(far.effective_config().rope == "long");
  auto source = near.new_session();
  (void)source.forward(some_tokens(40, shape.vocabulary));
  auto other = far.new_session();
  check_throws_naming<skald::IncompatibleError>([&] { other.restore(source.snapshot()); }, "attention");
  const std::string path = "integration_hostile_rope";
  skald::PrefixCache cache(near);
  (void)cache.insert(source);
  cache.save(path);
  skald::PrefixCache others(far);
  check_throws_naming<skald::IncompatibleError>([&] { others.load(path); }, "key");
  skald::save_context(source, path);
  CHECK_THROWS_AS(skald::ContextFile::open(path).load(other), skald::IncompatibleError);
  CHECK(std::remove(path.c_str()) == 0);
  auto same = with_context(64).new_session();
  CHECK_NOTHROW(same.restore(source.snapshot()));
}

TEST_CASE("integration.hostile: a saved session is a whole file or an error") {
  const auto model = tiny_model(small);
  const skald::Decoder decoder(model);
  auto session = decoder.new_session();
  const std::string path = "integration_hostile.session";
  session.save(path);  // an empty one
  (void)session.forward(some_tokens(9, small.vocabulary));
  session.load(path);
  CHECK(session.length() == 0);
  (void)session.forward(some_tokens(9, small.vocabulary));
  session.save(path);
  auto other = decoder.new_session();
  other.load(path);
  CHECK(same_bits(next_row(other, 1), next_row(session, 1)));
  CHECK_THROWS_AS(other.load("integration_hostile.missing"), skald::IoError);
  CHECK_THROWS_AS(session.save("no/such/directory/file"), skald::IoError);
  std::ofstream(path, std::ios::binary) << "skald-session";
  try {
    other.load(path);
    FAIL("accepted");
  } catch (const skald::Error& error) {
    CHECK(error.context().file == path);
  }
  CHECK(std::remove(path.c_str()) == 0);
  CHECK(equals_fresh(decoder, other));
}

TEST_CASE("integration.hostile: numbers that are not finite are errors, not tokens") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    INFO(bad);
    for (const char* vector : {"output_norm.weight", "blk.1.ffn_norm.weight"})
      CHECK_THROWS_AS(skald::Model::load(keeping_source(with_element(vector, bad), "bad")), skald::NumericError);
    for (const char* matrix : {"output.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight"}) {
      INFO(matrix);
      for (const auto& backend : {cpu_with(2), skald::make_reference_backend()}) {
        const auto model = skald::Model::load(keeping_source(with_element(matrix, bad), "bad"), {.backend = backend});
        const skald::Decoder decoder(model);
        auto session = decoder.new_session();
        CHECK_THROWS_AS(session.forward(some_tokens(5, 320)), skald::NumericError);
        CHECK(session.length() == 0);
        CHECK(decoder.counters().kv_pages_used == 0);
      }
    }
  }
  const auto model = tiny_model(TinyShape{});
  const skald::Decoder decoder(model);
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(5, 320));
  for (const auto wanted : {skald::LogitsWanted::last, skald::LogitsWanted::none}) {
    std::vector<float> embeddings(3 * 256, 0.5F);
    embeddings[300] = std::numeric_limits<float>::quiet_NaN();
    skald::Batch batch;
    batch.add_embeddings(session, embeddings, 3, wanted);
    CHECK_THROWS_AS(decoder.forward(batch), skald::NumericError);
    CHECK(session.length() == 5);
  }
  CHECK(equals_fresh(decoder, session));
}

TEST_CASE("integration.hostile: calls that break the rules are refused and the decoder goes on") {
  const auto model = tiny_model(small);
  const skald::Decoder decoder(model, {.kv = {.page_tokens = 16}, .context = 64, .parallel = 2});
  const skald::Decoder foreign(model);
  auto session = decoder.new_session();
  auto stranger = foreign.new_session();
  const auto tokens = some_tokens(64, small.vocabulary);
  (void)session.forward(std::span(tokens).first(20));
  const auto refused = [&](const auto& build) {
    skald::Batch batch;
    CHECK_THROWS_AS((build(batch), decoder.forward(batch)), skald::UsageError);
    CHECK(session.length() == 20);
    CHECK(session.state().pending() == 0);
  };
  const std::vector<skald::TokenId> high{1, static_cast<skald::TokenId>(small.vocabulary)};
  const std::vector<skald::TokenId> negative{1, -1};
  const std::vector<skald::TokenId> one{1};
  const std::vector<float> floats(64, 0.0F);
  refused([&](skald::Batch& batch) { batch.add(session, high); });
  refused([&](skald::Batch& batch) { batch.add(session, negative); });
  refused([&](skald::Batch& batch) { batch.add(session, {}); });
  refused([&](skald::Batch& batch) { batch.add(session, one).add(stranger, one); });
  refused([&](skald::Batch& batch) { batch.add(session, one).add(session, one); });
  refused([&](skald::Batch& batch) { batch.add(session, std::span(tokens).first(45)); });
  refused([&](skald::Batch& batch) { batch.add_embeddings(session, floats, 2); });
  refused([&](skald::Batch& batch) { batch.add_embeddings(session, floats, 0); });
  refused([&](skald::Batch& batch) { batch.add_embeddings(session, floats, -1); });
  for (const std::int32_t parent : {-2, 1, 5}) {
    const std::vector<std::int32_t> parents{-1, parent};
    refused([&](skald::Batch& batch) { batch.add_tree(session, std::span(tokens).first(2), parents); });
  }
  refused(
      [&](skald::Batch& batch) { batch.add_tree(session, std::span(tokens).first(2), std::vector<std::int32_t>{0}); });
  CHECK_THROWS_AS(session.truncate(21), skald::UsageError);
  CHECK_THROWS_AS(session.truncate(-1), skald::UsageError);
  CHECK_THROWS_AS(session.accept(std::vector<std::int32_t>{0}), skald::UsageError);
  (void)decoder.forward(skald::Batch{});
  CHECK(equals_fresh(decoder, session));
  session.truncate(20);

  // A tree that waits for its acceptance.
  skald::Batch batch;
  const std::vector<std::int32_t> parents{-1, 0, 0};
  batch.add_tree(session, std::span(tokens).first(3), parents);
  (void)decoder.forward(batch);
  CHECK_THROWS_AS(session.forward(one), skald::UsageError);
  CHECK_THROWS_AS(session.snapshot(), skald::UsageError);
  CHECK_THROWS_AS(session.fork(), skald::UsageError);
  CHECK_THROWS_AS(session.accept(std::vector<std::int32_t>{1, 0}), skald::UsageError);
  CHECK_THROWS_AS(session.accept(std::vector<std::int32_t>{3}), skald::UsageError);
  session.truncate(20);
  CHECK(equals_fresh(decoder, session));

  // Full.
  session.clear();
  (void)session.forward(tokens);
  CHECK_THROWS_AS(session.forward(one), skald::UsageError);
  session.truncate(63);
  CHECK_NOTHROW(session.forward(one));
}

TEST_CASE("integration.hostile: a pool that is used up refuses, names the remedy, and recovers") {
  const auto model = tiny_model(small);
  const skald::Decoder decoder(model, {.kv = {.page_tokens = 16, .capacity_tokens = 64}, .context = 64});
  auto a = decoder.new_session();
  auto b = decoder.new_session();
  const auto tokens = some_tokens(60, small.vocabulary);
  (void)a.forward(std::span(tokens).first(40));
  try {
    (void)b.forward(std::span(tokens).first(30));
    FAIL("accepted");
  } catch (const skald::OutOfMemoryError& error) {
    CHECK(std::string(error.what()).find("kv.capacity_tokens") != std::string::npos);
  }
  CHECK(b.length() == 0);
  // Both in one batch: neither moves.
  skald::Batch batch;
  batch.add(a, std::span(tokens).first(5)).add(b, std::span(tokens).first(30));
  CHECK_THROWS_AS(decoder.forward(batch), skald::OutOfMemoryError);
  CHECK(a.length() == 40);
  CHECK(b.length() == 0);
  CHECK_THROWS_AS(b.restore(a.snapshot()), skald::OutOfMemoryError);
  {
    auto fork = a.fork();  // shares the pages: needs one only when it writes
    (void)fork.forward(std::span(tokens).first(1));
    CHECK_THROWS_AS(fork.forward(std::span(tokens).first(12)), skald::OutOfMemoryError);
    CHECK(fork.length() == 41);
  }
  (void)b.forward(std::span(tokens).first(16));  // the last page
  b.clear();
  CHECK(decoder.counters().kv_pages_used == 2 * 3);
  auto fresh = skald::Decoder(model, {.kv = {.page_tokens = 16}}).new_session();
  (void)fresh.forward(std::span(tokens).first(40));
  CHECK(same_bits(next_row(a, 2), next_row(fresh, 2)));
}
