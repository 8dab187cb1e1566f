#include <skald/state/recurrent.hpp>

#include <algorithm>
#include <string>
#include <utility>

namespace skald::inline v0 {

namespace {

constexpr std::size_t aligned(std::size_t bytes) noexcept { return (bytes + 63) / 64 * 64; }

}  // namespace

RecurrentState::RecurrentState(AnyBackend backend, const RecurrentOptions& options)
    : backend_(std::move(backend)), options_(options) {
  if (options_.checkpoint_interval <= 0) options_.checkpoints = 0;
  current_ = backend_->allocate(state_bytes());
  next_ = backend_->allocate(state_bytes());
  checkpoints_.resize(static_cast<std::size_t>(std::max(0, options_.checkpoints)));
  for (auto& checkpoint : checkpoints_) checkpoint.memory = std::make_shared<Buffer>(backend_->allocate(state_bytes()));
}

std::size_t RecurrentState::state_bytes() const noexcept {
  return static_cast<std::size_t>(options_.elements) * sizeof(float);
}

std::size_t RecurrentState::needed_bytes(const RecurrentOptions& options) noexcept {
  const auto copies = options.checkpoint_interval > 0 ? std::max(0, options.checkpoints) : 0;
  return aligned(static_cast<std::size_t>(options.elements) * sizeof(float)) * static_cast<std::size_t>(2 + copies);
}

std::size_t RecurrentState::bytes() const noexcept { return needed_bytes(options_); }

void RecurrentState::append(std::int64_t count) {
  const auto length = tokens_ + pending_ + count;
  // A checkpoint's memory that a fork still reads is replaced now, since nothing may fail when the tokens are
  // committed.
  if (!checkpoints_.empty() && length % options_.checkpoint_interval == 0 &&
      checkpoints_.front().memory.use_count() > 1)
    checkpoints_.front().memory = std::make_shared<Buffer>(backend_->allocate(state_bytes()));
  pending_ += count;
}

const RecurrentState::Checkpoint* RecurrentState::find(std::int64_t length) const noexcept {
  for (const auto& checkpoint : checkpoints_)
    if (checkpoint.length == length) return &checkpoint;
  return nullptr;
}

std::int64_t RecurrentState::restorable(std::int64_t length) const noexcept {
  if (length >= tokens_) return tokens_;
  std::int64_t best = std::min<std::int64_t>(length, 0);
  for (const auto& checkpoint : checkpoints_)
    if (checkpoint.length <= length) best = std::max(best, checkpoint.length);
  return best;
}

void RecurrentState::remove_last(std::int64_t count) {
  if (count <= pending_) {
    pending_ -= count;
    return;
  }
  const auto length = tokens_ + pending_ - count;
  if (length < 0 || restorable(length) != length)
    throw UsageError("state.recurrent", "a recurrent state of " + std::to_string(tokens_) +
                                            " tokens cannot go back to " + std::to_string(length) +
                                            ", only to a checkpoint");
  if (const auto* checkpoint = find(length); checkpoint != nullptr && length > 0)
    backend_->copy(current_.address(), checkpoint->memory->address(), state_bytes());
  for (auto& checkpoint : checkpoints_)
    if (checkpoint.length > length) checkpoint.length = -1;
  std::stable_sort(checkpoints_.begin(), checkpoints_.end(),
                   [](const auto& a, const auto& b) { return a.length < b.length; });
  tokens_ = length;
  pending_ = 0;
}

void RecurrentState::select_last(std::int64_t count, std::span<const std::int32_t> rows) {
  if (rows.empty()) return remove_last(count);
  if (static_cast<std::int64_t>(rows.size()) != count)
    throw UsageError("state.recurrent", "a recurrent state cannot keep " + std::to_string(rows.size()) +
                                            " of the last " + std::to_string(count) + " tokens");
}

void RecurrentState::commit() noexcept {
  if (pending_ == 0) return;
  std::swap(current_, next_);
  tokens_ += std::exchange(pending_, 0);
  if (!checkpoints_.empty() && tokens_ % options_.checkpoint_interval == 0) keep();
}

/// Copies the state into the oldest checkpoint, which becomes the last one.
void RecurrentState::keep() noexcept {
  auto& oldest = checkpoints_.front();
  if (oldest.memory.use_count() > 1) return;  // a fork reads it
  oldest.length = -1;
  try {
    backend_->copy(oldest.memory->address(), current_.address(), state_bytes());
    oldest.length = tokens_;
  } catch (...) {  // one place less to go back to
  }
  std::rotate(checkpoints_.begin(), checkpoints_.begin() + 1, checkpoints_.end());
}

StatePlace RecurrentState::place() const noexcept {
  return {tokens_ > 0 ? reinterpret_cast<const float*>(current_.address()) : nullptr,
          reinterpret_cast<float*>(next_.address())};
}

std::vector<std::int64_t> RecurrentState::checkpoint_lengths() const {
  std::vector<std::int64_t> lengths;
  for (const auto& checkpoint : checkpoints_)
    if (checkpoint.length >= 0) lengths.push_back(checkpoint.length);
  return lengths;
}

std::unique_ptr<LayerState> RecurrentState::fork() const {
  auto options = options_;
  options.checkpoints = 0;  // shared with this one below, not taken anew
  auto copy = std::make_unique<RecurrentState>(backend_, options);
  copy->options_ = options_;
  copy->checkpoints_ = checkpoints_;
  copy->tokens_ = tokens_;
  if (tokens_ > 0) backend_->copy(copy->current_.address(), current_.address(), state_bytes());
  return copy;
}

void RecurrentState::save(ArchiveWriter& out) const {
  out.value(options_.elements);
  out.value(tokens_);
  if (tokens_ > 0) backend_->read(out.reserve(state_bytes()), current_.address());
  const auto lengths = checkpoint_lengths();
  out.array(std::span<const std::int64_t>(lengths));
  for (const auto length : lengths) backend_->read(out.reserve(state_bytes()), find(length)->memory->address());
}

void RecurrentState::load(ArchiveReader& in) {
  clear();
  try {
    const auto elements = in.value<std::int64_t>("elements");
    if (elements != options_.elements)
      in.refuse("elements", "a recurrent state of " + std::to_string(elements) + " elements, this layer has " +
                                std::to_string(options_.elements));
    const auto tokens = in.value<std::int64_t>("tokens");
    if (tokens < 0 || tokens > options_.max_tokens) in.refuse("tokens", std::to_string(tokens) + " tokens");
    if (tokens > 0) backend_->write(current_.address(), in.raw(state_bytes(), "state"));
    const auto lengths = in.array<std::int64_t>("checkpoints");
    std::int64_t before = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      if (lengths[i] <= before || lengths[i] > tokens) in.refuse("checkpoints", "lengths that do not ascend");
      before = lengths[i];
      const auto values = in.raw(state_bytes(), "checkpoint");
      if (lengths.size() - i > checkpoints_.size()) continue;  // more than are kept here
      auto& slot = checkpoints_.front();
      if (slot.memory.use_count() > 1) slot.memory = std::make_shared<Buffer>(backend_->allocate(state_bytes()));
      backend_->write(slot.memory->address(), values);
      slot.length = lengths[i];
      std::rotate(checkpoints_.begin(), checkpoints_.begin() + 1, checkpoints_.end());
    }
    tokens_ = tokens;
  } catch (...) {
    clear();
    throw;
  }
}

void RecurrentState::clear() noexcept {
  for (auto& checkpoint : checkpoints_) checkpoint.length = -1;
  tokens_ = 0;
  pending_ = 0;
}

}  // namespace skald::inline v0
