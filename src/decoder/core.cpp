#include "decoder/core.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace skald::inline v0::detail {

namespace {

constexpr std::int64_t most_tokens = std::int64_t{1} << 46;  // of all sessions that the options above allow

[[noreturn]] void refuse(const std::string& message) { throw UsageError("decoder.decoder", message); }

}  // namespace

DecoderCore::~DecoderCore() = default;

Logits DecoderCore::forward_one(Session& session, std::span<const TokenId> tokens, LogitsWanted wanted,
                                std::stop_token stop, const ProgressCallback& progress) {
  single_.clear();
  single_.add(session, tokens, wanted);
  ForwardOptions options{std::move(stop), progress, nullptr, nullptr};
  return forward(single_, options);
}

Session DecoderCore::new_session(SequenceState state, std::vector<TokenId> known) {
  auto session = make_session(shared_from_this(), std::move(state));
  known.reserve(static_cast<std::size_t>(effective_config().context));
  tokens(session) = std::move(known);
  return session;
}

std::string DecoderCore::state_key() const {
  const auto& config = effective_config();
  std::string key = "model=";
  for (const auto word : model().fingerprint()) key += std::to_string(word) + ".";
  return key + ";architecture=" + config.architecture + ";kv=" + config.kv_format + ";eviction=" + config.eviction +
         ";attention=" + attention_key() + ";page_tokens=" + std::to_string(config.page_tokens) +
         ";heads_per_group=" + std::to_string(config.heads_per_group);
}

