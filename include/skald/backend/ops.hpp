#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <variant>

#include <skald/core/dtype.hpp>
#include <skald/kernels/kv_layout.hpp>

/// The operations a backend runs, as plain data: a forward pass is a list of them. Every op is trivially copyable;
/// pointers marked [device] are addresses in memory of the backend (see Buffer), pointers marked [host] are read
/// when the op runs and must stay valid until the stream is synchronized.
///
/// Numerics common to all backends (bit-exactness): each output element is one fold over its inner dimension in a
/// fixed order that depends on neither the other rows of the batch nor the number of threads.
namespace skald::inline v0 {

class Weight;

/// Row-major matrix of f32 in backend memory: `rows` x `cols`, `stride` elements from row to row.
struct Matrix {
  float* data = nullptr;  ///< [device]
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;
};

/// out[i, :] = scale * table[tokens[i], :]
struct EmbedOp {
  const Weight* table = nullptr;         ///< [vocabulary, dim], any weight format
  const std::int32_t* tokens = nullptr;  ///< [host] out.rows token ids
  Matrix out{};
  float scale = 1.0F;
};

/// Copies rows from host memory: out = host. For embeddings given instead of tokens.
struct UploadOp {
  const float* host = nullptr;  ///< [host] out.rows x out.cols, dense
  Matrix out{};
};

enum class NormKind : std::uint8_t { none, rms, layer };

/// Normalization of rows. RMS: x / sqrt(mean(x^2) + eps) * weight (Zhang, Sennrich 2019);
/// layer: (x - mean) / sqrt(var + eps) * weight + bias (Ba, Kiros, Hinton 2016).
struct Norm {
  NormKind kind = NormKind::none;
  const float* weight = nullptr;  ///< [device] cols elements, or null for ones
  const float* bias = nullptr;    ///< [device] cols elements, or null for zeros
  float epsilon = 0.0F;
};

/// out = norm(x). In place if out.data == x.data.
struct NormOp {
  Matrix x{};
  Norm norm{};
  Matrix out{};
  /// A row's columns are this many equal groups, each normalized alone; weight and bias still have cols elements.
  std::int32_t groups = 1;
};

enum class Activation : std::uint8_t { none, silu, gelu_tanh, gelu_erf, relu, relu_squared, tanh, sigmoid };

/// What happens to the products of a LinearOp.
enum class LinearEpilogue : std::uint8_t {
  store,  ///< out[p] = activation(scale * (W[p] x + bias[p]))
  add,    ///< out[p] += scale * (W[p] x + bias[p])   (residual)
  gated,  ///< two parts: out[0] = activation(W[0] x + bias[0]) * (W[1] x + bias[1])
};

/// What a WeightDelta adds to a matrix W [outputs, inputs].
enum class DeltaKind : std::uint8_t {
  low_rank,   ///< second * first, [outputs, rank] * [rank, inputs] (LoRA, Hu et al. 2021, arXiv 2106.09685)
  columns,    ///< `rank` columns of W: second[:, j] to column columns[j] (PaCA, arXiv 2503.01905)
  kronecker,  ///< the sum of `rank` terms first_t (x) second_t, [a_rows, a_cols] (x) [b_rows, b_cols] (SoKA, LoKr)
};

/// A change of a weight matrix that is applied to what it multiplies, without touching its codes.
struct WeightDelta {
  DeltaKind kind = DeltaKind::low_rank;
  std::int32_t rank = 0;
  float scale = 1.0F;                   ///< multiplies the change
  const float* first = nullptr;         ///< [device]
  const float* second = nullptr;        ///< [device]
  const std::int32_t* columns = nullptr;  ///< [device] rank column numbers, for `columns`
  const std::int32_t* rows = nullptr;  ///< [device] output r is row rows[r] of the product (kronecker); null: row r
  std::int32_t a_rows = 0, a_cols = 0, b_rows = 0, b_cols = 0;

