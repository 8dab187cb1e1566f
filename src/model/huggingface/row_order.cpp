#include "model/huggingface/row_order.hpp"

#include <numeric>

namespace skald::inline v0::huggingface {

namespace {

/// Rows i and i + n/2 of a head of n rows become rows 2i and 2i + 1.
void pair_halves(std::vector<std::int32_t>& order, std::int64_t rows, std::int64_t heads) {
  if (rows % (2 * heads) != 0) return;
  const std::int64_t half = rows / heads / 2;
  for (std::int64_t head = 0; head < heads; ++head)
    for (std::int64_t i = 0; i < half; ++i)
      for (const std::int64_t part : {0, 1}) order.push_back(static_cast<std::int32_t>((2 * head + part) * half + i));
}

/// For each group its query heads, one key and one value become all queries, all keys, all values.
void part_groups(std::vector<std::int32_t>& order, std::int64_t rows, std::int64_t groups, std::int64_t query_heads) {
  const std::int64_t parts = query_heads / groups + 2;
  if (rows % (groups * parts) != 0) return;
  const std::int64_t size = rows / groups / parts;
  const auto add = [&](std::int64_t begin, std::int64_t count) {
    for (std::int64_t group = 0; group < groups; ++group)
      for (std::int64_t i = 0; i < count * size; ++i)
        order.push_back(static_cast<std::int32_t>((group * parts + begin) * size + i));
  };
  add(0, parts - 2);
  add(parts - 2, 1);
  add(parts - 1, 1);
}

}  // namespace

std::vector<std::int32_t> row_order(Form form, std::int64_t rows, std::int64_t query_heads, std::int64_t key_heads) {
  std::vector<std::int32_t> order;
  if (rows > INT32_MAX) return order;
  order.reserve(static_cast<std::size_t>(rows));
  switch (form) {
    case Form::rotary_q: pair_halves(order, rows, query_heads); break;
    case Form::rotary_k: pair_halves(order, rows, key_heads); break;
    case Form::head_qkv: part_groups(order, rows, query_heads, query_heads); break;
    case Form::group_qkv: part_groups(order, rows, key_heads, query_heads); break;
    default:
      order.resize(static_cast<std::size_t>(rows));
      std::iota(order.begin(), order.end(), 0);
  }
  return order;
}

}  // namespace skald::inline v0::huggingface
