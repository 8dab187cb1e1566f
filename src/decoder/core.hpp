#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include <skald/decoder/decoder.hpp>
#include <skald/model/plan.hpp>
#include <skald/state/drop_gates.hpp>
#include <skald/state/recurrent.hpp>
#include <skald/state/split_kv.hpp>
#include <skald/state/summarized_kv.hpp>
#include <skald/state/two_part_kv.hpp>

#include "decoder/chunk_reads.hpp"
#include "decoder/coupled_kv.hpp"
#include "decoder/memory_sizes.hpp"
#include "decoder/slow_values.hpp"
#include "decoder/spread.hpp"

namespace skald::inline v0::detail {

/// A run of a layer's KV-head groups that have one format.
struct KvPart {
  std::shared_ptr<KvPool> pool;
  std::int32_t first_group = 0;
  std::int32_t groups = 0;
  DType dtype = DType::f16;
};

/// One layer's place in KV memory.
struct LayerKv {
  std::vector<KvPart> parts;  // none: the layer has no attention
  std::int32_t groups = 0;    // of all parts
  std::shared_ptr<KvPool> recent;  // if the parts hold codes: where the newest tokens are
  bool rebuilds = false;           // beside dropped tokens that were computed again
  bool segments = false;           // prompt and answer apart, in pages of the one part
  std::shared_ptr<KvPool> values;  // in slow memory, if the part's pages have keys alone
  std::shared_ptr<KvPool> summaries;  // of chunks, if the part's pages are in slow memory
  [[nodiscard]] bool two_parts() const noexcept {
    return recent != nullptr || segments || values != nullptr || summaries != nullptr || rebuilds;
  }
};

/// Rows of one entry that go through the network together.
struct Piece {
  const Session* session = nullptr;
  std::size_t entry = 0;
  std::int64_t first = 0;  // row within the entry
  std::int64_t count = 0;
  std::int64_t logits_row = 0;    // first row of logits in the decoder's buffer
  std::int64_t logits_count = 0;  // last n rows of the piece
  bool last = false;              // ends its entry
  bool embeddings = false;
};

/// Rows of logits that lie together: entries [begin, begin + count) of the head rows go to logits_row onwards.
struct HeadRun {
  std::int64_t logits_row = 0;
  std::int64_t begin = 0;
  std::int64_t count = 0;
};

/// What a layer's part adds to the residual stream.
struct ResidualSum {
  Matrix input{};
  Norm input_norm{};
  bool input_is_x = false;
  const Weight* weight = nullptr;
  const float* bias = nullptr;
  Norm post_norm{};      // of the product
  Norm residual_norm{};  // of x after the sum
};

/// out = output(up (inner(down x)) + base), through a row of `rank` elements.
struct LowRank {
  Matrix x{};
  Role down{};
  Role up{};
  const float* base = nullptr;
  Matrix inner{};
  Matrix out{};
  Activation inner_activation = Activation::none;
  Activation activation = Activation::none;
};

class DecoderImpl final : public DecoderCore {
 public:
  DecoderImpl(Model model, AnyEviction eviction, AnyKvFormat format, const DecoderOptions& options);

  Session new_session() override;
  Logits forward(const Batch& batch, const ForwardOptions& options) override;
  void encode(Session& session, std::span<const TokenId> tokens, const std::stop_token& stop,
              std::vector<float>* hidden) override;
  [[nodiscard]] const EffectiveConfig& effective_config() const noexcept override { return config_; }
  [[nodiscard]] DecoderCounters counters() const override;
  [[nodiscard]] const Model& model() const noexcept override { return model_; }
  [[nodiscard]] std::size_t memory_bytes() const noexcept override;
  [[nodiscard]] std::size_t kv_capacity_bytes() const noexcept override;

