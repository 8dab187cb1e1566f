#include <skald/state/sequence.hpp>

#include <string>

namespace skald::inline v0 {

void SequenceState::append(std::int64_t count) {
  std::size_t done = 0;
  try {
    for (; done < layers_.size(); ++done)
      if (layers_[done]) layers_[done]->append(count);
  } catch (...) {
    for (std::size_t i = 0; i < done; ++i)
      if (layers_[i]) layers_[i]->remove_last(count);
    throw;
  }
  pending_ += count;
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
  for (auto& layer : layers_)
    if (layer) layer->remove_last(length_ - length);
  length_ = length;
}

SequenceState SequenceState::fork() const {
  if (pending_ != 0) throw UsageError("state.sequence", "cannot fork between append and commit");
  SequenceState copy;
  copy.layers_.reserve(layers_.size());
  for (const auto& layer : layers_) copy.layers_.push_back(layer ? layer->fork() : nullptr);
  copy.length_ = length_;
  return copy;
}

void SequenceState::choose_evictions(const AnyEviction& policy) {
  for (std::size_t i = 0; i < layers_.size(); ++i)
    if (layers_[i]) layers_[i]->choose_evictions(policy, static_cast<int>(i), length_ + pending_);
}

void SequenceState::apply_evictions() noexcept {
  for (auto& layer : layers_)
    if (layer) layer->apply_evictions();
}

std::size_t SequenceState::bytes() const noexcept {
  std::size_t total = 0;
  for (const auto& layer : layers_)
    if (layer) total += layer->bytes();
  return total;
}

void SequenceState::save(ArchiveWriter& out) const {
  out.value(length_);
  out.value(static_cast<std::uint32_t>(layers_.size()));
  for (const auto& layer : layers_) {
    out.text(layer ? layer->kind() : std::string_view("none"));
    if (layer) layer->save(out);
  }
}

void SequenceState::load(ArchiveReader& in) {
  clear();
  try {
    const auto length = in.value<std::int64_t>("length");
    const auto layers = in.value<std::uint32_t>("layers");
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
    length_ = length;
  } catch (...) {
    clear();
    throw;
  }
}

void SequenceState::clear() noexcept {
  for (auto& layer : layers_)
    if (layer) layer->clear();
  length_ = 0;
  pending_ = 0;
}

}  // namespace skald::inline v0
