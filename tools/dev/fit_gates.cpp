// Fits the gates of Dynamic Context Pruning (Anagnostidis et al. 2023, arXiv 2305.15805) to a model that stays as it is:
//   skald_fit_gates model.gguf OUT.safetensors [--tokens 256] [--keep 64] [--width 16] [--texts 160] [--steps 1600]
// The paper trains gates together with the network. Here they learn, by logistic regression on texts of the story grammar, which
// tokens get the most attention from all later ones: a token should stay while it is among the `keep` best. What a gate
// closes stays closed, so the regression goes through the least logit so far. In the end each layer's bias is set so that
// `keep` tokens on the average are left at the end of texts that were not learned from.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <skald/core/random.hpp>
#include <skald/model/safetensors/writer.hpp>
#include <skald/skald.hpp>
#include <skald/state/two_part_kv.hpp>

namespace {

using Floats = std::vector<float>;

struct Settings {
  std::size_t tokens = 256, keep = 64, width = 16, texts = 160, steps = 1600;
};

/// What one layer shows of one text.
struct Sample {
  Floats rows;                      // [token][dim], as the layer's keys are made of
  Floats worth;  // [piece][token]: attention from the piece on, over that of the best token beyond `keep`
};

constexpr float most_worth = 30.0F;
constexpr std::size_t piece = 8;  // rows whose attention is known together

/// The input of a layer's projections, made of how a token entered the layer.
void normalize(const skald::NormSpec& spec, const Floats& weight, float* row) {
  const auto dim = weight.size();
  double mean = 0;
  if (spec.kind == skald::NormKind::layer) mean = std::accumulate(row, row + dim, 0.0) / static_cast<double>(dim);
  double squares = 0;
  for (std::size_t d = 0; d < dim; ++d) squares += std::pow(static_cast<double>(row[d]) - mean, 2.0);
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(dim) + static_cast<double>(spec.epsilon));
  for (std::size_t d = 0; d < dim; ++d)
    row[d] = static_cast<float>((static_cast<double>(row[d]) - mean) * scale) * weight[d];
}

std::vector<std::vector<Sample>> collect(const skald::Model& model, const Settings& set) {
  const auto& spec = model.spec();
  for (int l = 0; l < spec.layer_count(); ++l)
    if (const auto& layer = spec.layers[static_cast<std::size_t>(l)]; !layer.attention || layer.attention_norm.bias)
      throw skald::IncompatibleError("fit_gates", "every layer must have attention behind a norm without biases", {.layer = l});
  const auto context = static_cast<std::int64_t>(set.tokens) + 64;
  const skald::Decoder dense(model, {.context = context});
  // Remembers how tokens entered each layer; of the budget nothing is ever dropped.
  const skald::Decoder entering(
      model, {.kv = {.eviction = "adore:budget=" + std::to_string(2 * set.tokens) + ",rebuild=16,interval=16", .page_tokens = 16},
              .context = context});
  const auto layers = static_cast<std::size_t>(spec.layer_count());
  const auto dim = static_cast<std::size_t>(spec.dim);
  std::vector<Floats> weights(layers, Floats(dim, 1.0F));
  for (std::size_t l = 0; l < layers; ++l)
    if (const auto* at = model.vector(skald::Role::attention_norm, static_cast<int>(l)))
      model.backend()->read(std::as_writable_bytes(std::span(weights[l])), reinterpret_cast<const std::byte*>(at));
  std::vector<std::vector<Sample>> samples(layers);
  for (std::size_t text = 0; text < set.texts; ++text) {
    auto tokens = model.tokenizer().encode(skald::StoryGrammar(1000 + text).text(static_cast<int>(8 * set.tokens)));
    if (tokens.size() < set.tokens) continue;
    tokens.resize(set.tokens);
    auto session = dense.new_session();
    const std::size_t pieces = set.tokens / piece;
    std::vector<Floats> attention(layers, Floats(pieces * set.tokens, 0.0F));
    for (std::size_t p = 0; p < pieces; ++p) {
      skald::Batch batch;
      batch.add(session, std::span(tokens).subspan(p * piece, piece), skald::LogitsWanted::none);
      skald::AttentionScores scores;
      skald::ForwardOptions options;
      options.scores = &scores;
      (void)dense.forward(batch, options);
      for (std::size_t l = 0; l < layers; ++l)
        for (const auto& group : scores.values[0][l])
          for (std::size_t s = 0; s < group.size(); ++s) attention[l][p * set.tokens + s] += group[s];
    }
    auto entered = entering.new_session();
    (void)entered.forward(tokens, skald::LogitsWanted::none);
    for (std::size_t l = 0; l < layers; ++l) {
      Sample sample;
      const float* from = static_cast<const skald::RebuiltKv&>(*entered.state().layer(static_cast<int>(l))).entered(0);
      sample.rows.assign(from, from + set.tokens * dim);
      for (std::size_t t = 0; t < set.tokens; ++t)
        normalize(spec.layers[l].attention_norm, weights[l], sample.rows.data() + t * dim);
      auto& future = attention[l];
      sample.worth.assign(pieces * set.tokens, most_worth);
      for (std::size_t p = pieces; p-- > 0;) {
        for (std::size_t t = 0; t < set.tokens && p + 1 < pieces; ++t)
          future[p * set.tokens + t] += future[(p + 1) * set.tokens + t];
        Floats order(future.begin() + static_cast<std::ptrdiff_t>(p * set.tokens),
                     future.begin() + static_cast<std::ptrdiff_t>(p * set.tokens + p * piece));
        if (order.size() <= set.keep) continue;
        std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(set.keep), order.end(), std::greater<>());
        for (std::size_t t = 0; t < p * piece; ++t)
          sample.worth[p * set.tokens + t] =
              std::min(most_worth, future[p * set.tokens + t] / std::max(order[set.keep], 1e-20F));
      }
      samples[l].push_back(std::move(sample));
    }
  }
  return samples;
}

