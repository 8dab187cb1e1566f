#include <skald/state/sequence.hpp>

#include <algorithm>
#include <string>

namespace skald::inline v0 {

void SequenceState::append(std::int64_t count) {
  std::size_t done = 0;
  try {
    for (; done < layers_.size(); ++done) {
      if (!layers_[done]) continue;
      layers_[done]->set_prompt_length(prompt_);
      layers_[done]->append(count);
    }
  } catch (...) {
    for (std::size_t i = 0; i < done; ++i)
      if (layers_[i]) layers_[i]->remove_last(count);
    throw;
  }
  pending_ += count;
}

void SequenceState::commit() noexcept {
  length_ += std::exchange(pending_, 0);
  for (auto& layer : layers_)
    if (layer) layer->commit();
}

void SequenceState::commit_selected(std::span<const std::int32_t> rows) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (rows[i] < 0 || rows[i] >= pending_ || (i > 0 && rows[i] <= rows[i - 1]))
      throw UsageError("state.sequence", "row " + std::to_string(rows[i]) + " of the " + std::to_string(pending_) +
                                             " appended tokens: ascending indices inside are allowed");
  try {
    for (auto& layer : layers_)
      if (layer) layer->select_last(pending_, rows);
  } catch (...) {
    for (auto& layer : layers_)
      if (layer) layer->remove_last(layer->length() - length_);
    pending_ = 0;
    throw;
  }
  pending_ = 0;
  length_ += static_cast<std::int64_t>(rows.size());
  for (auto& layer : layers_)
    if (layer) layer->commit();
}

void SequenceState::rollback() {
  const auto count = std::exchange(pending_, 0);
  for (auto& layer : layers_)
    if (layer) layer->remove_last(count);
}

void SequenceState::truncate(std::int64_t length) {
  if (length < 0 || length > length_ || pending_ != 0)
    throw UsageError("state.sequence", "cannot truncate " + std::to_string(length_) + " tokens to " +
                                           std::to_string(length));
  if (length == length_) return;
  if (const auto at = restorable(length); at != length)
    throw UsageError("state.sequence",
                     "cannot truncate " + std::to_string(length_) + " tokens to " + std::to_string(length) +
                         (at < 0 ? ": an eviction or a sliding window has dropped tokens that would be seen again"
                                 : ": what layers remember beside rows of tokens is known after " + std::to_string(at) +
                                       " tokens"));
  for (auto& layer : layers_)
    if (layer) layer->remove_last(length_ - length);
  length_ = length;
  prompt_ = std::min(prompt_, length);
}

std::int64_t SequenceState::restorable(std::int64_t length) const noexcept {
  if (length >= length_) return length_;
  for (bool again = true; again && length >= 0;) {  // until all layers agree
    again = false;
    for (const auto& layer : layers_) {
      if (!layer || length < 0) continue;
      const auto at = layer->restorable(length);
      again = again || at != length;
      length = at;
    }
  }
  return length;
}

SequenceState SequenceState::fork() const {
  if (pending_ != 0) throw UsageError("state.sequence", "cannot fork between append and commit");
  SequenceState copy;
  copy.layers_.reserve(layers_.size());
  for (const auto& layer : layers_) copy.layers_.push_back(layer ? layer->fork() : nullptr);
  copy.layer_count_ = layer_count_;
  copy.source_.reserve(source_.size());
  for (const auto& layer : source_) copy.source_.push_back(layer ? layer->fork() : nullptr);
  copy.length_ = length_;
  copy.prompt_ = prompt_;
  copy.approximate_ = approximate_;
  return copy;
}

void SequenceState::choose_evictions(const AnyEviction& policy, const Spread* spread) {
  views_.clear();
  for (std::size_t i = 0; i < layers_.size(); ++i)
    if (layers_[i]) layers_[i]->show_groups(static_cast<int>(i), length_ + pending_, views_);
  for (auto& view : views_) {
    view.layers = layer_count();
    view.prompt_tokens = prompt_;
  }
  if (policy.has_budgets()) {
    budgets_.assign(views_.size(), 0);
    policy.budgets(views_, budgets_);
    for (std::size_t i = 0; i < views_.size(); ++i) views_[i].budget = budgets_[i];
  }
  const auto choose = [&](std::size_t layer) {
    const auto of_layer = [&](const EvictionView& view) { return view.layer == static_cast<int>(layer); };
    const auto begin = std::find_if(views_.begin(), views_.end(), of_layer);
    const auto end = std::find_if_not(begin, views_.end(), of_layer);
    if (begin != end) layers_[layer]->choose_evictions(policy, {begin, end});
  };
  if (spread == nullptr || !policy.traits().concurrent) {
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) choose(layer);
    return;
  }
  failures_.assign(layers_.size(), nullptr);
  const auto guarded = [&](std::int64_t layer) {
    try {
      choose(static_cast<std::size_t>(layer));
    } catch (...) {
      failures_[static_cast<std::size_t>(layer)] = std::current_exception();
    }
  };
  (*spread)(static_cast<std::int64_t>(layers_.size()), guarded);
  for (const auto& failure : failures_)
    if (failure) std::rethrow_exception(failure);
}

