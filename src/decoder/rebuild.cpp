// Dropped tokens whose keys and values are computed again: each layer keeps, in slow memory, how tokens entered it, and computes
// keys and values of those that the policy wants from there, beside the rows of the pass.
#include <algorithm>
#include <exception>
#include <functional>
#include <numeric>
#include <string>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

void DecoderImpl::check_rebuild() const {
  const auto clash = [&](const std::string& reason, int layer = -1) {
    ErrorContext place{};
    if (layer >= 0) place.layer = layer;
    throw IncompatibleError("decoder.decoder", "eviction '" + eviction_.name() + "' computes dropped tokens again, which " + reason, place);
  };
  const auto traits = eviction_.traits();
  if (!traits.drops_tokens || traits.needs_scores || traits.reorders_positions || traits.counts_merged || eviction_.gates())
    clash("goes with policies that drop tokens and do nothing else");
  if (traits.rebuild_interval < 1 || options_.kv.page_tokens % traits.rebuild_interval != 0)
    clash("is asked every " + std::to_string(traits.rebuild_interval) + " tokens; that must divide kv.page_tokens " +
          std::to_string(options_.kv.page_tokens));
  if (traits.budget < traits.rebuild + 2 * std::int64_t{options_.kv.page_tokens})
    clash("takes " + std::to_string(traits.rebuild) + " tokens of the budget of " + std::to_string(traits.budget) +
          ": two pages of kv.page_tokens " + std::to_string(options_.kv.page_tokens) + " must be left");
  if (distances_by_slot_) clash("puts slots in two places, and the model counts distances by slot");
  if (model_.spec().has_encoder()) clash("is not there for models with an encoder");
  if (!model_.backend()->info().host_visible) clash("needs memory that the host can see");
  if (reads_ahead_ || coupled_ || format_.residual() > 0 || format_.segments() || format_.fetched_values() > 0)
    clash("needs a KV format that keeps a layer's tokens in one place");
  for (std::size_t i = 0; i < kv_.size(); ++i) {
    const auto& attention = model_.spec().layers[i].attention;
    if (!attention) continue;
    if (attention->latent) clash("is not there for latent attention", static_cast<int>(i));
    if (attention->window > 0) clash("is not there for a sliding window, which drops tokens by itself", static_cast<int>(i));
    if (kv_[i].parts.size() != 1) clash("needs one KV format for all heads, and keys of its own for every layer", static_cast<int>(i));
  }
}

void DecoderImpl::make_rebuild() {
  const auto traits = eviction_.traits();
  if (traits.rebuild == 0) return;
  const auto rows = traits.rebuild * options_.parallel;
  const auto dim = model_.spec().dim;
  rebuild_host_.resize(kv_.size());
  entered_host_.resize(kv_.size());
  rebuild_tables_.resize(kv_.size());
  std::int64_t k_cols = 0;
  std::int64_t v_cols = 0;
  for (std::size_t i = 0; i < kv_.size(); ++i) {
    const auto& attention = model_.spec().layers[i].attention;
    if (!attention) continue;
    kv_[i].rebuilds = true;
    rebuild_host_[i].resize(static_cast<std::size_t>(rows * dim));
    entered_host_[i].resize(static_cast<std::size_t>(options_.batch_tokens * dim));
    k_cols = std::max(k_cols, attention->k_cols());
    v_cols = std::max(v_cols, attention->v_cols());
  }
  const auto make = [&](std::int64_t cols) {
    return model_.backend()->allocate(static_cast<std::size_t>(rows * cols) * sizeof(float));
  };
  rebuild_x_ = make(dim);
  rebuild_k_ = make(k_cols);
  rebuild_v_ = make(v_cols);
  for (const auto& rope : model_.spec().ropes) rebuild_ropes_.push_back(make(rope.dims));
}

namespace {

RebuiltKv& rebuilt_state(const Session& session, std::size_t layer) {
  return static_cast<RebuiltKv&>(*session.state().layer(static_cast<int>(layer)));
}

}  // namespace

/// True if tokens were dropped, so that the policy is asked every few tokens.
bool DecoderImpl::wants_rebuild(const Session& session) const noexcept {
  for (std::size_t l = 0; l < kv_.size(); ++l)
    if (kv_[l].rebuilds) {
      const auto& state = rebuilt_state(session, l);
      return state.back().slots(0) < state.length();
    }
  return false;
}