 private:
  void check_composition() const;
  void make_pools();
  [[nodiscard]] std::vector<KvPart> kv_parts(std::size_t layer) const;
  void check_sources() const;
  // Layers in two places (states.cpp).
  [[nodiscard]] bool has_two_parts() const noexcept { 
    return format_.residual() > 0 || format_.segments() || has_slow_memory() || eviction_.traits().rebuild > 0;
  }
  [[nodiscard]] bool has_slow_memory() const noexcept { return format_.fetched_values() > 0 || format_.read_tokens() > 0; }
  void check_two_parts() const;
  void make_residual_pools();
  void make_slow_pools();
  // Keys and values in slow memory, read in chunks.
  [[nodiscard]] std::int32_t chunk_tokens(std::size_t layer) const noexcept;
  [[nodiscard]] std::shared_ptr<KvPool> make_pool(const KvPageLayout& layout, std::uint32_t pages) const;
  void make_summary_pools();
  void prepare_chunk_reads(const Batch& batch);
  // Dropped tokens that are computed again (rebuild.cpp).
  void check_rebuild() const;
  void make_rebuild();
  void prepare_rebuild(const Batch& batch);
  void check_recalled(std::size_t count) const;
  void begin_rebuild(const Session& session, std::span<const std::int32_t> wanted, std::size_t first);
  void keep_entered(const Session& session, const Segment& segment);
  [[nodiscard]] bool wants_rebuild(const Session& session) const noexcept;
  void prepare_slow_values(const Batch& batch);
  [[nodiscard]] std::unique_ptr<LayerState> two_part_state(std::size_t layer, std::unique_ptr<PagedKv> part) const;
  void prepare_earlier(const Batch& batch);
  void set_earlier(AttentionOp& op, int layer);
  [[nodiscard]] std::int64_t rows_until_divided(const Session& session) const noexcept;
  void prepare_row_tables();
  void make_buffers();
  void make_positions();
  void make_relative_biases();
  void check_program();
  void describe();

  void check_batch(const Batch& batch) const;
  std::int64_t cut(const Batch& batch, std::vector<Piece>& pieces);
  void make_gates();
  void prepare_score_shape(std::size_t groups);
  void open_scores(PagedKv& state, int group, bool scored, std::size_t at);
  void prepare_scores(const Batch& batch, AttentionScores& scores);
  void collect_scores(AttentionScores& scores);
  void run(const Batch& batch, const ForwardOptions& options);
  void prepare_rows(const Batch& batch);
  void prepare_tables(const Batch& batch);
  void prepare_coupled();
  [[nodiscard]] PagedKv& paged(const Session& session, std::size_t layer, std::size_t part) const noexcept;
  void count_evictions(const Session& session, std::int64_t sign) noexcept;
  [[nodiscard]] PagedKvOptions layer_options(std::size_t layer, const KvPart& part) const;
  [[nodiscard]] RecurrentOptions recurrent_options(std::size_t layer) const;
  void commit_pieces(const Batch& batch);
  void reset_pieces(const Batch& batch) noexcept;
  void choose_evictions(const Batch& batch);
  /// For work on sequences between passes; null where the host cannot see their memory.
  [[nodiscard]] const SequenceState::Spread* host_threads() const noexcept {
    return logits_.host_visible() ? &spread_ : nullptr;
  }
  void drop_ops() noexcept;
  [[nodiscard]] bool evicts_after(const Piece& piece) const noexcept;
  [[nodiscard]] std::int64_t border_after(std::int64_t length) const noexcept;
  [[nodiscard]] bool scored_from(std::int64_t length) const noexcept;
  void check_finite(const Batch& batch) const;
  void ensure_logits(std::int64_t rows, const std::stop_token& stop = {});

