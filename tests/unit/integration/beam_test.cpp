// Beams over one prompt: the prompt's keys and values are one segment that all beams share, and only what each has answered is
// its own (Yu et al. 2024, arXiv 2401.05391, keep the two in segments; here pages do).
#include <algorithm>
#include <cmath>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

constexpr std::size_t width = 4;
const TinyShape shape{.type = skald::DType::q8_0};

struct Beam {
  skald::Session session;
  std::vector<skald::TokenId> answer;
  double score = 0;
};

/// Logarithms of probabilities.
std::vector<double> logarithms(std::span<const float> row) {
  const double top = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float x : row) sum += std::exp(x - top);
  std::vector<double> result;
  for (const float x : row) result.push_back(x - top - std::log(sum));
  return result;
}

struct Candidate {
  std::size_t beam;
  skald::TokenId token;
  double score;
};

/// The best continuations of all beams, given a row of logits for each.
std::vector<Candidate> best(const std::vector<double>& scores, const std::vector<Rows>& rows) {
  std::vector<Candidate> all;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    const auto logs = logarithms(rows[b]);
    for (std::size_t t = 0; t < logs.size(); ++t)
      all.push_back({b, static_cast<skald::TokenId>(t), scores[b] + logs[t]});
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.score > b.score; });
  all.resize(width);
  return all;
}

}  // namespace

TEST_CASE("integration.beams: a search of width four holds the prompt once, and reorders answers alone") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  constexpr std::int64_t page = 16;
  const skald::Decoder decoder(model, {.kv = {.page_tokens = page}, .context = 512, .parallel = 8});
  const auto prompt = some_tokens(20 * page, shape.vocabulary);
  std::vector<Beam> beams;
  beams.push_back({decoder.new_session(), {}, 0});
  std::vector<Rows> rows{copy(beams[0].session.forward(prompt))};
  const auto prompt_bytes = decoder.counters().kv_page_bytes_used;
  for (int step = 0; step < 24; ++step) {
    std::vector<double> scores;
    for (const auto& beam : beams) scores.push_back(beam.score);
    std::vector<Beam> next;
    for (const auto& candidate : best(scores, rows)) {
      next.push_back({beams[candidate.beam].session.fork(), beams[candidate.beam].answer, candidate.score});
      next.back().answer.push_back(candidate.token);
    }
    beams = std::move(next);
    // The prompt's pages are there once whatever the beams; each beam has at most the pages of its answer, and one
    // that it shared.
    const auto answer_pages = static_cast<std::uint64_t>((step + page - 1) / page);
    const auto page_bytes = prompt_bytes / 20;
    CHECK(decoder.counters().kv_page_bytes_used <= prompt_bytes + width * answer_pages * page_bytes);
    skald::Batch batch;
    for (auto& beam : beams) batch.add(beam.session, {&beam.answer.back(), 1});
    const auto logits = decoder.forward(batch);
    rows.clear();
    for (std::size_t b = 0; b < beams.size(); ++b) rows.emplace_back(logits.last(b).begin(), logits.last(b).end());
    CHECK(decoder.counters().kv_page_bytes_used <= prompt_bytes + width * (answer_pages + 1) * page_bytes);
  }
  CHECK(decoder.counters().kv_bytes_shared > 0);
  // Each beam's logits are those of the whole text in one segment.
  for (std::size_t b = 0; b < beams.size(); ++b) {
    auto text = prompt;
    text.insert(text.end(), beams[b].answer.begin(), beams[b].answer.end());
    auto alone = decoder.new_session();
    CHECK(same_bits(copy(alone.forward(text)), rows[b]));
  }
}