/// Whether the policy asks for tokens that were dropped, in ascending order.
void DecoderImpl::check_recalled(std::size_t count) const {
  const auto end = rebuild_wanted_.begin() + static_cast<std::ptrdiff_t>(std::min(count, rebuild_wanted_.size()));
  if (count <= rebuild_wanted_.size() &&
      std::adjacent_find(rebuild_wanted_.begin(), end, std::greater_equal<>()) == end &&
      std::includes(rebuild_dropped_.begin(), rebuild_dropped_.end(), rebuild_wanted_.begin(), end))
    return;
  throw UsageError("decoder.forward", "policy '" + eviction_.name() + "' asks for " + std::to_string(count) +
                                          " tokens again; allowed are at most " + std::to_string(rebuild_wanted_.size()) +
                                          " of the dropped ones, ascending");
}

/// Asks the policy for each piece, and lays out what it wants and the layers do not have.
void DecoderImpl::prepare_rebuild(const Batch& batch) {
  const auto traits = eviction_.traits();
  if (traits.rebuild == 0) return;
  rebuild_segments_.clear();
  rebuild_positions_.clear();
  for (auto& tables : rebuild_tables_) tables.clear();
  for (const auto& piece : pieces_) {
    auto& session = *entries(batch)[piece.entry].session;
    if (!session.adapters().empty())
      throw IncompatibleError("decoder.forward", "eviction '" + eviction_.name() +
                                                     "' computes dropped tokens again, which it does not do under adapters");
    const auto known = session.length() / traits.rebuild_interval * traits.rebuild_interval;
    rebuild_wanted_.assign(static_cast<std::size_t>(traits.rebuild), 0);
    const auto first = static_cast<std::size_t>(
        std::find_if(kv_.begin(), kv_.end(), [](const LayerKv& kv) { return kv.rebuilds; }) - kv_.begin());
    rebuilt_state(session, first).dropped(rebuild_dropped_);  // all layers have dropped the same
    while (!rebuild_dropped_.empty() && rebuild_dropped_.back() >= known) rebuild_dropped_.pop_back();
    const auto count = rebuild_dropped_.empty()
                           ? std::size_t{0}
                           : eviction_.recall(std::span(session.tokens()).first(static_cast<std::size_t>(known)),
                                              rebuild_dropped_, rebuild_wanted_);
    check_recalled(count);
    const auto wanted = std::span<const std::int32_t>(rebuild_wanted_).first(count);
    bool all_hold = true;
    for (std::size_t l = first; l < kv_.size(); ++l)
      all_hold = all_hold && (!kv_[l].rebuilds || rebuilt_state(session, l).holds(wanted));
    if (!all_hold) begin_rebuild(session, wanted, first);
  }
}

/// Rows that are there already move; of the others each run of slots that follow one another becomes a segment.
void DecoderImpl::begin_rebuild(const Session& session, std::span<const std::int32_t> wanted, std::size_t first) {
  const auto dim = static_cast<std::size_t>(model_.spec().dim);
  bool moves = true;
  for (std::size_t l = first; l < kv_.size(); ++l) moves = moves && (!kv_[l].rebuilds || rebuilt_state(session, l).movable());
  if (moves) {
    rebuilt_state(session, first).missing(wanted, rebuild_fresh_);
  } else {
    rebuild_fresh_.resize(wanted.size());
    std::iota(rebuild_fresh_.begin(), rebuild_fresh_.end(), 0);
  }
  std::vector<std::exception_ptr> failures(kv_.size());
  const auto begin = [&](std::int64_t layer) {
    const auto l = static_cast<std::size_t>(layer);
    if (!kv_[l].rebuilds) return;
    try {
      rebuilt_state(session, l).begin_rebuild(wanted, moves);
    } catch (...) {
      failures[l] = std::current_exception();
    }
  };
  if (const auto* threads = host_threads()) {
    (*threads)(static_cast<std::int64_t>(kv_.size()), begin);
  } else {
    for (std::size_t l = 0; l < kv_.size(); ++l) begin(static_cast<std::int64_t>(l));
  }
  for (const auto& failure : failures)
    if (failure) std::rethrow_exception(failure);
  const auto row = rebuild_positions_.size();
  for (std::size_t i = 0, end = 0; i < rebuild_fresh_.size(); i = end) {
    end = i + 1;
    while (end < rebuild_fresh_.size() && rebuild_fresh_[end] == rebuild_fresh_[end - 1] + 1) ++end;
    rebuild_segments_.push_back({static_cast<std::int32_t>(row + i), static_cast<std::int32_t>(end - i), nullptr});
    for (std::size_t l = first; l < kv_.size(); ++l)
      for (int g = 0; kv_[l].rebuilds && g < kv_[l].groups; ++g)
        rebuild_tables_[l].push_back({rebuilt_state(session, l).front().pages(g).data(), rebuild_fresh_[i], 0});
  }
  for (const auto i : rebuild_fresh_) rebuild_positions_.push_back(wanted[static_cast<std::size_t>(i)]);
  for (std::size_t l = first; l < kv_.size(); ++l) {
    if (!kv_[l].rebuilds) continue;
    for (std::size_t i = row; i < rebuild_positions_.size(); ++i)
      std::copy_n(rebuilt_state(session, l).entered(rebuild_positions_[i]), dim, rebuild_host_[l].data() + i * dim);
    counters_.rebuilt_rows += rebuild_fresh_.size();
  }
}