  /// Floats of the intermediate result of one row.
  [[nodiscard]] std::int64_t inner() const noexcept {
    return kind == DeltaKind::kronecker ? std::int64_t{rank} * a_cols * b_rows : rank;
  }
};

/// Rows of a batch that a delta applies to, and where their intermediate results lie. Rows that no delta names get
/// exactly what they would get without any.
struct DeltaRows {
  WeightDelta delta{};
  std::int32_t row_begin = 0;
  std::int32_t row_count = 0;
  Matrix inner{};  ///< [row_count, delta.inner()], written by a DeltaInputOp
};

/// Computes inner = first * norm(row row_begin + i of the input) for every entry: what a LinearPart's deltas go on from.
/// Its input is that of the LinearOp: rows of x, or those that `rows` names.
struct DeltaInputOp {
  Matrix x{};
  Norm norm{};
  const std::int32_t* rows = nullptr;  ///< [host] as LinearOp::rows
  std::int32_t row_count = 0;          ///< number of entries in `rows`
  const DeltaRows* deltas = nullptr;  ///< [host]
  std::int32_t delta_count = 0;
};

/// One weight matrix of a LinearOp.
struct LinearPart {
  const Weight* weight = nullptr;  ///< [out.cols, x.cols]
  const float* bias = nullptr;     ///< [device] out.cols elements, or null
  Matrix out{};                    ///< rows as many as input rows; for `gated` only that of part 0 is written
  /// [host] Added to W x + bias, one after the other, after a DeltaInputOp over the same input. Their rows are those of
  /// `out`.
  const DeltaRows* deltas = nullptr;
  std::int32_t delta_count = 0;
};

/// out[p] = epilogue(W[p] * norm(x)) for up to three matrices that share their input. An `out` may overlap neither x
/// nor another `out`: parts of the input are read again while outputs are written.
struct LinearOp {
  Matrix x{};
  Norm norm{};
  const std::int32_t* rows = nullptr;  ///< [host] row i of the input is x[rows[i]]; null: all rows of x in order
  std::int32_t row_count = 0;          ///< number of entries in `rows`
  std::int32_t part_count = 1;
  std::array<LinearPart, 3> parts{};
  LinearEpilogue epilogue = LinearEpilogue::store;
  Activation activation = Activation::none;
  float scale = 1.0F;
};

/// How a router's logits become the experts' shares.
enum class ExpertGating : std::uint8_t {
  softmax,           ///< score and share: softmax over the logits of all experts
  softmax_selected,  ///< score: the logit; share: softmax over the logits of the chosen experts (gpt-oss)
  sigmoid,           ///< score and share: 1 / (1 + exp(-logit)) (DeepSeek-V3, arXiv 2412.19437)
};

/// Least sum that shares are divided by (the smallest normal number of 16 bits, as in published code).
inline constexpr float least_share_sum = 6.103515625e-5F;

/// Mixture of experts (Shazeer et al. 2017, arXiv 1701.06538), each a gated network:
///   out[t, :] += sum over the `used` experts e with the largest score[t, e], from the largest down, of
///                scale * share[t, e] * (down_e(inner_e) + down_bias_e),
///   inner_e = activation(g) * u,  g = gate_e y + gate_bias_e,  u = up_e y + up_bias_e,  y = norm(x[t, :])
/// Equal scores: the lower expert first. The terms are added to `out` one after the other.
/// With a gate_limit L > 0: g' = min(g, L), u' = clamp(u, -L, L), inner_e = g' / (1 + exp(-gate_alpha g')) * (u' + 1).
struct ExpertsOp {
  Matrix x{};                     ///< [tokens, dim]
  Norm norm{};                    ///< of x
  Matrix logits{};                ///< [tokens, experts], the router's, with its bias: of a LinearOp over these rows
  std::int32_t used = 0;
  ExpertGating gating = ExpertGating::softmax;
  bool renormalize = false;       ///< divides the shares of the chosen experts by max(their sum, least_share_sum)
  float scale = 1.0F;             ///< multiplies every share
  const Weight* gate = nullptr;   ///< stack of `experts` matrices [width, dim]
  const Weight* up = nullptr;     ///< as gate
  const Weight* down = nullptr;   ///< stack of `experts` matrices [dim, width]
  Activation activation = Activation::silu;
  Matrix inner{};                 ///< [tokens * used, width], work memory
  Matrix products{};              ///< [tokens * used, dim], work memory
  Matrix out{};                   ///< [tokens, dim]; may be x
  const float* selection_bias = nullptr;  ///< [device] experts elements or null: added to the scores for choosing only
  /// The experts are this many equal groups; only experts of the `groups_used` groups with the largest sums of their
  /// `group_best` (1 or 2) largest scores (of equal ones the lower) can be chosen.
  std::int32_t groups = 1;
  std::int32_t groups_used = 1;
  std::int32_t group_best = 2;
  const float* gate_bias = nullptr;  ///< [device] experts x width, or null
  const float* up_bias = nullptr;    ///< [device] experts x width, or null
  const float* down_bias = nullptr;  ///< [device] experts x dim, or null
  float gate_alpha = 0.0F;
  float gate_limit = 0.0F;
};

/// x[t, :] *= 1 / (1 + exp(-logits[t, 0])). For the gate of an expert that all tokens share.
struct GateRowsOp {
  Matrix x{};
  Matrix logits{};  ///< [rows of x, 1]
};

/// One matrix for each head: out[t, h * out_step + i] = sum over j of W_h[i, j] * x[t, h * x_step + j]. Behind these
/// elements `tail` elements are copied, those that follow the head's inputs: out[t, h * out_step + rows + i] =
/// x[t, h * x_step + cols + i]. (Queries into the latent space of DeepSeek-V2, arXiv 2405.04434, and values out of it.)
struct HeadLinearOp {
  Matrix x{};
  std::int64_t x_step = 0;         ///< elements from head to head; at least cols + tail
  const Weight* weight = nullptr;  ///< stack of `heads` matrices [rows, cols]
  std::int32_t heads = 0;
  std::int32_t tail = 0;
  Matrix out{};
  std::int64_t out_step = 0;  ///< at least rows + tail
};

/// out[i, 2j] = magnitude * cos(positions[i] * inverse_frequencies[j]), out[i, 2j + 1] the same with sin; the angle is
/// formed in double precision. Shared by all layers of one rotary kind.
struct RopeTableOp {
  const std::int32_t* positions = nullptr;      ///< [host] out.rows positions
  const double* inverse_frequencies = nullptr;  ///< [host] out.cols / 2 elements
  float magnitude = 1.0F;
  Matrix out{};  ///< [tokens, rotary dims]
};

enum class RopeKind : std::uint8_t {
  none,
  interleaved,  ///< rotates (x[2i], x[2i + 1])        (Su et al. 2021, arXiv 2104.09864)
  half,         ///< rotates (x[i], x[i + dims / 2])   (GPT-NeoX)
};

/// One KV-head group of one sequence in one layer.
struct KvTable {
  const std::uint32_t* pages = nullptr;  ///< [host] page numbers, in slot order; the first page holds slot `first`
  std::int32_t length = 0;  ///< slots filled before this batch; row i of the segment goes to slot length + i
  /// Slots before this one are gone (a sliding window's past); a multiple of the page size. No row may see them: every
  /// row's window must begin at or after it. Chunk borders stay where they are without it.
  std::int32_t first = 0;
  // What a cache that drops tokens knows of its slots, or null. Not with `first`. Without them no bit changes.
  /// [device] length + rows elements: added to the logits of every query with the slot.
  const float* bias = nullptr;
  /// [device] length + rows elements, ascending: positions of the slots' tokens; the row after slot length - 1 has
  /// `position`, later rows follow. Distances for AttentionOp::slopes are then those of positions, not of slots.
  const std::int32_t* positions = nullptr;
  std::int32_t position = 0;
  /// [device] length + rows elements: the first position whose row no longer sees the slot. A row sees its own slot.
  const std::int32_t* until = nullptr;
};

/// Consecutive rows of a batch that belong to one sequence.
struct Segment {
  std::int32_t row_begin = 0;
  std::int32_t row_count = 0;
  /// [host] null: row i sees all earlier slots and rows 0..i of the segment (causal). Else a bit matrix of
  /// row_count rows, each of (row_count + 63) / 64 words: bit j of row i says that row i sees row j of this segment
  /// (a token tree); bit i of row i must be set, bits of later rows must be clear.
  const std::uint64_t* visible = nullptr;
};

/// Where a layer's keys and values live: the table of segment s and group g is tables[s * groups + g];
/// page p starts at pool + p * layout.page_bytes().
struct KvLayer {
  std::byte* pool = nullptr;  ///< [device]
  KvPageLayout layout{};
  std::int32_t groups = 0;          ///< KV-head groups: kv_heads / layout.heads
  const KvTable* tables = nullptr;  ///< [host] segment_count x groups
  /// [host] Slots that come before all of `tables`, in pages of another format or pool with the same heads: every row sees the
  /// `length` slots of its table there, and then those of `tables`, whose first ones may be gone. Nothing is stored to them.
  /// With the causal mask alone, and neither window nor anything that counts distances or scores.
  const KvLayer* earlier = nullptr;
};

/// Normalizes (optional, per head), rotates q and k, and writes k and v to their pages.
struct StoreKvOp {
  Matrix q{};  ///< [tokens, heads * head_dim_k]; normalized and rotated in place. Matrix{}: there are no queries
  Matrix k{};  ///< [tokens, kv_heads * head_dim_k]; normalized and rotated in place. No data and columns: nothing is stored
  Matrix v{};  ///< [tokens, kv_heads * head_dim_v]; not read if the layout has the values in the keys
  std::int32_t heads = 0;
  std::int32_t kv_heads = 0;
  Norm q_norm{};  ///< over each head's elements
  Norm k_norm{};
  RopeKind rope = RopeKind::none;
  std::int32_t rope_dims = 0;    ///< elements of a head that rotate, from rope_offset on
  std::int32_t rope_offset = 0;  ///< first element of a head that rotates
  Matrix rope_table{};         ///< of a RopeTableOp over the same rows
  KvLayer kv{};
  const Segment* segments = nullptr;  ///< [host]
  std::int32_t segment_count = 0;
};

enum class ScoreKind : std::uint8_t {
  sum,  ///< adds the attention probabilities of all queries
  max,  ///< keeps the largest
};

/// Receives the attention probabilities that a kernel computes: per segment and KV-head group one array over slots,
/// `out[slot] (op)= probability` over the rows, and per row over the query heads of the group, in ascending order.
struct ScoreSink {
  ScoreKind kind = ScoreKind::sum;
  std::int32_t last_rows = 0;      ///< only the last n rows of each segment count; 0: all
  float* const* scores = nullptr;  ///< [host] segment_count x groups pointers to [device] arrays; null: nobody asks
  /// If given, what the arrays begin with: [host] as scores, each null (what is in the array) or [device] KvTable::length
  /// elements, after which come zeros. So nobody need copy the scores that a pass adds to.
  const float* const* before = nullptr;
  /// What is added up are probabilities of (logit + noise) * inverse_temperature instead, if given.
  const float* const* noise = nullptr;          ///< [host] as scores, each null or [device] length + rows elements
  const float* inverse_temperatures = nullptr;  ///< [device] one for each row of the op, or null
  /// [device] memory that a backend may use: where it holds score_work_floats for all rows and heads, logits need not be
  /// computed twice. Changes no bit.
  float* work = nullptr;
  std::int64_t work_floats = 0;
};

/// Slots per attention chunk.
inline constexpr std::int32_t attention_chunk = 256;

/// ScoreSink::work for one row and query head that sees `slots` slots: a number for each, and two for each chunk.
[[nodiscard]] constexpr std::int64_t score_work_floats(std::int64_t slots) noexcept {
  const std::int64_t chunks = (slots + attention_chunk - 1) / attention_chunk;
  return (slots + 15) / 16 * 16 + (2 * chunks + 15) / 16 * 16;
}

/// Which rows of its own segment a row sees, next to the slots filled before.
enum class AttentionMask : std::uint8_t {
  causal,  ///< rows 0..i, or those of Segment::visible
  full,    ///< all rows of the segment: encoders and diffusion models; Segment::visible must be null
  none,    ///< no row: exactly the slots [first, length), which another op filled (cross-attention); nothing is stored
};

/// Softmax attention over pages: out[t, h] = softmax(scale * q[t, h] K^T) V over the slots that row t sees; query head
/// h reads KV head h / (heads / kv_heads). Keys are taken in chunks of `attention_chunk` slots at absolute borders;
/// the chunks' partial results are merged in ascending order, the sink last. A row that sees no slot gives zeros.
struct AttentionOp {
  Matrix q{};    ///< [tokens, heads * head_dim_k]
  Matrix out{};  ///< [tokens, heads * head_dim_v]
  std::int32_t heads = 0;
  std::int32_t kv_heads = 0;
  float scale = 1.0F;
  float softcap = 0.0F;     ///< s = softcap * tanh(s / softcap) if > 0
  std::int32_t window = 0;  ///< a row sees no slot more than window - 1 before its own; 0: all. Not with mask `none`
  AttentionMask mask = AttentionMask::causal;
  /// [device] heads elements or null: one more logit per head in the softmax's denominator, with no value (gpt-oss).
  const float* sinks = nullptr;
  /// [device] heads elements or null: adds slopes[h] * (slot - row's slot) to s (ALiBi, Press et al. 2021,
  /// arXiv 2108.12409).
  const float* slopes = nullptr;
  /// [device] heads x (2 * bias_reach + 1) elements or null: adds bias[h][clamp(slot - row's slot, -bias_reach,
  /// bias_reach) + bias_reach] to s (T5's relative positions, Raffel et al. 2020, arXiv 1910.10683).
  const float* bias = nullptr;
  std::int32_t bias_reach = 0;
  KvLayer kv{};
  const Segment* segments = nullptr;  ///< [host]
  std::int32_t segment_count = 0;
  const ScoreSink* sink = nullptr;  ///< [host] or null
};

/// x += scale * y, elementwise.
struct AddOp {
  Matrix x{};
  Matrix y{};
  float scale = 1.0F;
};

/// x = softcap * tanh(scale * x / softcap) if softcap > 0, else scale * x.
struct SoftcapOp {
  Matrix x{};
  float scale = 1.0F;
  float softcap = 0.0F;
};

/// x = min(max(x, -limit), limit), elementwise.
struct ClampOp {
  Matrix x{};
  float limit = 0.0F;
};

/// Gate keys of one sequence's slots in a layer, and when each slot was dropped.
struct DropTable {
  float* keys = nullptr;          ///< [device] [length + rows][width]
  std::int32_t* until = nullptr;  ///< [device] length + rows elements, as KvTable::until
  std::int32_t length = 0;        ///< slots before the segment
  std::int32_t position = 0;      ///< of the segment's first row
};

/// Learned gates: stores the gate keys of the rows, which nothing has dropped, and drops every slot before a row whose key's
/// product with the row's gate query / sqrt(width) + bias is negative, from the row on (Anagnostidis et al. 2023,
/// arXiv 2305.15805).
struct DropOp {
  Matrix gates{};  ///< [tokens, 2 * width]: the row's gate query, then its gate key
  float bias = 0.0F;
  const DropTable* tables = nullptr;  ///< [host] segment_count
  const Segment* segments = nullptr;  ///< [host]; without visibility matrices
  std::int32_t segment_count = 0;
};

/// Copies rows to host memory.
struct DownloadOp {
  Matrix x{};
  float* host = nullptr;  ///< [host] x.rows x x.cols, dense
};

/// Where one sequence's recurrent state of a layer is read, and where what follows from it is written.
struct StatePlace {
  const float* from = nullptr;  ///< [device] null: the beginning of a sequence, all zeros
  float* to = nullptr;          ///< [device] memory apart from `from`
};

/// The recurrent state of a layer for each segment of a batch; an op reads and writes its own part, which begins `offset`
/// elements in. Rows are taken one after the other in the order of their segment.
struct StateLayer {
  const StatePlace* places = nullptr;  ///< [host] one per segment
  std::int64_t offset = 0;
  const Segment* segments = nullptr;  ///< [host] Segment::visible must be null: a state follows one sequence
  std::int32_t segment_count = 0;
};

/// Most taps of a ConvOp.
inline constexpr std::int32_t most_conv_taps = 32;

/// Causal convolution of each column over the rows of its sequence: out[t, c] = activation(bias[c] + sum over j of
/// weight[c * taps + j] * x[t - taps + 1 + j, c]). Part of the state: the taps - 1 rows before, [taps - 1, cols], oldest first.
struct ConvOp {
  Matrix x{};
  Matrix out{};
  std::int32_t taps = 0;          ///< 2 to most_conv_taps
  const float* weight = nullptr;  ///< [device] cols x taps
  const float* bias = nullptr;    ///< [device] cols, or null
  Activation activation = Activation::none;
  StateLayer state{};
};

/// Selective state-space scan (Mamba, Gu and Dao 2023, arXiv 2312.00752; with few decays Mamba-2, Dao and Gu 2024, arXiv
/// 2405.21060). Head h has x.cols / heads channels p with `size` elements of state each, and reads group
/// g = h / (heads / groups) of b and c. In row t, with step = log(1 + exp(steps[t, h] + step_bias[h])):
///   s[p, n] = exp(step * decay[h, n]) * s[p, n] + step * x[t, p] * b[t, g, n]
///   out[t, p] = (sum over n of c[t, g, n] * s[p, n] + skip[h] * x[t, p]) * silu(gate[t, p])
/// Part of the state: s, [x.cols, size].
struct ScanOp {
  Matrix x{};
  Matrix steps{};  ///< [rows, heads]
  Matrix b{};      ///< [rows, groups * size]
  Matrix c{};      ///< as b
  Matrix gate{};   ///< as x
  Matrix out{};    ///< as x; may be neither x nor b nor c
  std::int32_t heads = 0;
  std::int32_t groups = 1;
  std::int32_t size = 0;
  const float* decay = nullptr;  ///< [device] heads x size, or heads if one_decay; negative numbers
  bool one_decay = false;        ///< one for all elements of a head
  const float* skip = nullptr;       ///< [device] heads
  const float* step_bias = nullptr;  ///< [device] heads, or null
  StateLayer state{};
};

/// Mixes each row with the one before it in its sequence (RWKV's token shift, Peng et al. 2023, arXiv 2305.13048):
/// out[t, p * cols + i] = x[t, i] + (x[t - 1, i] - x[t, i]) * (mix[p * cols + i] + more[t, p * cols + i])
/// for the out.cols / cols parts p. Part of the state: the last row, [cols].
struct TokenShiftOp {
  Matrix x{};
  const float* mix = nullptr;  ///< [device] out.cols elements
  Matrix more{};               ///< as out, or Matrix{}: zeros
  Matrix out{};                ///< may be `more`
  StateLayer state{};
};

/// Most elements of a head of a WkvOp.
inline constexpr std::int32_t most_wkv_size = 256;

/// RWKV's state over the keys and values of each head, of `size` elements, and what it is read into. All vectors are those of
/// a head in row t. Finch (version 6, Peng et al. 2024, arXiv 2404.05892), with w = exp(-exp(decay)):
///   y[i] = sum over j of r[j] * (bonus[j] * k[j] * v[i] + s[j, i]);  s[j, i] = w[j] * s[j, i] + k[j] * v[i]
///   out = norm(y) * gate
/// Goose (version 7, Peng et al. 2025, arXiv 2503.14456), with w = exp(-0.606531 * sigmoid(decay)), a = sigmoid(rate),
/// q = k * key_scale over its length, k' = k * (1 + (a - 1) * rate_scale):
///   s[j, i] = w[j] * s[j, i] - (sum over m of q[m] * s[m, i]) * q[j] * a[j] + k'[j] * v[i];  y[i] = sum over j of r[j] * s[j, i]
///   out = (norm(y) + v * sum over j of r[j] * k'[j] * bonus[j]) * gate
/// Part of the state: s, [heads, size (keys), size (values)].
struct WkvOp {
  std::int32_t version = 6;
  std::int32_t heads = 0;
  Matrix r{};      ///< [rows, heads * size], as all of the following
  Matrix k{};
  Matrix v{};
  Matrix decay{};
  Matrix rate{};   ///< version 7
  Matrix gate{};   ///< or Matrix{}: ones
  Matrix out{};    ///< none of the others
  const float* bonus = nullptr;       ///< [device] heads * size
  const float* key_scale = nullptr;   ///< [device] heads * size; version 7
  const float* rate_scale = nullptr;  ///< [device] heads * size; version 7
  Norm norm{};                        ///< of each head; weight and bias of all heads
  StateLayer state{};
};

/// x *= y, elementwise.
struct MultiplyOp {
  Matrix x{};
  Matrix y{};
};

/// x += (y - x) * weight, elementwise.
struct LerpOp {
  Matrix x{};
  Matrix y{};
  Matrix weight{};
};

/// Work of the host's own between other ops: `run(context, unit)` once for each unit, on any threads and at the same time.
/// Only where the host can see the backend's memory.
struct HostOp {
  void (*run)(void* context, std::int64_t unit) noexcept = nullptr;
  void* context = nullptr;  ///< [host]
  std::int64_t units = 0;
};

using Op = std::variant<EmbedOp, UploadOp, NormOp, LinearOp, RopeTableOp, StoreKvOp, AttentionOp, AddOp, SoftcapOp,
                        DownloadOp, ExpertsOp, GateRowsOp, HeadLinearOp, ClampOp, DeltaInputOp, ConvOp, ScanOp,
                         TokenShiftOp, WkvOp, MultiplyOp, LerpOp, HostOp, DropOp>;

}  // namespace skald::inline v0
