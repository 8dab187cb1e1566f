#pragma once

// The functions that are compiled once per instruction set. Plain pointers and sizes only: the translation units of
// an instruction set share no inline function with the rest of the library. All functions are noexcept, allocate
// nothing, start no threads; preconditions were checked at the boundary.

#include <cstddef>
#include <cstdint>

#include <skald/core/dtype.hpp>
#include <skald/kernels/kv_layout.hpp>

namespace skald::inline v0::kernels {

inline constexpr int panel_rows = 16;

/// Columns of prepared activations that a product is asked for.
struct MatmulColumns {
  const std::byte* acts;  ///< what `prepare` wrote
  std::int64_t count;     ///< columns the buffer was made for
  std::int64_t begin;     ///< first column, a multiple of column_block
  std::int64_t end;       ///< one past the last column; any number
  /// What will be read after these panels, to be fetched in time; null: what lies behind them.
  const std::byte* next = nullptr;
};

/// Matrix product of weights in 16-row panels ("panel16") with activations prepared once and shared.
///
/// A weight [rows, cols] becomes ceil(rows / 16) panels of panel_bytes(cols) bytes each (rows padded with zeros).
/// `prepare` quantizes (or copies) activation rows into an opaque buffer of acts_bytes(cols, count) bytes for a batch
/// of `count` columns (= tokens); its contents depend on each token alone, its layout on `count`.
/// `multiply` computes out[c * out_stride + r] = sum_k W[r, k] * x[c, k] for the rows r of [0, row_count), which lie in
/// ceil(row_count / 16) panels from `panels` on, and the columns c of the range; it writes nothing else. Every output is
/// the same sequence of operations whatever the number of columns and rows or the column range. A caller that splits
/// rows starts each part at a panel: panels + p * panel_bytes(cols), out + 16 * p.
struct MatmulKernel {
  DType type;
  int column_block;  ///< column ranges of `multiply` and token ranges of `prepare` start at multiples of this
  std::size_t (*panel_bytes)(std::int64_t cols) noexcept;
  /// rows[i] points to row i in file format, or is null for padding.
  void (*pack)(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept;
  /// Decodes row `row` of [0, 16) of a panel: the same floats as decoding the file's row.
  void (*unpack_row)(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept;
  /// Never more for `count` columns than `count` times those for one; a multiple of 64.
  std::size_t (*acts_bytes)(std::int64_t cols, std::int64_t count) noexcept;
  /// Prepares tokens [begin, end) of x (stride in floats) into `acts`, made for `count` tokens. Token begin is x row 0.
  void (*prepare)(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t begin, std::int64_t end,
                  std::byte* acts, std::int64_t count) noexcept;
  /// Bytes of scratch that one caller of `multiply` needs for `count` columns.
  std::size_t (*scratch_bytes)(std::int64_t cols, std::int64_t count) noexcept;
  /// `scratch` is aligned to 64 bytes; it need not be cleared.
  void (*multiply)(const std::byte* panels, std::int64_t row_count, std::int64_t cols, const MatmulColumns& columns,
                   float* out, std::int64_t out_stride, std::byte* scratch) noexcept;
  /// Identifies the activation format: kernels with equal ids share prepared activations.
  int activation_id;
  /// Its activations are more than a list of 32-bit words for each column, interleaved by column: not for experts, whose
  /// columns are gathered. Comes after the other kernel of its type, with the same panels and the same results.
  bool alone = false;
};

/// One chunk-wise attention problem: the query heads that share one KV head, over consecutive rows of one segment.
struct AttentionTask {
  const float* q;             ///< row 0, first query head of this KV head; heads follow each other
  std::int64_t q_stride;      ///< floats from row to row
  float* out;                 ///< as q, with head_dim_v elements per head
  std::int64_t out_stride;
  std::int32_t rows;          ///< rows of this task
  std::int32_t heads;         ///< query heads per KV head
  std::int32_t first_row;     ///< index of row 0 in its segment
  std::int32_t segment_rows;  ///< rows of the whole segment
  std::int32_t slot_base;     ///< slots filled before the segment: row i of the segment sits in slot slot_base + i
  const std::uint64_t* visible;  ///< as Segment::visible, or null
  std::int32_t window;
  float scale;
  float softcap;
  const std::byte* pool;
  const std::uint32_t* pages;  ///< the first holds slot `first`
  KvPageLayout layout;
  std::int32_t head;          ///< KV head within its group
  std::int32_t first;         ///< as KvTable::first
  int mask;                   ///< skald::AttentionMask: 0 causal, 1 full, 2 none
  const float* sinks;         ///< of the task's heads, or null
  const float* slopes;        ///< as sinks
  const float* bias;          ///< of the task's first head, 2 * bias_reach + 1 elements for each, or null
  std::int32_t bias_reach;
  const float* slot_bias;         ///< as KvTable::bias, or null
  const std::int32_t* positions;  ///< as KvTable::positions, or null
  const std::int32_t* until;      ///< as KvTable::until, or null
  std::int32_t position;          ///< of row 0 of the segment; with positions or until
  // Of the score pass alone.
  const float* noise;                 ///< added to the logit of each slot, or null
  const float* inverse_temperatures;  ///< of the task's rows, or null
  /// Null, or where `chunk` and `whole` leave by slot (rounded up to 16) what `scores` then goes on with, without reading
  /// keys: weights; or, if `shaped`, logits (-infinity where unseen), of which `scores` makes weights in their place.
  float* logits;
  std::int64_t logits_row_stride;   ///< floats from row to row
  std::int64_t logits_head_stride;  ///< floats from head to head
  std::int64_t chunk_states = 0;    ///< floats from a head's first slot to the (maximum, sum) of its chunks, by number
  bool shaped = false;              ///< the score pass has noise or temperatures
  // Of `whole` alone, for slots in two places; `partial_bytes` each.
  const float* carry_in = nullptr;  ///< running results to go on from, or null
  float* carry_out = nullptr;       ///< where to leave running results, instead of writing `out`; or null
};

struct AttentionKernel {
  DType type;  ///< of keys and values
  /// Bytes of the partial results of one chunk: maximum, sum and head_dim_v accumulators for every row and head of
  /// the task.
  std::size_t (*partial_bytes)(const AttentionTask& task) noexcept;
  /// Bytes of scratch for tasks of at most `rows` rows; bounded, whatever the number of rows.
  std::size_t (*scratch_bytes)(std::int32_t head_dim_k, std::int32_t head_dim_v, std::int32_t heads,
                               std::int32_t rows) noexcept;
  /// Computes chunk `chunk` (slots [256 chunk, 256 chunk + 256)) for all rows and heads into `partial`.
  void (*chunk)(const AttentionTask& task, std::int32_t chunk, std::byte* partial, std::byte* scratch) noexcept;
  /// Merges the partials of chunks 0..count-1 (in this order; `partials` are `stride` bytes apart) and writes `out`.
  void (*merge)(const AttentionTask& task, const std::byte* partials, std::size_t stride, std::int32_t count) noexcept;
  /// All chunks of a task one after the other, with the same operations as `chunk` and `merge`.
  void (*whole)(const AttentionTask& task, std::byte* scratch) noexcept;
  /// Adds probabilities to scores[slot] (kind 0: sum, 1: max) for the given rows of the task, after the outputs are
  /// known: goes on with what `logits` hold, or computes the logits again. The bits are the same.
  void (*scores)(const AttentionTask& task, int kind, float* scores, std::byte* scratch) noexcept;
  /// Writes keys and values of one row and KV head (head_dim_k and head_dim_v floats) to its slot.
  void (*store)(const float* k, const float* v, std::byte* page, const KvPageLayout& layout, std::int32_t head,
                std::int32_t slot) noexcept;
};

/// Row-wise elementary functions. `x` and `y` may be the same memory.
struct RowKernels {
  void (*rms_norm)(const float* x, const float* weight, float epsilon, std::int64_t n, float* y) noexcept;
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, std::int64_t n,
                     float* y) noexcept;
  /// y = activation(x); kind is skald::Activation.
  void (*activate)(const float* x, int kind, std::int64_t n, float* y) noexcept;
  /// y = activation(gate) * up
  void (*gated)(const float* gate, const float* up, int kind, std::int64_t n, float* y) noexcept;
  /// y += scale * x
  void (*add)(const float* x, float scale, std::int64_t n, float* y) noexcept;
  /// y = softcap * tanh(scale * x / softcap), or scale * x if softcap == 0
  void (*softcap)(const float* x, float scale, float softcap, std::int64_t n, float* y) noexcept;
  /// g = min(gate, limit), u = clamp(up, -limit, limit): y = g / (1 + exp(-alpha * g)) * (u + 1)
  void (*clamped_gate)(const float* gate, const float* up, float alpha, float limit, std::int64_t n, float* y) noexcept;
  /// Rotates the leading `dims` elements; table holds cos, sin pairs; kind is skald::RopeKind.
  void (*rope)(float* x, const float* table, int kind, std::int64_t dims) noexcept;
  /// Compares rows of length one with 16 keys [dims][16], the slots from `first` on. rows: [tiles][dims][compared_rows];
  /// best, slots: [tiles][compared_rows][16] the largest cosine so far plus the penalty of its lane, and whose it is (the
  /// first's, of equal ones).
  void (*compare_keys)(const float* rows, std::int64_t tiles, const float* keys, std::int64_t dims, const float* penalties,
                       std::int32_t first, float* best, std::int32_t* slots) noexcept;
  static constexpr int compared_rows = 8;
};

/// Rows of a matrix, `stride` floats from one to the next; `data` is the first element of row 0 that concerns a task.
struct InputRows {
  const float* data;  ///< null: there is none
  std::int64_t stride;
};
struct OutputRows {
  float* data;
  std::int64_t stride;
};

/// Some columns of a ConvOp over the rows of one segment; pointers are those of the first column.
struct ConvTask {
  InputRows x;  ///< row 0
  OutputRows out;
  std::int64_t rows;
  std::int64_t cols;  ///< at most recurrent_columns
  std::int32_t taps;
  const float* weight;
  const float* bias;  ///< or null
  int activation;     ///< skald::Activation
  const float* from;  ///< taps - 1 rows, or null: zeros
  float* to;
  std::int64_t state_stride;
};

/// Some heads of a ScanOp that read the same b and c, over the rows of one segment; pointers are those of the first head.
struct ScanTask {
  InputRows x;
  InputRows steps;
  InputRows b;
  InputRows c;
  InputRows gate;
  OutputRows out;
  std::int64_t rows;
  std::int64_t heads;     ///< at most recurrent_columns
  std::int64_t channels;  ///< of a head
  std::int64_t size;
  const float* decay;
  bool one_decay;
  const float* skip;
  const float* step_bias;  ///< or null
  const float* from;       ///< heads * channels * size elements, or null: zeros
  float* to;
};

/// Some columns of one part of a TokenShiftOp over the rows of one segment.
struct ShiftTask {
  InputRows x;
  const float* mix;
  InputRows more;  ///< or null
  OutputRows out;
  std::int64_t rows;
  std::int64_t cols;
  const float* from;  ///< or null: zeros
};

/// One head of a WkvOp over the rows of one segment; pointers are those of the head's first element.
struct WkvTask {
  int version;
  InputRows r;
  InputRows k;
  InputRows v;
  InputRows decay;
  InputRows rate;  ///< version 7
  InputRows gate;  ///< or null
  OutputRows out;
  std::int64_t rows;
  std::int64_t size;  ///< at most most_head
  const float* bonus;
  const float* key_scale;
  const float* rate_scale;
  int norm;  ///< skald::NormKind
  const float* norm_weight;
  const float* norm_bias;
  float epsilon;
  const float* from;  ///< size x size, or null: zeros
  float* to;
};

/// Most columns, or heads, of one task above.
inline constexpr std::int64_t recurrent_columns = 64;

/// What reads and writes a recurrent state. All rows of a task are taken one after the other; a channel's result depends
/// neither on the other channels of its task nor on where its sequence is cut.
struct RecurrentKernels {
  static constexpr std::int64_t most_head = 256;
  static constexpr std::int32_t most_taps = 32;
  void (*conv)(const ConvTask& task) noexcept;
  void (*scan)(const ScanTask& task) noexcept;
  void (*shift)(const ShiftTask& task) noexcept;
  void (*wkv)(const WkvTask& task) noexcept;
  /// y *= x
  void (*multiply)(const float* x, std::int64_t n, float* y) noexcept;
  /// y += (x - y) * weight
  void (*lerp)(const float* x, const float* weight, std::int64_t n, float* y) noexcept;
};

struct KernelTable {
  const char* name;
  const MatmulKernel* matmul;  ///< matmul_count entries
  int matmul_count;
  const AttentionKernel* attention;
  int attention_count;
  const RowKernels* rows;
  const RecurrentKernels* recurrent;
};

/// Each instruction set's pieces, defined in src/kernels/isa/: one function per file and instruction set.
#define SKALD_DECLARE_ISA(isa)                                    \
  namespace isa {                                                 \
  const MatmulKernel* matmul_kernels(int* count) noexcept;        \
  const AttentionKernel* attention_kernels(int* count) noexcept;  \
  const RowKernels* row_kernels() noexcept;                       \
  const RecurrentKernels* recurrent_kernels() noexcept;           \
  }
SKALD_DECLARE_ISA(baseline)
SKALD_DECLARE_ISA(avx2)
SKALD_DECLARE_ISA(avx512)
SKALD_DECLARE_ISA(avx512vnni)
#undef SKALD_DECLARE_ISA
/// Extends avx512vnni: its kernels replace those of the same type.
namespace avx512bf16 {
const MatmulKernel* matmul_kernels(int* count) noexcept;
}

}  // namespace skald::inline v0::kernels