void DecoderImpl::emit_rebuild(const LinearOp& project, const StoreKvOp& store, int layer, OpSink sink) {
  const auto rows = static_cast<std::int64_t>(rebuild_positions_.size());
  if (rows == 0 || eviction_.traits().rebuild == 0) return;
  const auto& spec = model_.spec();
  const auto& attention = *spec.layer(layer).attention;
  const auto index = static_cast<std::size_t>(layer);
  const auto x = rebuild_x_.matrix(0, rows, spec.dim);
  const auto k = rebuild_k_.matrix(0, rows, attention.k_cols());
  const auto v = rebuild_v_.matrix(0, rows, attention.v_cols());
  sink(UploadOp{rebuild_host_[index].data(), x}, layer);
  LinearOp again = project;
  again.x = x;
  again.part_count = 2;
  again.parts = {{project.parts[1], project.parts[2], LinearPart{}}};
  again.parts[0].out = k;
  again.parts[1].out = v;
  sink(again, layer);
  if (attention.clamp > 0.0F)
    for (const auto& each : {k, v}) sink(ClampOp{each, attention.clamp}, layer);
  if (attention.qk_norm_scope != QkNormScope::head) {
    const auto k_norm = norm(attention.k_norm, Role::key_norm, Role::key_norm_bias, layer);
    if (k_norm.kind != NormKind::none)
      sink(NormOp{k, k_norm, k, attention.qk_norm_scope == QkNormScope::each_head ? attention.kv_heads : 1}, layer);
  }
  StoreKvOp op = store;
  op.q = Matrix{};
  op.k = k;
  op.v = v;
  if (attention.rope >= 0) {
    const auto rope = static_cast<std::size_t>(attention.rope);
    op.rope_table = rebuild_ropes_[rope].matrix(0, rows, spec.ropes[rope].dims);
    sink(RopeTableOp{rebuild_positions_.data(), ropes_[rope].inverse_frequencies.data(), ropes_[rope].magnitude, op.rope_table}, layer);
  }
  const auto& pool = *kv_[index].parts.front().pool;
  op.kv = {pool.base(), pool.layout(), kv_[index].groups, rebuild_tables_[index].data()};
  op.segments = rebuild_segments_.data();
  op.segment_count = static_cast<std::int32_t>(rebuild_segments_.size());
  sink(op, layer);
}

/// Before the commit of a piece: how its rows entered each layer.
void DecoderImpl::keep_entered(const Session& session, const Segment& segment) {
  const auto dim = static_cast<std::size_t>(model_.spec().dim);
  for (std::size_t l = 0; l < kv_.size(); ++l)
    if (kv_[l].rebuilds)
      rebuilt_state(session, l).add_entered(std::span(entered_host_[l]).subspan(static_cast<std::size_t>(segment.row_begin) * dim,
                                                                                static_cast<std::size_t>(segment.row_count) * dim));
}

}  // namespace skald::inline v0::detail
