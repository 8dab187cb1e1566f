#pragma once

// Weighted sums of the values of a chunk. Included by src/kernels/isa/attention.cpp alone, inside the anonymous
// namespace of its instruction set, after the blocks of queries that it works on.

/// Clears the accumulators of `count` queries, dimensions [dim, dim + dims).
SKALD_INLINE void clear_sums(const Block& b, int query, int count, int dim, int dims) noexcept {
  for (float* sums = b.partial + query * b.state_stride + 16 + dim; count > 0; --count, sums += b.state_stride) {
    for (int d = 0; d < dims; d += 16) store(sums + d, zero_f32());
  }
}
SKALD_INLINE void clear_partial(const Block& b) noexcept {
  clear_sums(b, 0, b.queries, 0, static_cast<int>(b.state_stride) - 16);
}

/// A piece of the values of one chunk: slots [begin, end), dimensions [dim, dim + dims), dims a multiple of 16.
template <class Element>
struct ValueSlice {
  const typename Element::Stored* values;  ///< of slot `begin`
  std::ptrdiff_t stride;
  int base;
  int begin, end;
  int dim, dims;
  const std::byte* next;  ///< memory that is needed later, or null
  std::ptrdiff_t step;    ///< how much of it to fetch with each token
  const float* scales = nullptr;  ///< of slot `begin`, if the values are coded
  const float* minimums = nullptr;  ///< as scales
  bool fresh = false;               ///< sums start here
};

/// Adds the weighted values of slots [begin, end) for queries [first, last), all of which see all of them.
template <class Element>
void add_values(const Block& b, const ValueSlice<Element>& slice, int first, int last, int begin, int end,
                int tile_number) noexcept {
  if (begin >= end) return;
  ValuePiece piece{};
  piece.tokens = end - begin;
  piece.out_stride = b.state_stride;
  piece.value_stride = slice.stride;
  piece.step = slice.step;
  piece.fresh = slice.fresh;
  const std::byte* next = slice.next == nullptr ? nullptr : slice.next + (begin - slice.begin) * slice.step;
  // Converted values: the first tiles fetch the lines of a token, one each.
  if constexpr (!Element::converts) {
    next = next == nullptr || tile_number >= staged_fetchers ? nullptr : next + std::ptrdiff_t{64} * tile_number;
  }
  if constexpr (Element::coded) {
    piece.scale_stride = blocks_of(b.dims_v);
    piece.scales = slice.scales + (begin - slice.begin) * piece.scale_stride;
    piece.minimums = slice.minimums + (begin - slice.begin) * piece.scale_stride;
  }
  const typename Element::Stored* values = slice.values + (begin - slice.begin) * slice.stride;
  for (int width; first < last; first += width) {
    width = next_tile(last - first);
    piece.p = b.scores + static_cast<std::ptrdiff_t>(first) * score_stride + (begin - slice.base);
    for (int dim = 0, count; dim < slice.dims; dim += 16 * count) {
      count = next_vectors((slice.dims - dim) / 16);
      piece.out = b.partial + first * b.state_stride + 16 + slice.dim + dim;
      piece.vector = dim / 16;
      piece.next = next;
      if constexpr (Element::converts && !Element::coded) {
        if (next != nullptr) piece.next = next + std::ptrdiff_t{sizeof(*values)} * dim;
      }
      with_shape(width, count, ValueCall<Element>{piece, Element::coded ? values : values + dim});
    }
  }
}

/// The same for slots of which queries [first, last) may not see all: row by row, run by run.
template <class Element>
void add_visible_values(const Block& b, const ValueSlice<Element>& slice, int first, int last, int begin, int end,
                        int tile_number) noexcept {
  if (begin >= end) return;
  for (int query = first; query < last;) {
    const int r = query / b.heads;
    const int row_end = least(last, (r + 1) * b.heads);
    const int to = least(end, b.high(r));
    for (int slot = most(begin, b.low(r)); slot < to;) {
      int run = slot;
      if (b.task->visible == nullptr && b.task->until == nullptr) run = to;
      while (run < to && b.sees(r, run)) ++run;
      add_values(b, slice, query, row_end, slot, run, tile_number);
      slot = run + 1;
    }
    query = row_end;
  }
}

