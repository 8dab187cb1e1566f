// Norms of queries and keys with weights of their own for each head, against a network computed here in double precision.
#include <cmath>
#include <cstring>
#include <numeric>

#include <skald/core/error.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/simd/isa.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"

using namespace skald;
using namespace skald_test;

namespace {

using Vector = std::vector<double>;

constexpr std::size_t dim = 32, heads = 4, kv_heads = 2, size = 8, width = 48;
constexpr double epsilon = 1e-3;

TinyModel command_r() {
  TinyModel file = tiny_model({.architecture = "command-r",
                               .layers = 1,
                               .dim = dim,
                               .heads = heads,
                               .kv_heads = kv_heads,
                               .head_dim = size,
                               .ffn = width,
                               .tied = true});
  file.erase("command-r.attention.layer_norm_rms_epsilon");
  file.set("command-r.attention.layer_norm_epsilon", static_cast<float>(epsilon));
  file.set("command-r.logit_scale", 0.25F);
  file.erase_tensor("blk.0.ffn_norm.weight");
  file.set_tensor("blk.0.attn_q_norm.weight", {size, heads}, DType::f32, 1.0F);
  file.set_tensor("blk.0.attn_k_norm.weight", {size, kv_heads}, DType::f32, 1.0F);
  return file;
}

Vector values(TinyModel& file, const std::string& name) {
  const auto& bytes = file.tensor(name).bytes;
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), bytes.size());
  return {floats.begin(), floats.end()};
}

Vector times(const Vector& matrix, const Vector& x) {
  Vector y(matrix.size() / x.size());
  for (std::size_t r = 0; r < y.size(); ++r)
    y[r] = std::inner_product(x.begin(), x.end(), matrix.begin() + static_cast<std::ptrdiff_t>(r * x.size()), 0.0);
  return y;
}

void layer_norm(double* x, std::size_t count, const double* weight) {
  const double mean = std::accumulate(x, x + count, 0.0) / static_cast<double>(count);
  double squares = 0;
  for (std::size_t i = 0; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(count) + epsilon);
  for (std::size_t i = 0; i < count; ++i) x[i] = (x[i] - mean) * scale * weight[i];
}

void rotate(double* head, std::size_t position) {
  for (std::size_t j = 0; j < size / 2; ++j) {
    const double angle = static_cast<double>(position) * std::pow(10000.0, -2.0 * static_cast<double>(j) / size);
    const double a = head[2 * j], b = head[2 * j + 1];
    head[2 * j] = a * std::cos(angle) - b * std::sin(angle);
    head[2 * j + 1] = a * std::sin(angle) + b * std::cos(angle);
  }
}

/// Logits of the last token.
Vector expected(TinyModel& file, const std::vector<TokenId>& tokens) {
  const Vector table = values(file, "token_embd.weight"), norm = values(file, "blk.0.attn_norm.weight");
  const Vector q_norm = values(file, "blk.0.attn_q_norm.weight"), k_norm = values(file, "blk.0.attn_k_norm.weight");
  std::vector<Vector> keys, vals;
  Vector x, y, q;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto row = table.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(tokens[t]) * dim);
    x.assign(row, row + dim);
    y = x;
    layer_norm(y.data(), dim, norm.data());
    q = times(values(file, "blk.0.attn_q.weight"), y);
    keys.push_back(times(values(file, "blk.0.attn_k.weight"), y));
    vals.push_back(times(values(file, "blk.0.attn_v.weight"), y));
    for (std::size_t h = 0; h < heads; ++h) {
      layer_norm(q.data() + h * size, size, q_norm.data() + h * size);
      rotate(q.data() + h * size, t);
    }
    for (std::size_t h = 0; h < kv_heads; ++h) {
      layer_norm(keys.back().data() + h * size, size, k_norm.data() + h * size);
      rotate(keys.back().data() + h * size, t);
    }
  }
  Vector attended(heads * size);
  for (std::size_t h = 0; h < heads; ++h) {
    const std::size_t from = h / (heads / kv_heads) * size;
    Vector shares;
    double sum = 0;
    for (const Vector& key : keys) {
      shares.push_back(std::exp(std::inner_product(key.begin() + static_cast<std::ptrdiff_t>(from),
                                                   key.begin() + static_cast<std::ptrdiff_t>(from + size),
                                                   q.begin() + static_cast<std::ptrdiff_t>(h * size), 0.0) /
                                std::sqrt(static_cast<double>(size))));
      sum += shares.back();
    }
    for (std::size_t t = 0; t < keys.size(); ++t)
      for (std::size_t i = 0; i < size; ++i) attended[h * size + i] += shares[t] / sum * vals[t][from + i];
  }
  const Vector attention = times(values(file, "blk.0.attn_output.weight"), attended);
  Vector gate = times(values(file, "blk.0.ffn_gate.weight"), y);
  const Vector up = times(values(file, "blk.0.ffn_up.weight"), y);
  for (std::size_t i = 0; i < width; ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
  const Vector network = times(values(file, "blk.0.ffn_down.weight"), gate);
  for (std::size_t i = 0; i < dim; ++i) x[i] += attention[i] + network[i];
  layer_norm(x.data(), dim, values(file, "output_norm.weight").data());
  Vector logits = times(table, x);
  for (double& logit : logits) logit *= 0.25;
  return logits;
}

}  // namespace

