// What the ops of a pass read beside weights: rows, page tables, places of states, scores.
#include <algorithm>
#include <string>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

void DecoderImpl::prepare_rows(const Batch& batch) {
  const auto dim = model_.spec().dim;
  segments_.clear();
  visible_.clear();
  head_rows_.clear();
  head_runs_.clear();
  pass_has_embeddings_ = false;
  std::size_t words = 0;
  for (const auto& piece : pieces_)
    if (entries(batch)[piece.entry].kind == EntryKind::tree)
      words += static_cast<std::size_t>(piece.count * ((piece.count + 63) / 64));
  visible_.resize(words);  // before any pointer into it is taken
  std::size_t word = 0;
  std::int64_t row = 0;
  for (const auto& piece : pieces_) {
    const auto& entry = entries(batch)[piece.entry];
    const std::int64_t position = entry.session->length();
    Segment segment{static_cast<std::int32_t>(row), static_cast<std::int32_t>(piece.count), nullptr};
    if (entry.kind == EntryKind::tree) segment.visible = visible_.data() + word;
    const auto width = static_cast<std::size_t>((piece.count + 63) / 64);
    for (std::int64_t i = 0; i < piece.count; ++i, ++row) {
      row_tokens_[static_cast<std::size_t>(row)] =
          std::max(0, tokens(batch)[static_cast<std::size_t>(entry.begin + piece.first + i)]);
      std::int64_t at = position + i;
      if (!row_types_.empty())
        row_types_[static_cast<std::size_t>(row)] =
            model_.spec().token_types > 1 && entry.second_begin >= 0 && piece.first + i >= entry.second_begin ? 1 : 0;
      if (entry.kind == EntryKind::tree) {
        std::uint64_t* bits = visible_.data() + word + static_cast<std::size_t>(i) * width;
        const auto parent = parents(batch)[static_cast<std::size_t>(entry.parent_begin + i)];
        std::fill(bits, bits + width, std::uint64_t{0});
        at = position;
        if (parent >= 0) {
          std::copy_n(visible_.data() + word + static_cast<std::size_t>(parent) * width, width, bits);
          at = positions_[static_cast<std::size_t>(row - i + parent)] + 1;
        }
        bits[i / 64] |= std::uint64_t{1} << (i % 64);
      }
      positions_[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(at);
      if (i >= piece.count - piece.logits_count) head_rows_.push_back(static_cast<std::int32_t>(row));
    }
    if (entry.kind == EntryKind::tree) word += static_cast<std::size_t>(piece.count) * width;
    pass_has_embeddings_ = pass_has_embeddings_ || piece.embeddings;
    if (piece.logits_count > 0) {
      const auto begin = static_cast<std::int64_t>(head_rows_.size()) - piece.logits_count;
      if (!head_runs_.empty() && head_runs_.back().logits_row + head_runs_.back().count == piece.logits_row)
        head_runs_.back().count += piece.logits_count;
      else
        head_runs_.push_back({piece.logits_row, begin, piece.logits_count});
    }
    segments_.push_back(segment);
  }
  if (!pass_has_embeddings_) return;
  row_embeddings_.resize(static_cast<std::size_t>(row * dim));
  row = 0;
  for (const auto& piece : pieces_) {
    const auto& entry = entries(batch)[piece.entry];
    if (entry.kind == EntryKind::embeddings)
      std::copy_n(embeddings(batch).data() + entry.embedding_begin + piece.first * dim, piece.count * dim,
                  row_embeddings_.data() + row * dim);
    row += piece.count;
  }
}

void DecoderImpl::prepare_tables(const Batch& batch) {
  std::size_t count = 0;
  for (const auto& layer : kv_) count += static_cast<std::size_t>(layer.groups) * pieces_.size();
  tables_.resize(count);
  policy_scoring_ = false;
  if (eviction_.traits().needs_scores && eviction_.traits().drops_tokens)
    for (const auto& piece : pieces_) policy_scoring_ = policy_scoring_ || scored_from(piece.session->length());
  if (policy_scoring_) score_template_ = {ScoreKind::sum, 0, nullptr};
  if (scoring_ || policy_scoring_) score_pointers_.resize(count);
  if (policy_scoring_) score_before_.resize(count);
  places_.clear();
  for (std::size_t l = 0; l < kv_.size() && recurrent_count_ > 0; ++l)
    for (const auto& piece : pieces_)
      if (const auto* state = entries(batch)[piece.entry].session->state().second(static_cast<int>(l)))
        places_.push_back(static_cast<const RecurrentState*>(state)->place());
  if (model_.spec().has_encoder()) prepare_source_tables();
  if (policy_scoring_) prepare_score_shape(count);
  std::size_t parts = 0;
  for (const auto& layer : kv_) parts += layer.parts.size();
  drop_tables_.resize(gates_.bytes() > 0 ? parts * pieces_.size() : 0);
  std::size_t drop_at = 0;
  std::size_t at = 0;
  std::size_t group_base = 0;
  for (std::size_t l = 0; l < kv_.size(); ++l) {
    for (std::size_t p = 0; p < kv_[l].parts.size(); ++p) {
      const auto& part = kv_[l].parts[p];
      for (const auto& piece : pieces_) {
        auto& state = paged(*entries(batch)[piece.entry].session, l, p);
        for (int g = 0; g < part.groups; ++g, ++at) {
          tables_[at] = {state.pages(g).data(), static_cast<std::int32_t>(state.slots(g) - piece.count),
                         static_cast<std::int32_t>(state.first_slot(g))};
          tables_[at].bias = state.bias(g);
          tables_[at].until = state.until();
          tables_[at].position = static_cast<std::int32_t>(piece.session->length());
          if (slopes_[l] != nullptr && !state.positions(g).empty()) tables_[at].positions = state.positions(g).data();
          if (g == 0 && !drop_tables_.empty())
            drop_tables_[drop_at++] = {state.gate_keys(), state.until(), tables_[at].length, tables_[at].position};
          if (policy_scoring_) open_scores(state, g, scored_from(piece.session->length()), at);
          if (policy_scoring_ && !score_noise_.empty()) score_noise_[at] = state.noise(g);
          if (scoring_)
            score_pointers_[at] =
                reinterpret_cast<float*>(score_memory_.address()) +
                score_offsets_[piece.entry * score_groups_ + group_base + static_cast<std::size_t>(part.first_group + g)];
        }
      }
    }
    group_base += static_cast<std::size_t>(kv_[l].groups);
  }
  if (reads_ahead_) prepare_row_tables();
  prepare_coupled();
  prepare_rebuild(batch);
  prepare_earlier(batch);
  prepare_slow_values(batch);
  prepare_chunk_reads(batch);
}

void DecoderImpl::prepare_coupled() {
  if (!coupled_) return;
  coupled_->begin(tables_, segments_, positions_.data());
  for (std::size_t l = 0; l < kv_.size(); ++l)
    if (!kv_[l].parts.empty())
      coupled_->add(l, kv_[l].parts.front().pool->base(), kv_[l].groups, first_table(static_cast<int>(l)));
  coupled_->end();
}

StateLayer DecoderImpl::state_layer(int layer, std::int64_t offset) const noexcept {
  const auto first = static_cast<std::size_t>(recurrent_layers_[static_cast<std::size_t>(layer)]) * segments_.size();
  return {places_.data() + first, offset, segments_.data(), static_cast<std::int32_t>(segments_.size())};
}

void DecoderImpl::prepare_row_tables() {
  row_segments_.clear();
  for (const auto& segment : segments_)
    for (std::int32_t i = 0; i < segment.row_count; ++i) row_segments_.push_back({segment.row_begin + i, 1, nullptr});
  for (int time = 0; time < 2; ++time) {
    auto& tables = row_tables_[static_cast<std::size_t>(time)];
    tables.clear();
    std::size_t at = 0;
    for (const auto& layer : kv_)
      for (const auto& part : layer.parts)
        for (const auto& segment : segments_) {
          for (std::int32_t i = 0; i < segment.row_count; ++i)
            for (std::size_t g = 0; g < static_cast<std::size_t>(part.groups); ++g) {
              tables.push_back(tables_[at + g]);
              tables.back().length += time * i;
            }
          at += static_cast<std::size_t>(part.groups);
        }
  }
}

/// Where the kernels add a group's scores. Where layers share keys and values several ops add to them: then they begin with
/// what is there.
void DecoderImpl::open_scores(PagedKv& state, int group, bool scored, std::size_t at) {
  score_before_[at] = nullptr;
  score_pointers_[at] = !scored                   ? nullptr
                        : format_.shares_layers() ? state.begin_scores(group)
                                                  : state.open_scores(group, score_before_[at]);
}

/// Room for the noise of each group, and the temperatures of the rows.
void DecoderImpl::prepare_score_shape(std::size_t groups) {
  const auto shape = eviction_.traits().score_shape;
  if (shape.noise != 0.0F) score_noise_.assign(groups, nullptr);
  if (shape.first == 1.0F && shape.last == 1.0F) return;
  inverse_temperatures_.clear();
  for (const auto& piece : pieces_)
    for (std::int64_t i = 0; i < piece.count; ++i)
      inverse_temperatures_.push_back(
          1.0F / shape.temperature(piece.session->length() + i, piece.session->state().prompt_length()));
}

void DecoderImpl::prepare_scores(const Batch& batch, AttentionScores& scores) {
  if (reads_ahead_)
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected with KV format '" + format_.name() +
                                                   "': layers read a later one, and rows may be computed several times");
  if (eviction_.traits().drops_tokens)
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected by slot while eviction '" +
                                                   eviction_.name() + "' removes slots");
  if (has_two_parts())
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected with KV format '" + format_.name() +
                                                   "', which keeps slots in two places");
  score_groups_ = 0;
  for (const auto& layer : kv_) score_groups_ += static_cast<std::size_t>(layer.groups);
  if (score_groups_ == 0)
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected: no layer has attention");
  score_offsets_.clear();
  scores.values.clear();
  std::size_t floats = 0;
  for (const auto& entry : entries(batch)) {
    if (scores.last_rows > 0 && (entry.count > options_.batch_tokens || batch.rows() > options_.batch_tokens))
      throw UsageError("decoder.forward", "scores of the last rows need a batch of at most batch_tokens " +
                                              std::to_string(options_.batch_tokens));
    const auto slots = static_cast<std::size_t>(entry.session->length() + entry.count);
    auto& layers = scores.values.emplace_back(kv_.size());
    for (std::size_t l = 0; l < kv_.size(); ++l)
      for (int g = 0; g < kv_[l].groups; ++g) {
        layers[l].emplace_back(slots);  // now: afterwards nothing may fail
        score_offsets_.push_back(floats);
        floats += slots;
      }
  }
  score_memory_ = model_.backend()->allocate(std::max<std::size_t>(floats, 1) * sizeof(float));
  score_template_ = {scores.kind, scores.last_rows, nullptr};
}

void DecoderImpl::collect_scores(AttentionScores& scores) {
  const auto* from = score_memory_.address();
  for (auto& layers : scores.values)
    for (auto& groups : layers)
      for (auto& slots : groups) {
        const auto to = std::as_writable_bytes(std::span(slots));
        model_.backend()->read(to, from);
        from += to.size();
      }
  score_memory_ = {};
}

}  // namespace skald::inline v0::detail
