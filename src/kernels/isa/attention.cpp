// Softmax attention over pages of keys and values.
//
// Scores have one key per lane and fold over the head dimension; the weighted sum has one dimension per lane and folds
// over the tokens: neither sums across lanes, so a query's bits do not depend on what else is in its register tile.
// Only visible tokens enter the second fold, and scores of invisible ones are replaced before they are used: what lies
// in slots that a row does not see, NaN included, has no influence on it.

#include "simd/vec.hpp"

#include "kernels/kernel_table.hpp"

namespace skald::inline v0 {
namespace kernels {
namespace SKALD_ISA {
namespace {

inline constexpr int chunk_slots = 256;                ///< slots per partial result
inline constexpr int part_slots = 64;                  ///< keys that are converted and used together
inline constexpr int part_dims = 64;                   ///< dimensions that are converted together
inline constexpr int score_stride = chunk_slots + 16;  ///< not a power of two: rows must not share cache sets
inline constexpr int block_queries = 128;              ///< about as many (row, head) pairs share each key and value
inline constexpr float minus_infinity = -__builtin_inff();

/// Values of skald::AttentionMask; the backend asserts that they agree.
enum Mask { mask_causal, mask_full, mask_none };

SKALD_INLINE int least(int a, int b) noexcept { return a < b ? a : b; }
SKALD_INLINE int most(int a, int b) noexcept { return a > b ? a : b; }

#include "kernels/attention_formats.inl.hpp"
#include "kernels/attention_tiles.inl.hpp"

SKALD_INLINE std::size_t round_up16(std::size_t n) noexcept { return (n + 15) / 16 * 16; }

/// Partial results and running states: maximum, sum, padding to a register, then the accumulators.
SKALD_INLINE std::size_t state_floats(int head_dim_v) noexcept {
  return 16 + round_up16(static_cast<std::size_t>(head_dim_v));
}

/// Some rows of a task with all their heads; query r * heads + h is head h of row r of the block.
struct Block {
  const AttentionTask* task;
  int row;  ///< first row, counted in the segment
  int rows;
  int heads;
  int queries;  ///< rows * heads
  int dims_k;
  int dims_v;
  std::ptrdiff_t state_stride;
  const float* q;  ///< of its first row
  float* out;
  std::size_t page_bytes;
  std::size_t key_bytes;      ///< of one token's key
  std::size_t value_bytes;    ///< from token to token
  std::size_t head_offset;    ///< bytes from the page to the keys of the head
  std::size_t values_offset;  ///< bytes from the page to the values of the head
  std::size_t scales_offset;  ///< bytes from the page to the scales of coded values
  std::ptrdiff_t packed_stride;
  float* packed;              ///< queries in tile order, packed_stride words for each; see pack_queries
  float* scores;              ///< [queries][score_stride]
  float* stage;               ///< converted keys of a part, or values of a chunk
  float* state;               ///< [queries][state_stride] running results
  float* partial;             ///< [queries][state_stride] results of one chunk
  float* sums;                ///< [chunk_slots]
  bool stored;                ///< the score pass goes on with task->logits
  float* value_scales;        ///< [part_slots][blocks_of(dims_v)] scales of coded values
  float* value_minimums;      ///< as value_scales