/// Weights with the moments of Adam (Kingma and Ba 2015).
struct Parameters {
  Floats values, gradient, first, second;
  explicit Parameters(std::size_t count) : values(count), gradient(count), first(count), second(count) {}
  void step(std::size_t time, float rate) {
    const float a = 1.0F - std::pow(0.9F, static_cast<float>(time));
    const float b = 1.0F - std::pow(0.999F, static_cast<float>(time));
    for (std::size_t i = 0; i < values.size(); ++i) {
      first[i] = 0.9F * first[i] + 0.1F * gradient[i];
      second[i] = 0.999F * second[i] + 0.001F * gradient[i] * gradient[i];
      values[i] -= rate * first[i] / a / (std::sqrt(second[i] / b) + 1e-8F);
      gradient[i] = 0.0F;
    }
  }
};

class Gates {
 public:
  Gates(const Settings& set, std::size_t dim, std::size_t layer)
      : set_(set), dim_(dim), query_(set.width * dim), key_(set.width * dim), bias_(1) {
    for (auto* each : {&query_, &key_}) {
      skald::CounterRandom random(7, layer, each == &key_ ? 1 : 0);
      for (float& x : each->values) x = static_cast<float>((random.uniform() - 0.5) * 2 / std::sqrt(static_cast<double>(dim)));
    }
    bias_.values[0] = 2.0F;
  }

  /// The least logit that each token has met, [row][token] for tokens before the row, and at which row.
  void run(const Sample& sample) {
    project(sample, query_, q_);
    project(sample, key_, k_);
    const auto n = set_.tokens;
    least_.assign(n * n, std::numeric_limits<float>::infinity());
    at_.assign(n * n, 0);
    const float scale = 1.0F / std::sqrt(static_cast<float>(set_.width));
    for (std::size_t i = 1; i < n; ++i)
      for (std::size_t j = 0; j < i; ++j) {
        float sum = 0.0F;
        for (std::size_t w = 0; w < set_.width; ++w) sum += q_[i * set_.width + w] * k_[j * set_.width + w];
        const float logit = sum * scale + bias_.values[0];
        const bool lower = logit < least_[(i - 1) * n + j];
        least_[i * n + j] = lower ? logit : least_[(i - 1) * n + j];
        at_[i * n + j] = lower ? static_cast<std::uint32_t>(i) : at_[(i - 1) * n + j];
      }
  }

  /// Adds the gradient of the logistic loss; returns the loss.
  double learn(const Sample& sample) {
    run(sample);
    const auto n = set_.tokens;
    Floats dq(q_.size(), 0.0F);
    Floats dk(k_.size(), 0.0F);
    const float scale = 1.0F / std::sqrt(static_cast<float>(set_.width));
    double loss = 0;
    std::size_t count = 0;
    for (std::size_t p = set_.keep / piece + 1; p < n / piece; ++p) count += p * piece;
    for (std::size_t p = set_.keep / piece + 1; p < n / piece; ++p)
      for (std::size_t j = 0; j + 1 < p * piece; ++j) {
        const std::size_t i = p * piece - 1;  // nothing before the piece has closed it
        const float logit = least_[i * n + j];
        // To drop a token costs its worth, to keep it costs 1: the best logit is the logarithm of the worth.
        const float worth = sample.worth[p * n + j];
        const float share = 1.0F / (1.0F + std::exp(-logit));
        loss -= static_cast<double>(worth * std::log(std::max(1e-9F, share)) + std::log(std::max(1e-9F, 1.0F - share))) /
                static_cast<double>(count);
        const float slope = (share - worth * (1.0F - share)) / static_cast<float>(count);
        const std::size_t row = at_[i * n + j];
        bias_.gradient[0] += slope;
        for (std::size_t w = 0; w < set_.width; ++w) {
          dq[row * set_.width + w] += slope * scale * k_[j * set_.width + w];
          dk[j * set_.width + w] += slope * scale * q_[row * set_.width + w];
        }
      }
    spread(sample, dq, query_);
    spread(sample, dk, key_);
    return loss;
  }