  // Turns the pass into ops (program.cpp). The sink gets each op and its layer, -1 outside the layers.
  using OpSink = FunctionRef<void(const Op&, int)>;
  void emit(std::int64_t rows, OpSink sink);
  void emit_input(std::int64_t rows, OpSink sink);
  void begin_adapters();
  void enqueue(const Op& op);  // with the deltas of the pass's adapters
  void add_deltas(const LinearOp& op, const Weight* weight, std::vector<DeltaRows>& list) const;
  void emit_layer(int layer, std::int64_t rows, OpSink sink);
  void emit_attention(int layer, std::int64_t rows, OpSink sink);
  void emit_latent_attention(int layer, std::int64_t rows, OpSink sink);
  void emit_attention_output(int layer, std::int64_t rows, OpSink sink);
  void emit_ffn_inner(int layer, std::int64_t rows, OpSink sink);
  void emit_ffn_output(int layer, std::int64_t rows, OpSink sink);
  void emit_sum(const ResidualSum& sum, int layer, std::int64_t rows, OpSink sink);
  void emit_experts(int layer, std::int64_t rows, OpSink sink);
  void emit_shared_inner(int layer, const Norm& norm, const Matrix& x, const Matrix& inner, OpSink sink);
  // program_recurrent.cpp
  void emit_recurrent(int layer, std::int64_t rows, OpSink sink);
  void emit_recurrent_output(int layer, std::int64_t rows, OpSink sink);
  void emit_selective_scan(int layer, std::int64_t rows, OpSink sink);
  void emit_ssd(int layer, std::int64_t rows, OpSink sink);
  void emit_short_convolution(int layer, std::int64_t rows, OpSink sink);
  void emit_rwkv6(int layer, std::int64_t rows, OpSink sink);
  void emit_rwkv7(int layer, std::int64_t rows, OpSink sink);
  void emit_wkv(int layer, WkvOp& wkv, OpSink sink);
  void emit_channel_mix(int layer, std::int64_t rows, OpSink sink);
  void emit_mixer_input(int layer, const Matrix& out, OpSink sink);
  void emit_mixer_norm(int layer, const Matrix& out, OpSink sink);
  void emit_low_rank(const LowRank& pair, int layer, OpSink sink);
  void emit_project(const Matrix& x, Role weight, const Matrix& out, int layer, OpSink sink,
                    Activation activation = Activation::none);
  [[nodiscard]] StateLayer state_layer(int layer, std::int64_t offset) const noexcept;
  void emit_head(std::int64_t rows, OpSink sink);
  void emit_hidden(const Batch& batch, std::int64_t rows, OpSink sink);
  // Networks with an encoder (encoder.cpp).
  void check_encode(const Session& session, std::span<const TokenId> tokens) const;
  [[nodiscard]] std::vector<std::unique_ptr<LayerState>> new_source(std::int64_t most_tokens) const;
  void emit_encoder(std::int64_t rows, OpSink sink);
  void emit_source(std::int64_t rows, OpSink sink);
  void emit_cross(int layer, std::int64_t rows, OpSink sink);
  void prepare_source_tables();
  [[nodiscard]] KvLayer source_layer(int layer) const noexcept;
  [[nodiscard]] KvLayer encoder_layer(int layer) const noexcept;
  [[nodiscard]] const LayerKv& layer_kv(int layer) const noexcept;
  [[nodiscard]] std::vector<KvPart> one_kv_part(const AttentionSpec& attention, std::size_t layer) const;

  [[nodiscard]] std::size_t first_table(int layer) const noexcept;
  [[nodiscard]] KvLayer kv_layer(int layer, const KvPart& part) const noexcept;
  void emit_store(const StoreKvOp& store, int layer, OpSink sink);
  void emit_attend(const AttentionOp& attend, int layer, OpSink sink);
  void emit_slow_attention(AttentionOp op, int layer, OpSink sink);
  void emit_chunk_attention(AttentionOp op, int layer, OpSink sink);
  void emit_rebuild(const LinearOp& project, const StoreKvOp& store, int layer, OpSink sink);
  void shape_scores(ScoreSink& sink, std::size_t first_table);
  void emit_gates(int layer, const Matrix& x, const Norm& norm, OpSink sink);
  [[nodiscard]] Matrix logits_matrix(const HeadRun& run) const noexcept;
  [[nodiscard]] Norm norm(const NormSpec& spec, Role weight, Role bias, int layer) const;

  Model model_;
  AnyEviction eviction_;
  AnyKvFormat format_;
  DecoderOptions options_;
  EffectiveConfig config_;
  bool causal_ = true;  // no token sees a later one
  bool distances_by_slot_ = false;  // ALiBi or relative positions
  DecoderCounters counters_;
  ActivationSizes sizes_;
  std::vector<LayerKv> kv_;
  std::unique_ptr<CoupledKv> coupled_;           // if the KV format is "coupled"
  std::unique_ptr<SlowValues> slow_values_;      // if values lie in slow memory
  std::unique_ptr<ChunkReads> chunk_reads_;      // if keys and values lie there
  std::vector<std::shared_ptr<KvPool>> slow_pools_;
  std::vector<TransferEvent>* transfers_ = nullptr;  // where the pass's transfers go, if asked for
  std::vector<std::shared_ptr<KvPool>> pools_;  // one per page layout
  std::vector<int> recurrent_layers_;           // layer -> its index among those with recurrent state, or -1
  std::int64_t recurrent_count_ = 0;
  std::vector<LayerKv> source_kv_;  // per layer, what it keeps of an encoded input
  std::vector<LayerKv> encoder_kv_;  // per shape of encoder_kv_shapes, while an input is encoded
  std::vector<std::size_t> encoder_shapes_;  // index into encoder_kv_ of each of the encoder's layers

