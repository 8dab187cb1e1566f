#include <skald/model/tensor_forms.hpp>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include <fmt/format.h>

#include <skald/core/error.hpp>

#include "model/limits.hpp"
#include "model/tensor_view.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.tensor_forms";

/// A tensor that is one of a stack: of which, and the how manieth.
struct PartName {
  std::string stack;
  std::int64_t number = 0;
};

/// "ffn_gate.5.weight" is expert 5 of "ffn_gate_exps.weight".
std::optional<PartName> expert_name(std::string_view rest) {
  for (const std::string_view part : {"ffn_gate.", "ffn_up.", "ffn_down."}) {
    if (!rest.starts_with(part)) continue;
    const std::string_view number = rest.substr(part.size());
    const char* last = number.data() + number.size();
    std::int64_t expert = 0;
    const auto [end, error] = std::from_chars(number.data(), last, expert);
    if (error != std::errc() || expert < 0) return {};
    const std::string_view ending(end, static_cast<std::size_t>(last - end));
    if (ending != ".weight" && ending != ".bias") return {};
    return PartName{fmt::format("{}_exps{}", part.substr(0, part.size() - 1), ending), expert};
  }
  return {};
}

/// "time_mix_lerp_k.weight" is row 1 of "time_mix_lerp_fused.weight" (RWKV-6).
std::optional<PartName> share_name(std::string_view rest) {
  constexpr std::string_view begin = "time_mix_lerp_";
  constexpr std::string_view ending = ".weight";
  constexpr std::string_view order = "wkvrg";
  if (rest.size() != begin.size() + 1 + ending.size() || !rest.starts_with(begin) || !rest.ends_with(ending)) return {};
  const auto at = order.find(rest[begin.size()]);
  if (at == std::string_view::npos) return {};
  return PartName{"time_mix_lerp_fused.weight", static_cast<std::int64_t>(at)};
}

std::optional<PartName> part_name(std::string_view name) {
  if (!name.starts_with("blk.")) return {};
  const auto end = name.find('.', 4);
  if (end == std::string_view::npos) return {};
  const std::string_view rest = name.substr(end + 1);
  auto part = expert_name(rest);
  if (!part) part = share_name(rest);
  if (part) part->stack.insert(0, name.substr(0, end + 1));
  return part;
}

/// The parts of a stack in order.
using Parts = std::map<std::int64_t, const TensorInfo*>;

TensorView stack_of(const ModelFile& file, const std::string& name, const Parts& parts) {
  const bool shares = name.ends_with("lerp_fused.weight");
  const auto count = static_cast<std::int64_t>(parts.size());
  const TensorInfo& first = *parts.begin()->second;
  if (count > limits::experts)
    file.fail(first, fmt::format("found {} parts of {}, allowed are up to {}", count, printable(name, 80), limits::experts));
  if (shares ? first.rows() != 1 : first.rank > 2)
    file.fail(first, fmt::format("found shape {}, allowed is a {}", first.shape(), shares ? "vector" : "matrix or a vector"));
  std::vector<TensorView> views;
  std::vector<RowRun> runs;
  for (const auto& [number, tensor] : parts) {
    if (number != static_cast<std::int64_t>(views.size()))
      throw FormatError(place, fmt::format("part {} of {} is missing, but the file has part {}", views.size(),
                                           printable(name, 80), number),
                        {.file = file.name(), .offset = tensor->offset, .tensor = tensor->name});
    if (tensor->type != first.type || tensor->dims != first.dims)
      file.fail(*tensor, fmt::format("found {} {}, allowed is {} {} as of the first of its stack", to_string(tensor->type),
                                     tensor->shape(), to_string(first.type), first.shape()));
    views.push_back(view_of(file, *tensor));
    if (shares) views.back().shape = {tensor->columns()};
    runs.push_back({views.size() - 1, 0, views.back().shape[0]});
  }
  if (shares && count != 5)
    throw FormatError(place, fmt::format("found {} of the 5 parts of {}", count, printable(name, 80)),
                      {.file = file.name(), .offset = first.offset, .tensor = first.name});
  std::vector<std::int64_t> shape = views.front().shape;
  if (shares) shape.insert(shape.begin(), {1, 1});
  shape.insert(shape.begin(), count);
  return gather_rows(name, std::move(views), runs, std::move(shape));
}

}  // namespace

bool has_rare_forms(const ModelFile& file) {
  return std::ranges::any_of(file.tensors(), [](const TensorInfo& tensor) {
    return is_stored_as_number(tensor.type) || part_name(tensor.name).has_value();
  });
}

ModelFile in_usual_forms(const ModelFile& file) {
  std::map<std::string, Parts> stacks;
  for (const TensorInfo& tensor : file.tensors())
    if (const auto part = part_name(tensor.name); part && !file.find(part->stack))
      if (!stacks[part->stack].emplace(part->number, &tensor).second)
        file.fail(tensor, fmt::format("another tensor is also part {} of {}", part->number, printable(part->stack, 80)));
  std::vector<AnyByteSource> sources(file.sources().begin(), file.sources().end());
  std::vector<TensorInfo> tensors;
  const auto add = [&](const TensorView& view) {
    tensors.push_back(add_view(is_stored_as_number(view.type) ? as_f32(view.name, view) : view, sources));
  };
  for (const TensorInfo& tensor : file.tensors()) {
    const auto part = part_name(tensor.name);
    if (const auto at = part ? stacks.find(part->stack) : stacks.end(); at != stacks.end()) {
      // The stack stands where the first of its tensors stood.
      if (!at->second.empty()) add(stack_of(file, at->first, at->second));
      at->second.clear();
    } else if (is_stored_as_number(tensor.type)) {
      add(view_of(file, tensor));
    } else {
      tensors.push_back(tensor);
    }
  }
  return {file.name(), file.metadata(), std::move(tensors), std::move(sources)};
}

}  // namespace skald::inline v0