TEST_CASE("decoder.head_norms: weights for each head give the logits of a network computed in double precision",
          "[decoder]") {
  TinyModel file = command_r();
  const std::vector<TokenId> tokens{5, 9, 31, 7, 200};
  const Vector wanted = expected(file, tokens);
  std::vector<AnyBackend> backends{make_reference_backend()};
  for (const auto isa : available_isas()) backends.push_back(make_backend("cpu:isa=" + std::string(to_string(isa))));
  const auto error = [&](TinyModel& changed, const AnyBackend& backend) {
    const Model model = Model::load(source_of(changed), {.backend = backend, .tokenizer = false});
    CHECK(model.spec().layers[0].attention->qk_norm_scope == QkNormScope::each_head);
    auto session = Decoder<>(model, {.kv = {.format = "f32"}}).new_session();
    const auto found = session.forward(tokens).last();
    REQUIRE(found.size() == wanted.size());
    double most = 0;
    for (std::size_t i = 0; i < found.size(); ++i)
      most = std::max(most, std::abs(static_cast<double>(found[i]) - wanted[i]));
    return most;
  };
  for (const auto& backend : backends) {
    INFO(backend->info().name << " " << backend->info().isa);
    CHECK(error(file, backend) < 2e-6);
  }
  // The weights of single heads count.
  for (const char* name : {"blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"}) {
    TinyModel changed = command_r();
    auto& bytes = changed.tensor(name).bytes;
    const float other = 3.0F;
    std::memcpy(bytes.data() + bytes.size() - sizeof(float), &other, sizeof(float));
    CHECK(error(changed, backends[0]) > 1e-4);
  }
}

TEST_CASE("decoder.head_norms: a norm of another shape, or one that the network does not use, is an error", "[decoder]") {
  const auto refused = [](TinyModel& file, const std::string& tensor) {
    try {
      static_cast<void>(Model::load(source_of(file), {.backend = make_reference_backend()}));
    } catch (const Error& error) {
      CHECK(error.context().tensor == tensor);
      return true;
    }
    return false;
  };
  TinyModel flat = command_r();
  flat.set_tensor("blk.0.attn_q_norm.weight", {size * heads}, DType::f32, 1.0F);
  CHECK(refused(flat, "blk.0.attn_q_norm.weight"));
  TinyModel fewer = command_r();
  fewer.set_tensor("blk.0.attn_k_norm.weight", {size, heads}, DType::f32, 1.0F);
  CHECK(refused(fewer, "blk.0.attn_k_norm.weight"));
  TinyModel llama = tiny_model();
  llama.set_tensor("blk.0.attn_q_norm.weight", {8}, DType::f32, 1.0F);
  CHECK(refused(llama, "blk.0.attn_q_norm.weight"));
}