  // Backend memory, made once.
  Buffer x_, q_, k_, v_, attention_, ffn_, router_, experts_, work_, recurrent_, logits_;
  std::vector<Buffer> rope_tables_;
  std::vector<RopeFrequencies> ropes_;  // for the context of this decoder
  Buffer slope_memory_;
  std::vector<const float*> slopes_;  // per layer, null without ALiBi
  Buffer relative_memory_;
  std::vector<const float*> relative_;  // per layer of both stacks, the bias of each distance, or null
  std::unique_ptr<Stream> stream_;
  HostThreads threads_{stream_};
  SequenceState::Spread spread_{threads_};
  std::stop_source stopped_;  // has been asked to stop: empties the stream
  std::int64_t logits_capacity_ = 0;
  std::vector<float> host_logits_;  // only if the host cannot see backend memory

  // Host data of the pass that is running; kept so that a step allocates nothing.
  std::vector<Piece> pieces_;
  std::vector<std::int64_t> entry_rows_;     // logits rows before each entry
  std::vector<std::int64_t> entry_done_;     // rows of each entry that are done
  std::vector<std::int32_t> row_tokens_;
  std::vector<std::int32_t> row_types_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> head_rows_;  // rows that get logits
  std::vector<HeadRun> head_runs_;
  std::vector<float> row_embeddings_;
  std::vector<Segment> segments_;
  std::vector<std::uint64_t> visible_;
  std::vector<KvTable> tables_;
  std::vector<KvTable> earlier_tables_;  // as tables_, of layers in two places
  std::vector<KvLayer> earlier_kv_;      // [layer]
  // Rebuilding: a segment per piece, rows of all pieces together.
  std::vector<Segment> rebuild_segments_;
  std::vector<std::int32_t> rebuild_positions_, rebuild_wanted_, rebuild_dropped_, rebuild_fresh_;
  std::vector<std::vector<float>> rebuild_host_;   // [layer] how the rows entered it
  std::vector<std::vector<float>> entered_host_;   // [layer] how the rows of the pass entered it
  std::vector<std::vector<KvTable>> rebuild_tables_;  // [layer] of segments and groups
  Buffer rebuild_x_, rebuild_k_, rebuild_v_;
  std::vector<Buffer> rebuild_ropes_;
  std::vector<KvTable> value_tables_;    // of one layer, on their way to slow_values_
  // Where layers read a later layer: each row as a segment of its own, and the slots it sees: first those of before the pass,
  // then also those of the rows before it. [layer][part][row][group]
  std::vector<Segment> row_segments_;
  std::array<std::vector<KvTable>, 2> row_tables_;
  bool reads_ahead_ = false;
  int iteration_ = 0;
  std::vector<StatePlace> places_;  // [recurrent layer][segment]
  Matrix mixed_{};                  // result of the latest recurrent mixer
  std::vector<KvTable> source_tables_;   // [layer][segment][group]
  std::vector<KvTable> encoder_tables_;  // [shape][group]
  bool pass_has_embeddings_ = false;
  std::vector<float>* hidden_ = nullptr;  // where hidden states go, if asked for
  bool pass_has_adapters_ = false;
  std::vector<std::vector<DeltaRows>> deltas_;  // one list per op that has any; kept until the pass is over
  std::size_t delta_lists_ = 0;                 // those of them that this pass uses
  std::vector<Buffer> old_delta_memory_;        // outgrown in the middle of the pass
  Buffer delta_memory_;                         // their inner results; ops run one after the other and share it

  // Learned gates of the eviction policy.
  std::vector<std::shared_ptr<const Weight>> gate_weights_;  // [layer], null: none
  Buffer gates_;
  std::vector<DropTable> drop_tables_;  // [layer][part][segment]

  // Attention scores, if asked for.
  Buffer score_memory_;
  std::vector<std::size_t> score_offsets_;  // [entry][layer][group], in floats
  std::vector<float*> score_pointers_;      // [layer][segment][group] of the pass
  Buffer score_work_;  // for the logits of a decoding step, if the policy wants scores
  std::vector<const float*> score_noise_;   // as score_pointers_, if the policy's scores have noise
  std::vector<const float*> score_before_;  // as score_pointers_, what the policy's scores begin with
  std::vector<float> inverse_temperatures_; // of the pass's rows, if the policy's scores have a temperature
  std::vector<ScoreSink> score_sinks_;      // [layer][part]
  std::size_t score_groups_ = 0;            // groups of all layers
  bool scoring_ = false;         // the caller asks for scores
  bool policy_scoring_ = false;  // the eviction policy asks for those of a piece in this pass
  ScoreSink score_template_{};
};

}  // namespace skald::inline v0::detail