  void step(std::size_t time, float rate) {
    for (auto* each : {&query_, &key_, &bias_}) each->step(time, rate);
  }

  /// Moves the bias so that `keep` tokens on the average are left in the end.
  void level(std::span<const Sample> samples) {
    Floats last;
    for (const auto& sample : samples) {
      run(sample);
      last.insert(last.end(), least_.end() - static_cast<std::ptrdiff_t>(set_.tokens), least_.end() - 1);
    }
    const auto left = std::min(last.size() - 1, samples.size() * (set_.keep - 1));
    std::nth_element(last.begin(), last.begin() + static_cast<std::ptrdiff_t>(left), last.end(), std::greater<>());
    bias_.values[0] -= last[left];
  }

  void save(skald::SafetensorsWriter& out, std::size_t layer) const {
    const auto name = "layers." + std::to_string(layer) + ".";
    const auto add = [&](const char* part, const Parameters& numbers, std::vector<std::int64_t> shape) {
      out.add_tensor(name + part, skald::SafetensorsType::f32, std::move(shape), std::as_bytes(std::span(numbers.values)));
    };
    const std::vector<std::int64_t> shape{static_cast<std::int64_t>(set_.width), static_cast<std::int64_t>(dim_)};
    add("query", query_, shape);
    add("key", key_, shape);
    add("bias", bias_, {1});
  }

 private:
  void project(const Sample& sample, const Parameters& by, Floats& out) const {
    out.resize(set_.tokens * set_.width);
    for (std::size_t t = 0; t < set_.tokens; ++t)
      for (std::size_t w = 0; w < set_.width; ++w) {
        float sums[16] = {};
        for (std::size_t d = 0; d < dim_; ++d) sums[d % 16] += by.values[w * dim_ + d] * sample.rows[t * dim_ + d];
        out[t * set_.width + w] = std::accumulate(sums, sums + 16, 0.0F);
      }
  }
  void spread(const Sample& sample, const Floats& from, Parameters& to) const {
    for (std::size_t t = 0; t < set_.tokens; ++t)
      for (std::size_t w = 0; w < set_.width; ++w)
        for (std::size_t d = 0; d < dim_; ++d)
          to.gradient[w * dim_ + d] += from[t * set_.width + w] * sample.rows[t * dim_ + d];
  }

  Settings set_;
  std::size_t dim_;
  Parameters query_, key_, bias_;
  Floats q_, k_, least_;
  std::vector<std::uint32_t> at_;
};

}  // namespace

int main(int argc, char** argv) try {
  Settings set;
  const std::map<std::string, std::size_t*> flags{
      {"--tokens", &set.tokens}, {"--keep", &set.keep}, {"--width", &set.width}, {"--texts", &set.texts}, {"--steps", &set.steps}};
  for (int i = 3; i + 1 < argc; i += 2)
    if (const auto flag = flags.find(argv[i]); flag != flags.end()) *flag->second = std::stoul(argv[i + 1]);
  if (argc < 3 || argc % 2 == 0 || set.tokens % piece != 0 || set.keep % piece != 0 || set.keep >= set.tokens || set.texts < 20) {
    std::fprintf(stderr, "usage: %s model.gguf OUT.safetensors [--tokens N] [--keep N] [--width N] [--texts N] [--steps N]\n", argv[0]);
    return 2;
  }
  const auto model = skald::Model::load(argv[1]);
  const auto samples = collect(model, set);
  if (samples.empty() || samples[0].size() < 20) throw skald::UsageError("fit_gates", "too few texts of so many tokens");
  skald::SafetensorsWriter out;
  std::vector<Gates> gates;
  for (std::size_t l = 0; l < samples.size(); ++l) gates.emplace_back(set, static_cast<std::size_t>(model.spec().dim), l);
  const auto fit = [&](std::size_t l) {
    const auto learned = samples[l].size() * 7 / 8;
    double loss = 0;
    for (std::size_t time = 1; time <= set.steps; ++time) {
      loss += gates[l].learn(samples[l][time % learned]);
      gates[l].step(time, 3e-3F * (1.0F - static_cast<float>(time - 1) / static_cast<float>(set.steps)));
      if (time % 400 != 0) continue;
      std::printf("layer %zu step %zu: loss %.4f\n", l, time, loss / 400);
      loss = 0;
    }
    gates[l].level(std::span(samples[l]).subspan(learned));
  };
  std::vector<std::thread> threads;  // a layer each
  for (std::size_t l = 0; l < samples.size(); ++l) threads.emplace_back(fit, l);
  for (auto& thread : threads) thread.join();
  for (std::size_t l = 0; l < gates.size(); ++l) gates[l].save(out, l);
  out.write_file(argv[2]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