template <class Element>
void value_slice(const Block& b, ValueSlice<Element> slice) noexcept {
  const bool fresh = slice.fresh;
  for (int first = 0, number = 0, width; first < b.queries; first += width, ++number) {
    width = next_tile(b.queries - first);
    // What all queries of the tile see; before the segment, if the segment has a matrix of its own.
    int low = b.low((first + width - 1) / b.heads);
    int high = b.high(first / b.heads);
    if (b.task->visible != nullptr) high = least(high, b.task->slot_base);
    if (b.task->until != nullptr) high = low;
    if (low >= high) low = high = slice.end;
    low = least(most(low, slice.begin), slice.end);
    high = least(most(high, low), slice.end);
    slice.fresh = fresh && low == slice.begin && high > low;
    if (fresh && !slice.fresh) clear_sums(b, first, width, slice.dim, slice.dims);
    add_visible_values(b, slice, first, first + width, slice.begin, low, number);
    add_values(b, slice, first, first + width, low, high, number);
    slice.fresh = false;
    add_visible_values(b, slice, first, first + width, high, slice.end, number);
  }
}

/// Puts dimensions [dim, dim + dims) of the values of slots [from, to), which are the leading ones of their keys, into
/// b.stage, token after token; zeros beyond the last dimension.
template <class Element>
void stage_values_of_keys(const Block& b, int from, int to, int dim, int dims) noexcept {
  for (int group = from / 16 * 16; group < to; group += 16) {
    const auto* keys = b.keys<typename Element::Stored>(group);
    const int begin = most(from, group);
    const int end = least(to, group + 16);
    for (int d = 0; d < dims; ++d) {
      float tokens[16];
      store(tokens, dim + d < b.dims_v ? read_dimension<Element>(keys, b.dims_k, dim + d) : zero_f32());
      float* column = b.stage + d;
      for (int slot = begin; slot < end; ++slot) column[std::ptrdiff_t{part_dims} * (slot - from)] = tokens[slot - group];
    }
  }
}

/// Fetches the scales of coded values in slots [begin, end) long before they are converted.
void prefetch_scales(const Block& b, int begin, int end) noexcept {
  if (b.task->layout.values_in_keys) return;
  const int page = b.task->layout.page_tokens;
  for (int slot = begin, stop; slot < end; slot = stop) {
    stop = least(end, (slot / page + 1) * page);
    const auto* first = reinterpret_cast<const std::byte*>(b.scales_of(slot));
    const std::ptrdiff_t bytes = std::ptrdiff_t{2} * (stop - slot) * blocks_of(b.dims_v);
    for (std::ptrdiff_t at = 0; at < bytes; at += 64) prefetch_far(first + at);
  }
}

/// Converts the scales of coded values in slots [from, to), or with `minimums` these.
void read_scales(const Block& b, int from, int to, bool minimums) noexcept {
  const int blocks = blocks_of(b.dims_v);
  const int page = b.task->layout.page_tokens;
  for (int slot = from, stop; slot < to; slot = stop) {
    stop = least(to, (slot / page + 1) * page);
    const std::uint16_t* scales = b.scales_of(slot) + (minimums ? std::ptrdiff_t{page} * blocks : 0);
    float* out = (minimums ? b.value_minimums : b.value_scales) + static_cast<std::ptrdiff_t>(slot - from) * blocks;
    const int count = (stop - slot) * blocks;
    for (int i = 0; i < count; i += 16) {
      const int n = least(16, count - i);
      if (n == 16) store(out + i, load_f16(scales + i));
      else store_n(out + i, load_f16_n(scales + i, n), n);
    }
  }
}