  /// The slot where row r of the block is stored.
  SKALD_INLINE int own(int r) const noexcept { return task->slot_base + row + r; }
  /// Slots that row r of the block may see: [low(r), high(r)). Both ascend with r; none if low(r) >= high(r).
  SKALD_INLINE int high(int r) const noexcept {
    if (task->mask == mask_causal) return own(r) + 1;
    return task->slot_base + (task->mask == mask_full ? task->segment_rows : 0);
  }
  SKALD_INLINE int low(int r) const noexcept {
    return task->window > 0 ? most(task->first, own(r) + 1 - task->window) : task->first;
  }
  SKALD_INLINE bool sees(int r, int slot) const noexcept {
    if (task->until != nullptr && slot != own(r) && task->until[slot] <= task->position + row + r) return false;
    const int j = slot - task->slot_base;
    if (task->visible == nullptr || j < 0) return true;
    const std::int64_t words = (task->segment_rows + 63) / 64;
    return (task->visible[(row + r) * words + j / 64] >> (j % 64) & 1) != 0;
  }
  SKALD_INLINE const std::byte* page_of(int slot) const noexcept {
    return task->pool + task->pages[(slot - task->first) / task->layout.page_tokens] * page_bytes;
  }
  /// The 16 keys of the group that begins at `slot`.
  template <class Stored>
  SKALD_INLINE const Stored* keys(int slot) const noexcept {
    return reinterpret_cast<const Stored*>(page_of(slot) + head_offset +
                                           static_cast<std::size_t>(slot % task->layout.page_tokens) * key_bytes);
  }
  /// The value, or its codes.
  template <class Stored>
  SKALD_INLINE const Stored* values(int slot) const noexcept {
    return reinterpret_cast<const Stored*>(page_of(slot) + values_offset +
                                           static_cast<std::size_t>(slot % task->layout.page_tokens) * value_bytes);
  }
  SKALD_INLINE const std::uint16_t* scales_of(int slot) const noexcept {
    return reinterpret_cast<const std::uint16_t*>(page_of(slot) + scales_offset) +
           static_cast<std::ptrdiff_t>(slot % task->layout.page_tokens) * blocks_of(dims_v);
  }
  /// Many queries read the keys, or values: they are converted once for all. With few it is better to convert them in
  /// the registers of each tile, so that the arithmetic goes on while memory is read.
  SKALD_INLINE bool many_for_keys() const noexcept { return queries > direct_key_queries; }
  SKALD_INLINE bool many_for_values() const noexcept { return queries > direct_value_queries; }
  /// Where logits or weights of head h of row r are left, by slot; or null.
  SKALD_INLINE float* logits(int r, int h) const noexcept {
    if (task->logits == nullptr) return nullptr;
    return task->logits + (row - task->first_row + r) * task->logits_row_stride + h * task->logits_head_stride;
  }
  /// One over the temperature of row r of the block.
  SKALD_INLINE float temperature(int r) const noexcept {
    return task->inverse_temperatures == nullptr ? 1.0F : task->inverse_temperatures[row - task->first_row + r];
  }
};

SKALD_INLINE int rows_per_block(int heads) noexcept { return most(1, block_queries / heads); }

/// Words of one packed query: its numbers; or pairs of them, the sums of its blocks and a scale.
SKALD_INLINE std::size_t packed_words(int dims_k) noexcept {
  return static_cast<std::size_t>(most(dims_k, 17 * blocks_of(dims_k) + 1));
}

struct ScratchSizes {
  std::size_t packed, scores, stage, states, sums, scales;  ///< in floats
};
SKALD_INLINE ScratchSizes scratch_sizes(int dims_k, int dims_v, int heads, int rows) noexcept {
  const auto queries = static_cast<std::size_t>(least(rows, rows_per_block(heads)) * heads);
  return {round_up16(queries * packed_words(dims_k)),
          queries * score_stride,
          std::size_t{chunk_slots} * part_dims,
          queries * state_floats(dims_v),
          chunk_slots,
          static_cast<std::size_t>(part_slots * blocks_of(dims_v)) * 2};
}

std::size_t scratch_bytes(std::int32_t dims_k, std::int32_t dims_v, std::int32_t heads, std::int32_t rows) noexcept {
  const ScratchSizes n = scratch_sizes(dims_k, dims_v, heads, rows);
  return (n.packed + n.scores + n.stage + 2 * n.states + n.sums + n.scales) * sizeof(float) + 64;
}

std::size_t partial_bytes(const AttentionTask& task) noexcept {
  return static_cast<std::size_t>(task.rows) * static_cast<std::size_t>(task.heads) *
         state_floats(task.layout.head_dim_v) * sizeof(float);
}

/// A query as numbers of 16 bits with one scale, for query i of a tile of `width`: [16 blocks][width] pairs of
/// dimensions, [blocks][width] what an offset of the keys' codes adds to a block's sum, [width] scales.
void pack_codes(const float* q, int dims, float scale, int offset, std::int32_t* tile, int width, int i) noexcept {
  f32x16 top = zero_f32();
  f32x16 all = zero_f32();
  for (int d = 0; d < dims; d += 16) {
    const f32x16 x = abs(load_n(q + d, least(16, dims - d)));
    top = max(top, x);
    all += x;
  }
  const float largest = reduce_max(top);
  const float not_finite = reduce_add(all) * 0.0F;  // 0 or NaN
  const f32x16 inverse = set1(largest > 0.0F ? 32767.0F / largest : 0.0F);
  const int blocks = blocks_of(dims);
  for (int block = 0; block < blocks; ++block) {
    std::int32_t codes[32];
    for (int d = 0; d < 32; d += 16) {
      const int n = least(16, most(0, dims - 32 * block - d));
      const f32x16 x = n == 0 ? zero_f32() : load_n(q + 32 * block + d, n);
      store(codes + d, min(max(round_to_i32(x * inverse), set1(-32767)), set1(32767)));
    }
    std::int32_t sum = 0;
    std::int32_t* pairs = tile + std::ptrdiff_t{16} * width * block + i;
    for (int d = 0; d < 32; d += 2, pairs += width) {
      sum += codes[d] + codes[d + 1];
      *pairs = static_cast<std::int32_t>((static_cast<std::uint32_t>(codes[d]) & 0xFFFFU) |
                                         static_cast<std::uint32_t>(codes[d + 1]) << 16);
    }
    tile[std::ptrdiff_t{16} * width * blocks + std::ptrdiff_t{width} * block + i] = -offset * sum;
  }
  const float value = largest / 32767.0F * scale + not_finite;
  __builtin_memcpy(tile + std::ptrdiff_t{17} * width * blocks + i, &value, sizeof value);
}

/// Puts the queries of a block, times the scale of the scores, in the order of its tiles: [dims_k][width] numbers, or
/// codes.
void pack_queries(const Block& b) noexcept {
  const AttentionTask& task = *b.task;
  const float scale = task.scale * log2_of_e;
  for (int first = 0, width; first < b.queries; first += width) {
    width = next_tile(b.queries - first);
    float* tile = b.packed + first * b.packed_stride;
    for (int i = 0; i < width; ++i) {
      const int query = first + i;
      const float* q =
          b.q + (query / b.heads) * task.q_stride + static_cast<std::ptrdiff_t>(query % b.heads) * b.dims_k;
      if (is_coded(task.layout.dtype)) {
        // Codes over a minimum: the minimum is multiplied by the sum itself.
        const int offset = task.layout.dtype == DType::q4_0 ? Four::offset
                           : task.layout.dtype == DType::q4_1 ? -1
                                                              : Eight::offset;
        pack_codes(q, b.dims_k, scale, offset, reinterpret_cast<std::int32_t*>(tile), width, i);
      } else {
        for (int d = 0; d < b.dims_k; ++d) tile[static_cast<std::ptrdiff_t>(d) * width + i] = q[d] * scale;
      }
    }
  }
}

/// Describes rows [begin, …) of the task and packs their queries.
Block make_block(const AttentionTask& task, int begin, std::byte* scratch) noexcept {
  const KvPageLayout& layout = task.layout;
  const ScratchSizes n = scratch_sizes(layout.head_dim_k, layout.head_dim_v, task.heads, task.rows);
  Block b{};
  b.task = &task;
  b.row = task.first_row + begin;
  b.rows = least(task.rows - begin, rows_per_block(task.heads));
  b.heads = task.heads;
  b.queries = b.rows * b.heads;
  b.dims_k = layout.head_dim_k;
  b.dims_v = layout.head_dim_v;
  b.state_stride = static_cast<std::ptrdiff_t>(state_floats(b.dims_v));
  b.q = task.q + begin * task.q_stride;
  b.out = task.out + begin * task.out_stride;
  const auto tokens = static_cast<std::size_t>(layout.page_tokens);
  b.key_bytes = vector_bytes(layout.dtype, b.dims_k);
  const std::size_t head_bytes =
      tokens * (b.key_bytes + (layout.values_in_keys ? 0 : vector_bytes(layout.dtype, b.dims_v)));
  b.value_bytes = is_coded(layout.dtype) ? code_bytes(layout.dtype, b.dims_v) : vector_bytes(layout.dtype, b.dims_v);
  b.page_bytes = (static_cast<std::size_t>(layout.heads) * head_bytes + 63) / 64 * 64;
  b.head_offset = static_cast<std::size_t>(task.head) * head_bytes;
  b.values_offset = b.head_offset + (layout.values_in_keys ? 0 : tokens * b.key_bytes);
  b.scales_offset = b.values_offset + tokens * b.value_bytes;
  b.packed_stride = static_cast<std::ptrdiff_t>(packed_words(b.dims_k));
  const auto address = reinterpret_cast<std::uintptr_t>(scratch);
  b.packed = reinterpret_cast<float*>(scratch + ((64 - address % 64) % 64));
  b.scores = b.packed + n.packed;
  b.stage = b.scores + n.scores;
  b.state = b.stage + n.stage;
  b.partial = b.state + n.states;
  b.sums = b.partial + n.states;
  b.value_scales = b.sums + n.sums;
  b.value_minimums = b.value_scales + n.scales / 2;
  pack_queries(b);
  return b;
}

/// A piece of the keys of one chunk: groups [begin, end) of 16, dimensions [dim, dim + dims).
template <class Element>
struct KeyPiece {
  const typename Element::Stored* keys[part_slots / 16];  ///< of groups begin, begin + 1, …
  int begin, end;
  int dim, dims;
  const std::byte* next;
  bool staged = false;  ///< `next` is memory of another form; the first tiles fetch a line of it with each dimension
};

/// Scores of a tile of queries for the groups [begin, end) of coded keys.
template <class Element>
SKALD_INLINE void score_codes(const Block& b, const KeyPiece<Element>& keys, const float* tile, int first, int width,
                              int begin, int end) noexcept {
  CodePiece piece{};
  piece.blocks = blocks_of(b.dims_k);
  piece.q = reinterpret_cast<const std::int32_t*>(tile);
  piece.bases = piece.q + std::ptrdiff_t{16} * piece.blocks * width;
  piece.scales = tile + std::ptrdiff_t{17} * piece.blocks * width;
  for (int group = begin, count; group < end; group += count) {
    count = least(next_vectors(end - group), most_code_vectors);
    const auto skipped = static_cast<std::ptrdiff_t>(16 * b.key_bytes) * (group - keys.begin);
    piece.next = keys.next == nullptr ? nullptr : keys.next + skipped;
    piece.scores = b.scores + static_cast<std::ptrdiff_t>(first) * score_stride + 16 * group;
    with_shape(width, count, CodeCall<Element>{piece, keys.keys + (group - keys.begin)});
  }
}

/// Tiles that fetch the memory which is converted next: each a line for every dimension or token, 64 elements of 16 bits
/// are two lines.
inline constexpr int staged_fetchers = 2;

/// The same for keys that are not coded.
template <class Element>
SKALD_INLINE void score_numbers(const Block& b, const KeyPiece<Element>& keys, const float* tile, int first, int width,
                                int begin, int end, int tile_number) noexcept {
  ScorePiece piece{};
  piece.q = tile + static_cast<std::ptrdiff_t>(keys.dim) * width;
  piece.dims = keys.dims;
  piece.first = keys.dim == 0;
  for (int group = begin, count; group < end; group += count) {
    count = next_vectors(end - group);
    const std::ptrdiff_t skipped = std::ptrdiff_t{16} * (group - keys.begin) * b.dims_k;
    if (keys.staged) {
      // The conversion left the memory alone for as long as the tiles take: they fetch what it will read next.
      const bool fetches = keys.next != nullptr && tile_number < staged_fetchers && group == begin;
      piece.next = fetches ? keys.next + std::ptrdiff_t{64} * keys.dims * tile_number : nullptr;
      piece.step = 64;
    } else {
      piece.next = keys.next == nullptr ? nullptr : keys.next + skipped * std::ptrdiff_t{sizeof(*keys.keys[0])};
      piece.step = std::ptrdiff_t{16} * count * std::ptrdiff_t{sizeof(*keys.keys[0])};
    }
    piece.scores = b.scores + static_cast<std::ptrdiff_t>(first) * score_stride + 16 * group;
    with_shape(width, count, ScoreCall<Element>{piece, keys.keys + (group - keys.begin)});
  }
}

/// Scores of all queries of the block for a piece of the keys.
template <class Element>
void score_piece(const Block& b, int base, const KeyPiece<Element>& keys) noexcept {
  for (int first = 0, number = 0, width; first < b.queries; first += width, ++number) {
    width = next_tile(b.queries - first);
    const int tile_low = b.low(first / b.heads) - base;
    const int tile_high = b.high((first + width - 1) / b.heads) - base;
    const int begin = most(keys.begin, most(tile_low, 0) / 16);
    const int end = least(keys.end, (most(tile_high, 0) + 15) / 16);
    const float* tile = b.packed + first * b.packed_stride;
    if constexpr (Element::coded) score_codes(b, keys, tile, first, width, begin, end);
    else score_numbers(b, keys, tile, first, width, begin, end, number);
  }
}

/// The same for keys that are converted once for all queries.
template <class Element>
void stage_and_score(const Block& b, int base, const KeyPiece<Element>& direct) noexcept {
  using Stored = typename Element::Stored;
  KeyPiece<Single> staged{};
  staged.begin = direct.begin;
  staged.end = direct.end;
  staged.staged = true;
  for (int dim = 0; dim < b.dims_k; dim += part_dims) {
    staged.dim = dim;
    staged.dims = least(part_dims, b.dims_k - dim);
    // Two bytes for each dimension of the part's 64 keys.
    staged.next = direct.next == nullptr ? nullptr : direct.next + std::ptrdiff_t{2} * part_slots * dim;
    for (int group = 0; group < direct.end - direct.begin; ++group) {
      float* to_keys = b.stage + std::ptrdiff_t{16} * part_dims * group;
      staged.keys[group] = to_keys;
      const Stored* keys = direct.keys[group] + std::ptrdiff_t{16} * dim;
      for (int d = 0; d < staged.dims; ++d) store(to_keys + 16 * d, Element::read(keys + 16 * d));
    }
    score_piece(b, base, staged);
  }
}

/// q k for all queries, q times the scale, and the slots [begin, end) of the chunk that starts at slot `base`.
template <class Element>
void score_chunk(const Block& b, int base, int begin, int end) noexcept {
  using Stored = typename Element::Stored;
  for (int part = base; part < end; part += part_slots) {
    const int from = most(part, begin) / 16 * 16;
    const int to = least(part + part_slots, end);
    if (from >= to) continue;
    KeyPiece<Element> direct{};
    direct.begin = (from - base) / 16;
    direct.end = (to - base + 15) / 16;
    for (int slot = from; slot < to; slot += 16) direct.keys[(slot - from) / 16] = b.keys<Stored>(slot);
    direct.next = reinterpret_cast<const std::byte*>(part + part_slots < end ? b.keys<Stored>(part + part_slots)
                                                                             : b.values<Stored>(begin));
    if (Element::coded || !(Element::converts && b.many_for_keys())) {
      direct.dims = b.dims_k;
      score_piece(b, base, direct);
      continue;
    }
    if constexpr (!Element::coded) stage_and_score(b, base, direct);
  }
}

/// Adds what depends on the distance of head h of row r from the slots base + [first, last).
void add_distances(const Block& b, int r, int h, int base, int first, int last, float* scores) noexcept {
  const AttentionTask& task = *b.task;
  const int nearest = base - b.own(r);  // distance of scores[0]
  if (task.slopes != nullptr) {
    static constexpr std::int32_t counting[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 slope = set1(task.slopes[h] * log2_of_e);
    for (int i = first; task.positions != nullptr && i < last; i += 16) {
      const i32x16 at = load_n(task.positions + base + i, least(16, last - i));
      const f32x16 distance = to_f32(at - set1(task.position + b.row + r));
      store(scores + i, fma(slope, distance, load(scores + i)));
    }
    for (int i = first; task.positions == nullptr && i < last; i += 16) {
      const f32x16 distance = to_f32(load(counting) + set1(nearest + i));
      store(scores + i, fma(slope, distance, load(scores + i)));
    }
  }
  if (task.bias != nullptr) {
    const int reach = task.bias_reach;
    const float* bias = task.bias + static_cast<std::ptrdiff_t>(h) * (2 * reach + 1);
    for (int i = first; i < last; ++i) scores[i] += bias[least(most(nearest + i, -reach), reach) + reach] * log2_of_e;
  }
}

/// Adds one number, in units of 1, to the score of each slot in base + [first, last).
SKALD_INLINE void add_of_slots(const float* numbers, int base, int first, int last, float* scores) noexcept {
  for (int i = first; i < last; i += 16) {
    store(scores + i, fma(load_n(numbers + base + i, least(16, last - i)), set1(log2_of_e), load(scores + i)));
  }
}

/// -infinity where row r does not see a slot. Returns whether it sees any.
bool hide_unseen(const Block& b, int r, int base, int begin, int end, float* scores) noexcept {
  const int from = b.task->until != nullptr ? begin : most(begin, b.task->slot_base);
  bool any = begin < from;
  for (int slot = from; slot < end; ++slot) {
    if (b.sees(r, slot)) any = true;
    else scores[slot - base] = minus_infinity;
  }
  return any;
}

/// What the score pass changes in the logits base + [first, last) of row r; numbers of slots end with `end`.
SKALD_INLINE void perturb(const Block& b, int r, int base, int first, int last, int end, float* scores) noexcept {
  if (b.task->noise != nullptr) add_of_slots(b.task->noise, base, first, end - base, scores);
  if (b.task->inverse_temperatures == nullptr) return;
  const f32x16 inverse = set1(b.temperature(r));
  for (int i = first; i < last; i += 16) store(scores + i, load(scores + i) * inverse);
}

/// Makes logits of the scores of head h of row r, with -infinity where the row does not see the slot; [begin, end) is
/// the part of the row's range in the chunk. Returns whether it sees any.
bool mask_scores(const Block& b, int r, int h, int base, int begin, int end, float* scores) noexcept {
  const int first = (begin - base) / 16 * 16;
  const int last = (end - base + 15) / 16 * 16;
  float* kept = b.logits(r, h);
  if (b.stored) {
    for (int i = first; i < last; i += 16) store(scores + i, load(kept + base + i));
    perturb(b, r, base, first, last, end, scores);
    return true;
  }
  if (b.task->softcap > 0) {
    const f32x16 cap = set1(b.task->softcap * log2_of_e);
    const f32x16 inverse = set1(1.0F / (b.task->softcap * log2_of_e));
    for (int i = first; i < last; i += 16) store(scores + i, cap * tanh(load(scores + i) * inverse));
  }
  // What is given for each slot ends with the row's range.
  add_distances(b, r, h, base, first, b.task->positions != nullptr ? end - base : last, scores);
  if (b.task->slot_bias != nullptr) add_of_slots(b.task->slot_bias, base, first, end - base, scores);
  perturb(b, r, base, first, last, end, scores);
  for (int i = first; i < begin - base; ++i) scores[i] = minus_infinity;
  for (int i = end - base; i < last; ++i) scores[i] = minus_infinity;
  bool any = true;
  if (b.task->until != nullptr || (b.task->visible != nullptr && end > b.task->slot_base)) {
    any = hide_unseen(b, r, base, begin, end, scores);
  }
  if (kept != nullptr && b.task->shaped) {
    for (int i = first; i < last; i += 16) store(kept + base + i, load(scores + i));
  }
  return any;
}

/// Leaves maximum and sum of the chunk that starts at slot `base` for the score pass.
SKALD_INLINE void keep_state(const Block& b, float* kept, int base, const float* state) noexcept {
  float* out = kept + b.task->chunk_states + base / chunk_slots * 2;
  out[0] = state[0];
  out[1] = state[1];
}

/// Scores of one query in [first, last), multiples of 16, into weights.
SKALD_INLINE float weigh(float* scores, int first, int last, float maximum) noexcept {
  // All scores overflowed to -infinity: they weigh nothing, where infinity - infinity would be NaN.
  const f32x16 shift = set1(maximum == minus_infinity ? 0.0F : maximum);
  f32x16 sum = zero_f32();
  for (int i = first; i < last; i += 16) {
    const f32x16 weight = exp2(load(scores + i) - shift);
    store(scores + i, weight);
    sum += weight;
  }
  return reduce_add(sum);
}

/// True if all rows see all slots of the chunk and scores are logits as they are.
SKALD_INLINE bool plain_chunk(const Block& b, int base) noexcept {
  const AttentionTask& task = *b.task;
  return b.low(b.rows - 1) <= base && b.high(0) >= base + chunk_slots && !b.stored && task.logits == nullptr &&
         task.softcap <= 0 && task.slopes == nullptr && task.bias == nullptr && task.slot_bias == nullptr &&
         task.noise == nullptr && task.inverse_temperatures == nullptr && task.until == nullptr &&
         (task.visible == nullptr || base + chunk_slots <= task.slot_base);
}

/// soften_chunk for a plain chunk: maxima of several queries first, whose sums across lanes do not wait for each other.
void soften_plain_chunk(const Block& b) noexcept {
  constexpr int together = 4;
  for (int query = 0, count; query < b.queries; query += count) {
    count = least(together, b.queries - query);
    float* scores = b.scores + static_cast<std::ptrdiff_t>(query) * score_stride;
    float* result = b.partial + query * b.state_stride;
    for (int n = 0; n < count; ++n) {
      const float* row = scores + n * score_stride;
      f32x16 top = set1(minus_infinity);
      SKALD_UNROLL for (int i = 0; i < chunk_slots; i += 16) top = max(top, load(row + i));
      result[n * b.state_stride] = reduce_max(top);
    }
    for (int n = 0; n < count; ++n) {
      result[n * b.state_stride + 1] = weigh(scores + n * score_stride, 0, chunk_slots, result[n * b.state_stride]);
    }
  }
}

/// Turns scores into weights exp2(s - m) and leaves m and their sum in the partial results; 0 as the sum says that the
/// row sees nothing in this chunk.
void soften_chunk(const Block& b, int base) noexcept {
  if (plain_chunk(b, base)) return soften_plain_chunk(b);
  for (int r = 0; r < b.rows; ++r) {
    const int begin = most(base, b.low(r));
    const int end = least(base + chunk_slots, b.high(r));
    for (int h = 0; h < b.heads; ++h) {
      const std::ptrdiff_t query = static_cast<std::ptrdiff_t>(r) * b.heads + h;
      float* result = b.partial + query * b.state_stride;
      float* scores = b.scores + query * score_stride;
      // Where the score pass finds the weights: in place of logits that it has changed, or those of attention itself.
      float* kept = b.stored || !b.task->shaped ? b.logits(r, h) : nullptr;
      result[0] = minus_infinity;
      result[1] = 0.0F;
      if (kept != nullptr) keep_state(b, kept, base, result);
      if (begin >= end || !mask_scores(b, r, h, base, begin, end, scores)) continue;
      const int first = (begin - base) / 16 * 16;
      const int last = (end - base + 15) / 16 * 16;
      f32x16 top = set1(minus_infinity);
      for (int i = first; i < last; i += 16) top = max(top, load(scores + i));
      result[0] = reduce_max(top);
      result[1] = weigh(scores, first, last, result[0]);
      if (kept == nullptr) continue;
      for (int i = first; i < last; i += 16) store(kept + base + i, load(scores + i));
      keep_state(b, kept, base, result);
    }
  }
}

#include "kernels/attention_values.inl.hpp"

/// Maximum and sum of what was merged so far.
struct Running {
  float maximum = minus_infinity;
  float sum = 0.0F;
};
enum class Merge { skip, take, scale_old, scale_new };

/// Takes in a chunk's maximum and sum; `factor` is what the old or the new accumulators are multiplied by.
SKALD_INLINE Merge merge_sums(Running& running, float maximum, float sum, float& factor) noexcept {
  if (sum == 0.0F) return Merge::skip;
  if (running.sum == 0.0F) {
    running = {maximum, sum};
    return Merge::take;
  }
  const float difference = running.maximum - maximum;
  float lane[16];
  store(lane, exp2(set1(difference < 0 ? difference : -difference)));
  factor = lane[0];
  if (difference < 0) {
    running = {maximum, running.sum * factor + sum};
    return Merge::scale_old;
  }
  running.sum = sum * factor + running.sum;
  return Merge::scale_new;
}
SKALD_INLINE f32x16 merge_values(Merge merge, f32x16 old_values, f32x16 new_values, f32x16 factor) noexcept {
  if (merge == Merge::take) return new_values;
  return merge == Merge::scale_old ? fma(old_values, factor, new_values) : fma(new_values, factor, old_values);
}

/// One over the sum of a row's weights; 0 for a row that sees nothing.
SKALD_INLINE f32x16 inverse_sum(float sum) noexcept { return set1(sum == 0.0F ? 0.0F : 1.0F / sum); }

SKALD_INLINE void write_out(float* out, f32x16 values, int dims) noexcept {
  if (dims >= 16) store(out, values);
  else store_n(out, values, dims);
}

/// One chunk of a block into b.partial.
template <class Element>
void block_chunk(const Block& b, int base, const std::byte* next) noexcept {
  const int begin = most(base, b.low(0));
  const int end = least(base + chunk_slots, b.high(b.rows - 1));
  if (Element::coded && begin < end) prefetch_scales(b, begin, end);
  if (begin < end) score_chunk<Element>(b, base, begin, end);
  soften_chunk(b, base);
  value_chunk<Element>(b, base, begin, end, next);
}

template <class Element>
void chunk(const AttentionTask& task, std::int32_t index, std::byte* partial, std::byte* scratch) noexcept {
  for (int begin = 0; begin < task.rows; begin += rows_per_block(task.heads)) {
    Block b = make_block(task, begin, scratch);
    b.partial = reinterpret_cast<float*>(partial) + begin * task.heads * b.state_stride;
    // Units that follow each other are chunks that do.
    const int after = (index + 1) * chunk_slots;
    const bool more = after >= task.first && after < b.high(b.rows - 1);
    block_chunk<Element>(b, index * chunk_slots,
                         more ? reinterpret_cast<const std::byte*>(b.keys<typename Element::Stored>(after)) : nullptr);
  }
}

void merge(const AttentionTask& task, const std::byte* partials, std::size_t stride, std::int32_t count) noexcept {
  const int dims = task.layout.head_dim_v;
  const auto state_stride = static_cast<std::ptrdiff_t>(state_floats(dims));
  for (int query = 0; query < task.rows * task.heads; ++query) {
    float* out =
        task.out + query / task.heads * task.out_stride + static_cast<std::ptrdiff_t>(query % task.heads) * dims;
    for (int dim = 0; dim < dims; dim += 64) {
      const int vectors = least(4, (dims - dim + 15) / 16);
      Running running;
      f32x16 values[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
      for (std::int32_t c = 0; c < count; ++c) {
        const auto* part =
            reinterpret_cast<const float*>(partials + static_cast<std::size_t>(c) * stride) + query * state_stride;
        float factor = 1.0F;
        const Merge how = merge_sums(running, part[0], part[1], factor);
        if (how == Merge::skip) continue;
        for (int v = 0; v < vectors; ++v) {
          values[v] = merge_values(how, values[v], load(part + 16 + dim + 16 * v), set1(factor));
        }
      }
      if (task.sinks != nullptr) {
        float factor = 1.0F;
        const Merge how = merge_sums(running, task.sinks[query % task.heads] * log2_of_e, 1.0F, factor);
        for (int v = 0; v < vectors; ++v) values[v] = merge_values(how, values[v], zero_f32(), set1(factor));
      }
      const f32x16 inverse = inverse_sum(running.sum);
      for (int v = 0; v < vectors; ++v) write_out(out + dim + 16 * v, values[v] * inverse, dims - dim - 16 * v);
    }
  }
}

/// Merges b.partial into b.state; `values`: the accumulators too.
SKALD_INLINE void merge_block(const Block& b, bool values) noexcept {
  for (int query = 0; query < b.queries; ++query) {
    float* state = b.state + query * b.state_stride;
    const float* part = b.partial + query * b.state_stride;
    Running running{state[0], state[1]};
    float factor = 1.0F;
    const Merge how = merge_sums(running, part[0], part[1], factor);
    if (how == Merge::skip) continue;
    state[0] = running.maximum;
    state[1] = running.sum;
    if (!values) continue;
    const f32x16 f = set1(factor);
    for (std::ptrdiff_t d = 16; d < b.state_stride; d += 16) {
      store(state + d, merge_values(how, load(state + d), load(part + d), f));
    }
  }
}
/// Merges the heads' sinks into b.state: weights without values.
SKALD_INLINE void merge_sinks(const Block& b, bool values) noexcept {
  if (b.task->sinks == nullptr) return;
  for (int query = 0; query < b.queries; ++query) {
    float* state = b.state + query * b.state_stride;
    Running running{state[0], state[1]};
    float factor = 1.0F;
    const float sink = b.task->sinks[query % b.heads] * log2_of_e * b.temperature(query / b.heads);
    const Merge how = merge_sums(running, sink, 1.0F, factor);
    state[0] = running.maximum;
    state[1] = running.sum;
    const f32x16 f = set1(factor);
    for (std::ptrdiff_t d = 16; values && d < b.state_stride; d += 16) {
      store(state + d, merge_values(how, load(state + d), zero_f32(), f));
    }
  }
}
SKALD_INLINE void clear_state(const Block& b) noexcept {
  for (int query = 0; query < b.queries; ++query) {
    float* state = b.state + query * b.state_stride;
    state[0] = minus_infinity;
    for (std::ptrdiff_t d = 1; d < b.state_stride; ++d) state[d] = 0.0F;
  }
}

SKALD_INLINE void copy_floats(float* to, const float* from, std::ptrdiff_t count) noexcept {
  for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = from[i];
}

template <class Element>
void whole(const AttentionTask& task, std::byte* scratch) noexcept {
  const int dims = task.layout.head_dim_v;
  for (int begin = 0; begin < task.rows; begin += rows_per_block(task.heads)) {
    const Block b = make_block(task, begin, scratch);
    const std::ptrdiff_t carried = std::ptrdiff_t{begin} * task.heads * b.state_stride;
    if (task.carry_in != nullptr) copy_floats(b.state, task.carry_in + carried, b.queries * b.state_stride);
    else clear_state(b);
    const int end = b.high(b.rows - 1);
    for (int base = b.low(0) / chunk_slots * chunk_slots; base < end; base += chunk_slots) {
      const bool more = base + chunk_slots < end;
      const auto* next = more ? b.keys<typename Element::Stored>(base + chunk_slots) : nullptr;
      block_chunk<Element>(b, base, reinterpret_cast<const std::byte*>(next));
      merge_block(b, true);
    }
    if (task.carry_out != nullptr) {
      copy_floats(task.carry_out + carried, b.state, b.queries * b.state_stride);
      continue;
    }
    merge_sinks(b, true);
    for (int query = 0; query < b.queries; ++query) {
      const float* state = b.state + query * b.state_stride;
      float* out = b.out + query / b.heads * task.out_stride + static_cast<std::ptrdiff_t>(query % b.heads) * dims;
      const f32x16 inverse = inverse_sum(state[1]);
      for (int d = 0; d < dims; d += 16) write_out(out + d, load(state + 16 + d) * inverse, dims - d);
    }
  }
}

/// The maxima and sums of a chunk that soften_chunk has kept, into b.partial.
void load_states(const Block& b, int base) noexcept {
  for (int r = 0; r < b.rows; ++r) {
    for (int h = 0; h < b.heads; ++h) {
      const float* kept = b.logits(r, h) + b.task->chunk_states + base / chunk_slots * 2;
      float* result = b.partial + (static_cast<std::ptrdiff_t>(r) * b.heads + h) * b.state_stride;
      result[0] = kept[0];
      result[1] = kept[1];
    }
  }
}

/// Weights of up to this many heads are added up together.
inline constexpr int weighed_heads = 8;

/// Adds the probabilities of one chunk to b.sums: its weights, given its maxima and sums in b.partial and every query's
/// maximum and sum in b.state.
void add_probabilities(const Block& b, int base, int kind) noexcept {
  for (int r = 0; r < b.rows; ++r) {
    const int begin = most(base, b.low(r));
    const int end = least(base + chunk_slots, b.high(r));
    const int first = (begin - base) / 16 * 16;
    for (int h = 0; begin < end && h < b.heads;) {
      const float* weights[weighed_heads];
      float factors[weighed_heads];
      int count = 0;
      for (; h < b.heads && count < weighed_heads; ++h) {
        const std::ptrdiff_t query = static_cast<std::ptrdiff_t>(r) * b.heads + h;
        const float* state = b.state + query * b.state_stride;
        const float* part = b.partial + query * b.state_stride;
        if (part[1] == 0.0F || state[1] == 0.0F) continue;  // sees nothing
        float lane[16];
        store(lane, exp2(set1(part[0] - state[0])));
        factors[count] = lane[0] * (1.0F / state[1]);
        weights[count++] = b.stored ? b.logits(r, h) + base : b.scores + query * score_stride;
      }
      for (int i = first; i < end - base; i += 16) {
        f32x16 sum = load(b.sums + i);
        for (int n = 0; n < count; ++n) {
          const f32x16 weight = load(weights[n] + i);
          sum = kind == 0 ? fma(weight, set1(factors[n]), sum) : max(sum, weight * set1(factors[n]));
        }
        store(b.sums + i, sum);
      }
    }
  }
}

template <class Element>
void add_scores(const AttentionTask& task, int kind, float* scores, std::byte* scratch) noexcept {
  for (int begin = 0; begin < task.rows; begin += rows_per_block(task.heads)) {
    Block b = make_block(task, begin, scratch);
    b.stored = task.logits != nullptr;
    clear_state(b);
    const int low = b.low(0);
    const int high = b.high(b.rows - 1);
    for (int i = 0; i < chunk_slots; ++i) b.sums[i] = 0.0F;
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) merge_sinks(b, false);
      for (int base = low / chunk_slots * chunk_slots; base < high; base += chunk_slots) {
        const int from = most(base, low);
        const int to = least(base + chunk_slots, high);
        if (!b.stored) score_chunk<Element>(b, base, from, to);
        if (b.stored && (pass == 1 || !task.shaped)) load_states(b, base);
        else soften_chunk(b, base);
        if (pass == 0) {
          merge_block(b, false);
          continue;
        }
        for (int slot = from; slot < to; ++slot) b.sums[slot - base] = scores[slot];
        add_probabilities(b, base, kind);
        for (int slot = from; slot < to; ++slot) scores[slot] = b.sums[slot - base];
      }
    }
  }
}

template <class Element>
constexpr AttentionKernel make_kernel() noexcept {
  if constexpr (Element::coded) {
    return {Element::type, partial_bytes,  scratch_bytes,       chunk<Element>,
            merge,         whole<Element>, add_scores<Element>, store_codes<Element>};
  } else {
    return {Element::type, partial_bytes,  scratch_bytes,       chunk<Element>,
            merge,         whole<Element>, add_scores<Element>, store_row<Element>};
  }
}
constexpr AttentionKernel table[] = {make_kernel<Single>(), make_kernel<Half>(), make_kernel<Brain>(),
                                     make_kernel<Eight>(), make_kernel<Four>(), make_kernel<FourOver>()};

}  // namespace

const AttentionKernel* attention_kernels(int* count) noexcept {
  *count = sizeof table / sizeof table[0];
  return table;
}

}  // namespace SKALD_ISA
}  // namespace kernels
}  // namespace skald::inline v0