void SequenceState::apply_evictions(const Spread* spread) noexcept {
  const auto apply = [&](std::int64_t layer) {
    if (layers_[static_cast<std::size_t>(layer)]) layers_[static_cast<std::size_t>(layer)]->apply_evictions();
  };
  const auto count = static_cast<std::int64_t>(layers_.size());
  if (spread != nullptr) return (*spread)(count, apply);
  for (std::int64_t layer = 0; layer < count; ++layer) apply(layer);
}

std::size_t SequenceState::bytes() const noexcept {
  std::size_t total = 0;
  for (const auto& layer : layers_)
    if (layer) total += layer->bytes();
  for (const auto& layer : source_)
    if (layer) total += layer->bytes();
  return total;
}

std::size_t SequenceState::bytes_beyond(const SequenceState& other) const {
  std::size_t total = 0;
  const auto add = [&](const auto& layers, const auto& others) {
    for (std::size_t i = 0; i < layers.size(); ++i)
      if (layers[i]) total += i < others.size() && others[i] ? layers[i]->bytes_beyond(*others[i]) : layers[i]->bytes();
  };
  add(layers_, other.layers_);
  add(source_, other.source_);
  return total;
}

std::size_t SequenceState::policy_bytes() const noexcept {
  std::size_t total = 0;
  for (const auto& layer : layers_)
    if (layer) total += layer->policy_bytes();
  return total;
}

std::size_t SequenceState::slow_bytes() const noexcept {
  std::size_t total = 0;
  for (const auto& layer : layers_)
    if (layer) total += layer->slow_bytes();
  return total;
}

std::int64_t SequenceState::source_length() const noexcept {
  for (const auto& layer : source_)
    if (layer) return layer->length();
  return 0;
}

void SequenceState::save(ArchiveWriter& out) const {
  out.value(length_);
  out.value(std::min(prompt_, length_));  // a prompt that was cancelled is not all there
  out.value(static_cast<std::uint8_t>(approximate_));
  out.value(static_cast<std::uint32_t>(layers_.size()));
  for (const auto& layer : layers_) {
    out.text(layer ? layer->kind() : std::string_view("none"));
    if (layer) layer->save(out);
  }
  for (const auto& layer : source_)
    if (layer) layer->save(out);
}

void SequenceState::load(ArchiveReader& in) {
  clear();
  try {
    const auto length = in.value<std::int64_t>("length");
    const auto prompt = in.value<std::int64_t>("prompt");
    const auto approximate = in.value<std::uint8_t>("approximate");
    if (approximate > 1) in.refuse("approximate", "neither 0 nor 1");
    const auto layers = in.value<std::uint32_t>("layers");
    if (prompt < 0 || prompt > length) in.refuse("prompt", "the prompt is longer than the sequence");
    if (length < 0) in.refuse("length", "negative");
    if (layers != layers_.size())
      in.refuse("layers", std::to_string(layers) + " layers, this model has " + std::to_string(layers_.size()));
    for (auto& layer : layers_) {
      const auto kind = in.text("kind");
      const auto expected = layer ? layer->kind() : std::string_view("none");
      if (kind != expected)
        in.refuse("kind", "layer state '" + printable(kind) + "', this decoder has '" + std::string(expected) + "'");
      if (!layer) continue;
      layer->load(in);
      if (layer->length() != length)
        in.refuse("length", "the layers hold different numbers of tokens");
    }
    for (auto& layer : source_) {
      if (!layer) continue;
      layer->load(in);
      if (layer->length() != source_length()) in.refuse("source", "the layers hold inputs of different lengths");
    }
    length_ = length;
    prompt_ = prompt;
    approximate_ = approximate != 0;
  } catch (...) {
    clear();
    throw;
  }
}

void SequenceState::clear() noexcept {
  for (auto& layer : layers_)
    if (layer) layer->clear();
  for (auto& layer : source_)
    if (layer) layer->clear();
  length_ = 0;
  pending_ = 0;
  prompt_ = 0;
  approximate_ = false;
}

bool SequenceState::row_wise() const noexcept {
  // A token's row depends on the encoded input too.
  return source_.empty() &&
         std::all_of(layers_.begin(), layers_.end(), [](const auto& layer) { return !layer || layer->row_wise(); });
}

void SequenceState::save_rows(ArchiveWriter& out, std::int64_t from) const {
  out.value(from);
  out.value(length_);
  out.value(static_cast<std::uint8_t>(approximate_));
  for (const auto& layer : layers_)
    if (layer) layer->save_rows(out, from);
}

void SequenceState::load_rows(ArchiveReader& in) {
  const auto from = in.value<std::int64_t>("from");
  const auto length = in.value<std::int64_t>("length");
  const auto approximate = in.value<std::uint8_t>("approximate");
  if (from != length_ || length < from) in.refuse("from", "the rows do not continue this sequence");
  if (approximate > 1) in.refuse("approximate", "neither 0 nor 1");
  append(length - from);
  try {
    for (const auto& layer : layers_)
      if (layer) layer->load_rows(in, length - from);
  } catch (...) {
    rollback();
    throw;
  }
  approximate_ = approximate_ || approximate != 0;
  commit();
}

void SequenceState::share_rows(const SequenceState& other, std::int64_t tokens) noexcept {
  for (std::size_t i = 0; i < layers_.size(); ++i)
    if (layers_[i] && other.layers_[i]) layers_[i]->share_rows(*other.layers_[i], tokens);
}

}  // namespace skald::inline v0