/// Puts dimensions [dim, dim + dims) of the values of slots [from, to) into `stage`, token after token.
template <class Element>
void stage_values(const Block& b, int from, int to, int dim, int dims, float* stage) noexcept {
  using Stored = typename Element::Stored;
  const int page = b.task->layout.page_tokens;
  const auto stride = static_cast<std::ptrdiff_t>(b.value_bytes / sizeof(Stored));
  const float* scales = b.value_scales;
  for (int slot = from, stop; slot < to; slot = stop) {
    stop = least(to, (slot / page + 1) * page);
    const Stored* values = b.values<Stored>(slot);
    for (int count = stop - slot; count > 0; --count, values += stride, stage += part_dims) {
      if constexpr (Element::coded) {
        for (int d = 0; d < dims; d += 16) {
          const f32x16 code = to_f32(Element::value(values, (dim + d) / 16));
          if constexpr (Element::minimums) {
            const float* minimums = b.value_minimums + (scales - b.value_scales);
            store(stage + d, fma(code, set1(scales[(dim + d) / 32]), set1(minimums[(dim + d) / 32])));
          } else {
            store(stage + d, code * set1(scales[(dim + d) / 32]));
          }
        }
        scales += blocks_of(b.dims_v);
      } else {
        int d = 0;
        for (; d + 16 <= b.dims_v - dim && d < dims; d += 16) store(stage + d, Element::read(values + dim + d));
        if (d < dims) store(stage + d, Element::read_n(values + dim + d, b.dims_v - dim - d));
      }
    }
  }
}

/// Weighted sums of values that each tile reads as they are stored.
template <class Element>
void direct_values(const Block& b, int base, int begin, int end, const std::byte* next) noexcept {
  using Stored = typename Element::Stored;
  const int padded = static_cast<int>(b.state_stride) - 16;
  const int page = b.task->layout.page_tokens;
  const auto row_bytes = static_cast<std::ptrdiff_t>(b.value_bytes);
  clear_partial(b);
  for (int part = base; part < end; part += part_slots) {
    const int from = most(part, begin);
    const int to = least(part + part_slots, end);
    if (from >= to) continue;
    const auto* later =
        part + part_slots < end ? reinterpret_cast<const std::byte*>(b.values<Stored>(part + part_slots)) : next;
    if constexpr (Element::coded) {
      read_scales(b, from, to, false);
      if (Element::minimums) read_scales(b, from, to, true);
    }
    for (int slot = from, stop; slot < to; slot = stop) {
      stop = least(to, (slot / page + 1) * page);
      const Stored* values = b.values<Stored>(slot);
      const auto stride = static_cast<std::ptrdiff_t>(b.value_bytes / sizeof(Stored));
      const float* scales = b.value_scales + static_cast<std::ptrdiff_t>(slot - from) * blocks_of(b.dims_v);
      value_slice(b, ValueSlice<Element>{values, stride, base, slot, stop, 0, padded, later, row_bytes, scales,
                                         b.value_minimums + (scales - b.value_scales)});
    }
  }
}

/// Weighted sums of values that are converted once for all queries, all slots of the chunk before the first sum: sums
/// stay in registers over the whole chunk.
template <class Element>
void staged_values(const Block& b, int base, int begin, int end, const std::byte* next) noexcept {
  const int padded = static_cast<int>(b.state_stride) - 16;
  const auto row_bytes = static_cast<std::ptrdiff_t>(b.value_bytes);
  for (int dim = 0; dim < padded; dim += part_dims) {
    const int dims = least(part_dims, padded - dim);
    const std::byte* later = next == nullptr ? nullptr : next + row_bytes * dim / b.dims_v;
    if (b.task->layout.values_in_keys) {
      stage_values_of_keys<Element>(b, begin, end, dim, dims);
      later = nullptr;
    } else {
      for (int from = begin, to; from < end; from = to) {
        to = least(from + part_slots, end);
        if constexpr (Element::coded) {
          read_scales(b, from, to, false);
          if (Element::minimums) read_scales(b, from, to, true);
        }
        stage_values<Element>(b, from, to, dim, dims, b.stage + std::ptrdiff_t{part_dims} * (from - begin));
      }
    }
    ValueSlice<Single> slice{b.stage, part_dims, base, begin, end, dim, dims, later, row_bytes};
    slice.fresh = true;
    value_slice(b, slice);
  }
}

/// Weighted sums of the values in the slots [begin, end) of the chunk that starts at slot `base`. `next` is memory
/// that is needed afterwards, or null.
template <class Element>
void value_chunk(const Block& b, int base, int begin, int end, const std::byte* next) noexcept {
  if (begin >= end) return clear_partial(b);
  const bool whole_vectors = Element::coded || b.dims_v % 16 == 0;
  if (whole_vectors && !b.task->layout.values_in_keys && !(Element::converts && b.many_for_values())) {
    direct_values<Element>(b, base, begin, end, next);
  } else {
    staged_values<Element>(b, base, begin, end, next);
  }
}