std::string DecoderCore::attention_key() const {
  const auto& config = effective_config();
  return config.rope == "long" ? config.attention + ";rope=long" : config.attention;
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, std::string_view backend) {
  return create(std::move(model), DecoderOptions{}, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, const DecoderOptions& options,
                                                 std::string_view backend) {
  const bool coupled = options.kv.format == "coupled";
  if (options.kv.format.starts_with("coupled;"))
    throw IncompatibleError("decoder.decoder", "KV format '" + printable(options.kv.format) +
                                                   "': 'coupled' takes no rules. Its codes are read layer by layer, and neither "
                                                   "chunks nor values, residuals or segments are made of codes");
  if (coupled != (options.kv.codebooks != nullptr))
    refuse(coupled ? "kv.format 'coupled' needs kv.codebooks" : "kv.codebooks are for kv.format 'coupled'");
  return make(std::move(model), AnyEviction::from_spec(options.kv.eviction),
              coupled ? AnyKvFormat(KvF32{}) : AnyKvFormat(options.kv.format), options, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, AnyEviction eviction, AnyKvFormat format,
                                                 std::string_view backend) {
  return create(std::move(model), std::move(eviction), format, DecoderOptions{}, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, AnyEviction eviction, AnyKvFormat format,
                                                 const DecoderOptions& options, std::string_view backend) {
  const auto clash = [](const std::string& chosen, const std::string& given) {
    throw IncompatibleError("decoder.decoder", chosen + " names another part than the one given, '" + given + "'");
  };
  const KvOptions unsaid;
  if (options.kv.eviction != unsaid.eviction && AnyEviction::from_spec(options.kv.eviction).name() != eviction.name())
    clash("kv.eviction '" + options.kv.eviction + "'", eviction.name());
  if (options.kv.codebooks != nullptr) clash("kv.codebooks '" + options.kv.codebooks->name() + "'", format.name());
  if (options.kv.format != unsaid.format && AnyKvFormat(options.kv.format).name() != format.name())
    clash("kv.format '" + options.kv.format + "'", format.name());
  return make(std::move(model), std::move(eviction), std::move(format), options, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::make(Model model, AnyEviction eviction, AnyKvFormat format,
                                               const DecoderOptions& options, std::string_view backend) {
  const auto name = model.backend()->info().name;
  if (!backend.empty() && backend != name)
    throw IncompatibleError("decoder.decoder", "the decoder is composed for backend '" + std::string(backend) +
                                                   "', the model was loaded on '" + name + "'");
  return std::make_shared<DecoderImpl>(std::move(model), std::move(eviction), std::move(format), options);
}

DecoderImpl::DecoderImpl(Model model, AnyEviction eviction, AnyKvFormat format, const DecoderOptions& options)
    : model_(std::move(model)), eviction_(std::move(eviction)), format_(std::move(format)), options_(options) {
  const auto& spec = model_.spec();
  if (options_.context == 0) options_.context = usual_context(spec);
  if (spec.learned_positions && options_.context > spec.context_length)
    refuse("context is " + std::to_string(options_.context) + " tokens, but the model has learned positions for " +
           std::to_string(spec.context_length));
  if (options_.context < 1 || options_.context > (std::int64_t{1} << 30))
    refuse("context is " + std::to_string(options_.context) + " tokens, 1 to 2^30 are allowed");
  if (options_.batch_tokens < 1 || options_.batch_tokens > 65536)
    refuse("batch_tokens is " + std::to_string(options_.batch_tokens) + ", 1 to 65536 are allowed");
  if (options_.parallel < 1 || options_.parallel > 65536)
    refuse("parallel is " + std::to_string(options_.parallel) + ", 1 to 65536 are allowed");
  const auto page = options_.kv.page_tokens;
  if (page < KvPageLayout::lane_tokens || page % KvPageLayout::lane_tokens != 0 || attention_chunk % page != 0)
    refuse("kv.page_tokens is " + std::to_string(page) + ", allowed are 16, 32, 64, 128, 256");
  if (options_.kv.capacity_tokens == 0)
    options_.kv.capacity_tokens = (options_.context + page - 1) / page * page * options_.parallel;
  if (options_.kv.capacity_tokens < 1 || options_.kv.capacity_tokens > most_tokens)
    refuse("kv.capacity_tokens is " + std::to_string(options_.kv.capacity_tokens) + ", 0 to 2^46 are allowed");
  if (options_.kv.rollback_tokens < 0 || options_.kv.rollback_tokens > most_tokens)
    refuse("kv.rollback_tokens is " + std::to_string(options_.kv.rollback_tokens) + ", 0 to 2^46 are allowed");
  options_.batch_tokens = std::min(options_.batch_tokens, options_.context * options_.parallel);
  if (options_.recurrent.checkpoint_interval < 0 || options_.recurrent.checkpoints < 0 ||
      options_.recurrent.checkpoints > (1 << 20))
    refuse("recurrent.checkpoint_interval is " + std::to_string(options_.recurrent.checkpoint_interval) +
           " and recurrent.checkpoints " + std::to_string(options_.recurrent.checkpoints) +
           ", 0 or more (up to 2^20 checkpoints) are allowed");
  causal_ = spec.causal();
  for (const auto& layer : spec.layers) {
    recurrent_layers_.push_back(layer.state_elements(spec.dim) > 0 ? static_cast<int>(recurrent_count_++) : -1);
    if (layer.attention && (layer.attention->alibi > 0.0F || layer.attention->relative_buckets > 0))
      distances_by_slot_ = true;
  }
  for (std::int32_t layer = 0; layer < spec.layer_count(); ++layer)
    reads_ahead_ = reads_ahead_ || format_.source(layer) > layer;
  check_composition();
  make_gates();
  make_pools();
  check_two_parts();
  make_residual_pools();
  make_slow_pools();
  make_summary_pools();
  make_rebuild();
  make_buffers();
  make_positions();
  check_program();
  describe();
}

void DecoderImpl::ensure_logits(std::int64_t rows, const std::stop_token& stop) {
  if (rows <= logits_capacity_) return;
  logits_ = {};
  logits_capacity_ = 0;
  if (!model_.spec().has_head) return;
  logits_ = model_.backend()->allocate(static_cast<std::size_t>(rows * model_.spec().vocabulary) * sizeof(float));
  // Fresh huge pages cost most of a millisecond each, and one unit of the head meets a hundred of them: taken here, where
  // a stop request is seen between any two.
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  if (logits_.host_visible() && logits_.bytes() > 8 * huge_page)
    for (std::size_t at = 0; at < logits_.bytes(); at += huge_page) {
      throw_if_stopped(stop, "decoder.forward");
      logits_.address()[at] = std::byte{0};
    }
  logits_capacity_ = rows;
  if (!logits_.host_visible())
    host_logits_.resize(static_cast<std::size_t>(rows * model_.spec().vocabulary));
}

DecoderCounters DecoderImpl::counters() const {
  auto result = counters_;
  const auto reads = stream_->kv_reads();
  if (slow_values_) {
    result.value_rows_fetched = slow_values_->rows_fetched();
    result.value_bytes_fetched = slow_values_->bytes_fetched();
  }
  if (chunk_reads_) {
    result.chunks_read = chunk_reads_->chunks_read();
    result.chunk_bytes_read = chunk_reads_->bytes_read();
    result.chunk_bytes_seen = chunk_reads_->bytes_seen();
  }
  for (const auto& pool : slow_pools_) result.slow_page_bytes_used += pool->used_pages() * pool->page_bytes();
  result.kv_bytes_read = reads.bytes;
  result.kv_bytes_shared = reads.shared_bytes;
  result.weight_bytes_read = reads.weight_bytes;
  for (const auto& pool : pools_) {
    result.kv_pages_used += pool->used_pages();
    result.kv_pages_peak += pool->peak_pages();
    result.kv_page_bytes_used += pool->used_pages() * pool->page_bytes();
  }
  return result;
}

void DecoderImpl::check_batch(const Batch& batch) const {
  const auto& spec = model_.spec();
  for (const auto& entry : entries(batch)) {
    auto& session = *entry.session;
    if (!owns(session)) refuse("a session of another decoder is in the batch");
    if (session.state().pending() != 0) refuse("a session has a token tree that was neither accepted nor truncated");
    if (spec.has_encoder() && session.encoded_length() == 0)
      refuse("the model has an encoder and the session no text that it has read: call Session::encode first");
    if (entry.kind == EntryKind::tree && distances_by_slot_)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be combined with ALiBi or relative positions: a token's distances "
                              "are those of its depth, its place in memory is another");
    if (!spec.has_head && entry.wanted != LogitsWanted::none)
      refuse("the model has no head that gives logits; ask for its hidden states");
    if (!causal_ && entry.kind == EntryKind::tree) refuse("a token tree needs a model whose tokens see no later ones");
    if (!causal_ && entry.count > options_.batch_tokens)
      refuse("the model's tokens see each other, so the " + std::to_string(entry.count) +
             " given together must fit batch_tokens " + std::to_string(options_.batch_tokens));
    if (session.length() + entry.count > options_.context)
      refuse("a session holds " + std::to_string(session.length()) + " tokens, " + std::to_string(entry.count) +
             " more would exceed the context of " + std::to_string(options_.context));
    if (entry.kind == EntryKind::embeddings) {
      if (entry.embedding_count != entry.count * spec.dim)
        refuse(std::to_string(entry.embedding_count) + " values are given for " + std::to_string(entry.count) +
               " embedding rows of " + std::to_string(spec.dim));
      const auto values = std::span(embeddings(batch)).subspan(static_cast<std::size_t>(entry.embedding_begin),
                                                               static_cast<std::size_t>(entry.embedding_count));
      const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
      if (bad != values.end())
        throw NumericError("decoder.forward", "element " + std::to_string((bad - values.begin()) % spec.dim) +
                                                  " of embedding row " + std::to_string((bad - values.begin()) / spec.dim) +
                                                  " is not finite");
      continue;
    }
    for (std::int64_t i = 0; i < entry.count; ++i) {
      const TokenId token = tokens(batch)[static_cast<std::size_t>(entry.begin + i)];
      if (token < 0 || token >= spec.vocabulary)
        refuse("token id " + std::to_string(token) + " is not inside the vocabulary of " +
               std::to_string(spec.vocabulary));
    }
    if (entry.kind != EntryKind::tree) continue;
    if (reads_ahead_)
      throw IncompatibleError("decoder.forward", "a token tree cannot be combined with KV format '" + format_.name() +
                                                     "': layers read what a later one made of the token before");
    if (recurrent_count_ > 0)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be computed by recurrent layers, whose state follows one sequence; give "
                              "the tokens of one path and truncate");
    if (has_slow_memory())
      throw IncompatibleError("decoder.forward", "a token tree cannot be combined with KV format '" + format_.name() +
                                                     "': how a row attends depends on the tokens before it");
    if (format_.residual() > 0)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be combined with KV format '" + format_.name() +
                                  "': accepted tokens may pass a page border at which others should have been encoded");
    if (eviction_.traits().drops_tokens)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be combined with eviction '" + eviction_.name() +
                                  "': accepted tokens may pass a page border at which pages should have been dropped");
    if (entry.count > options_.batch_tokens)
      refuse("a token tree of " + std::to_string(entry.count) + " tokens exceeds batch_tokens " +
             std::to_string(options_.batch_tokens));
    for (std::int64_t i = 0; i < entry.count; ++i) {
      const auto parent = parents(batch)[static_cast<std::size_t>(entry.parent_begin + i)];
      if (parent < -1 || parent >= i)
        refuse("parent " + std::to_string(parent) + " of tree token " + std::to_string(i) + " does not come before it");
    }
  }
}

Logits DecoderImpl::forward(const Batch& batch, const ForwardOptions& options) {
  check_batch(batch);
  const auto& list = entries(batch);
  entry_rows_.assign(1, 0);
  for (const auto& entry : list)
    entry_rows_.push_back(entry_rows_.back() + (entry.wanted == LogitsWanted::none   ? 0
                                                : entry.wanted == LogitsWanted::last ? 1
                                                                                     : entry.count));
  ensure_logits(entry_rows_.back(), options.stop);
  entry_done_.assign(list.size(), 0);
  hidden_ = options.hidden;
  transfers_ = options.transfers;
  if (hidden_) hidden_->assign(static_cast<std::size_t>(batch.rows() * model_.spec().dim), 0.0F);
  scoring_ = options.scores != nullptr;
  if (scoring_) prepare_scores(batch, *options.scores);
  std::int64_t done = 0;
  while (done < batch.rows()) {
    throw_if_stopped(options.stop, "decoder.forward");
    done += cut(batch, pieces_);
    try {
      run(batch, options);
      choose_evictions(batch);
    } catch (...) {
      drop_ops();
      reset_pieces(batch);
      throw;
    }
    commit_pieces(batch);
    if (options.progress)
      options.progress({"forward", static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(batch.rows())});
  }
  if (scoring_) collect_scores(*options.scores);
  return {logits_.host_visible() ? reinterpret_cast<const float*>(logits_.address()) : host_logits_.data(),
          model_.spec().vocabulary, entry_rows_};
}

/// The next length at which a policy is asked, or begins to count scores.
std::int64_t DecoderImpl::border_after(std::int64_t length) const noexcept {
  const std::int64_t page = options_.kv.page_tokens;
  const std::int64_t border = (length / page + 1) * page;
  const auto window = eviction_.traits().score_window;
  return window > 0 && length < border - window ? border - window : border;
}

/// True if the tokens of a piece that begins at `length` count for the policy's scores.
bool DecoderImpl::scored_from(std::int64_t length) const noexcept {
  const auto traits = eviction_.traits();
  if (!traits.drops_tokens || !traits.needs_scores) return false;
  const std::int64_t page = options_.kv.page_tokens;
  return traits.score_window == 0 || length % page >= page - traits.score_window;
}

/// Takes the next rows of the batch, in order; returns how many. With an eviction policy a piece ends at a page border.
std::int64_t DecoderImpl::cut(const Batch& batch, std::vector<Piece>& pieces) {
  pieces.clear();
  std::int64_t room = options_.batch_tokens;
  const auto& list = entries(batch);
  const auto most_pieces = static_cast<std::size_t>(options_.parallel);  // for which room was made
  for (std::size_t e = 0; e < list.size() && room > 0 && pieces.size() < most_pieces; ++e) {
    const auto& entry = list[e];
    const std::int64_t left = entry.count - entry_done_[e];
    if (left == 0) continue;
    std::int64_t count = std::min(left, room);
    if ((entry.kind == EntryKind::tree || !causal_) && count < left) break;
    if (reads_ahead_ && format_.iterations() == 0) count = 1;
    if (eviction_.traits().drops_tokens && entry.kind != EntryKind::tree)
      count = std::min(count, border_after(entry.session->length()) - entry.session->length());
    if (has_two_parts() && entry.kind != EntryKind::tree) count = std::min(count, rows_until_divided(*entry.session));
    if (config_.checkpoints > 0)
      count = std::min(count, config_.checkpoint_interval - entry.session->length() % config_.checkpoint_interval);
    Piece piece{entry.session, e, entry_done_[e], count, 0, 0, count == left, entry.kind == EntryKind::embeddings};
    if (entry.wanted == LogitsWanted::all) {
      piece.logits_row = entry_rows_[e] + entry_done_[e];
      piece.logits_count = count;
    } else if (entry.wanted == LogitsWanted::last && piece.last) {
      piece.logits_row = entry_rows_[e];
      piece.logits_count = 1;
    }
    pieces.push_back(piece);
    room -= count;
  }
  return options_.batch_tokens - room;
}

void DecoderImpl::run(const Batch& batch, const ForwardOptions& options) {
  std::int64_t rows = 0;
  for (const auto& piece : pieces_) {
    rows += piece.count;
    auto& session = *entries(batch)[piece.entry].session;
    if (entries(batch)[piece.entry].kind == EntryKind::tree)
      pending_tokens(session).reserve(static_cast<std::size_t>(piece.count));
  }
  for (const auto& piece : pieces_) entries(batch)[piece.entry].session->state().append(piece.count);
  prepare_rows(batch);
  prepare_tables(batch);
  begin_adapters();
  emit(rows, [&](const Op& op, int) { enqueue(op); });
  if (hidden_) emit_hidden(batch, rows, [&](const Op& op, int) { stream_->enqueue(op); });
  if (!logits_.host_visible())
    for (const auto& run : head_runs_)
      stream_->enqueue(DownloadOp{logits_matrix(run), host_logits_.data() + run.logits_row * model_.spec().vocabulary});
  stream_->synchronize(options.stop);
  check_finite(batch);
  ++counters_.forward_passes;
  counters_.tokens += static_cast<std::uint64_t>(rows);
  counters_.logits_rows += head_rows_.size();
}

/// True if the piece completes a page, which is when a policy may drop others.
bool DecoderImpl::evicts_after(const Piece& piece) const noexcept {
  return eviction_.traits().drops_tokens && (piece.session->length() + piece.count) % options_.kv.page_tokens == 0;
}

void DecoderImpl::choose_evictions(const Batch& batch) {
  for (const auto& piece : pieces_)
    if (evicts_after(piece)) entries(batch)[piece.entry].session->state().choose_evictions(eviction_, host_threads());
}

/// Cannot fail: room was made before, policies were asked before.
void DecoderImpl::commit_pieces(const Batch& batch) {
  for (const auto& piece : pieces_) {
    const auto& entry = entries(batch)[piece.entry];
    auto& session = *entry.session;
    const auto* first = tokens(batch).data() + entry.begin + piece.first;
    entry_done_[piece.entry] += piece.count;
    if (entry.kind == EntryKind::tree) {
      pending_tokens(session).assign(first, first + piece.count);
      continue;
    }
    const bool evicts = evicts_after(piece);
    keep_entered(session, segments_[static_cast<std::size_t>(&piece - pieces_.data())]);
    session.state().commit();
    tokens(session).insert(tokens(session).end(), first, first + piece.count);
    if (!evicts) continue;
    count_evictions(session, -1);
    session.state().apply_evictions(host_threads());
    count_evictions(session, 1);
    ++counters_.eviction_rounds;
  }
}

/// Forgets ops of a pass that was not started as a whole.
void DecoderImpl::drop_ops() noexcept {
  try {
    stream_->synchronize(stopped_.get_token());
  } catch (...) {  // as it must: the queue is empty now
  }
}

void DecoderImpl::reset_pieces(const Batch& batch) noexcept {
  for (const auto& piece : pieces_) {
    auto& state = entries(batch)[piece.entry].session->state();
    if (state.pending() != 0) state.rollback();
  }
}

void DecoderImpl::check_finite(const Batch& batch) const {
  if (options_.check_finite == CheckFinite::off) return;
  const auto vocabulary = model_.spec().vocabulary;
  const float* data =
      logits_.host_visible() ? reinterpret_cast<const float*>(logits_.address()) : host_logits_.data();
  for (const auto& piece : pieces_)
    for (std::int64_t i = 0; i < piece.logits_count; ++i) {
      const float* row = data + (piece.logits_row + i) * vocabulary;
      // A sum of zeros times the values is NaN exactly if one of them is not finite; vectorizes without branches.
      float probe[16] = {};
      std::int64_t j = 0;
      for (; j + 16 <= vocabulary; j += 16)
        for (int lane = 0; lane < 16; ++lane) probe[lane] += row[j + lane] * 0.0F;
      for (; j < vocabulary; ++j) probe[0] += row[j] * 0.0F;
      float sum = 0.0F;
      for (const float p : probe) sum += p;
      if (sum == 0.0F) continue;
      const auto* bad = std::find_if(row, row + vocabulary, [](float value) { return !std::isfinite(value); });
      const auto& entry = entries(batch)[piece.entry];
      throw NumericError("decoder.forward",
                         "logit " + std::to_string(bad - row) + " of the token at position " +
                             std::to_string(entry.session->length() + piece.count - piece.logits_count + i) +
                             " is not finite: the weights or the embeddings given are damaged");
    }
}

}  // namespace skald::inline v0::detail
