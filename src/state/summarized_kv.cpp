#include <skald/state/summarized_kv.hpp>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

void SummarizedKv::append(std::int64_t count) {
  const auto more = (length() + count) / chunk_ - front_->length();
  back_->append(count);
  if (more == 0) return;
  try {
    front_->append(more);
  } catch (...) {
    back_->remove_last(count);
    throw;
  }
}

void SummarizedKv::remove_last(std::int64_t count) {
  back_->remove_last(count);
  if (const auto less = front_->length() - length() / chunk_; less > 0) front_->remove_last(less);
}

void SummarizedKv::select_last(std::int64_t /*count*/, std::span<const std::int32_t> /*rows*/) {
  throw IncompatibleError("state.summarized_kv", "chunks are summarized token after token, not along a path of a tree");
}

std::unique_ptr<LayerState> SummarizedKv::fork() const {
  return std::make_unique<SummarizedKv>(fork_part(*front_), fork_part(*back_), chunk_);
}

void SummarizedKv::load(ArchiveReader& in) {
  try {
    front_->load(in);
    back_->load(in);
    if (front_->length() != back_->length() / chunk_) in.refuse("summaries", "there is not one for each chunk");
  } catch (...) {
    clear();
    throw;
  }
}

}  // namespace skald::inline v0
