#include <skald/state/kv_pool.hpp>

#include <algorithm>
#include <string>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

void check_layout(const KvPageLayout& layout) {
  const auto refuse = [](const std::string& what) { throw UsageError("state.kv_pool", what); };
  if (!KvPageLayout::supports(layout.dtype))
    throw UnsupportedError("state.kv_pool", "KV format '" + std::string(to_string(layout.dtype)) +
                                                "' is not one of f32, f16, bf16, q8_0, q4_0, q4_1");
  if (layout.page_tokens < KvPageLayout::lane_tokens || layout.page_tokens % KvPageLayout::lane_tokens != 0 ||
      attention_chunk % layout.page_tokens != 0)
    refuse("page_tokens is " + std::to_string(layout.page_tokens) + ", allowed are 16, 32, 64, 128, 256");
  // Pages with values alone have keys of no elements.
  if (layout.heads < 1 || layout.head_dim_k < 0 || (layout.head_dim_k == 0 && layout.values_in_keys) || layout.head_dim_v < 1)
    refuse("a page needs at least one head and one dimension");
}

}  // namespace

KvPool::KvPool(AnyBackend backend, const KvPageLayout& layout, std::uint32_t capacity_pages)
    : backend_(std::move(backend)), layout_(layout) {
  check_layout(layout);
  page_bytes_ = layout.page_bytes();
  buffer_ = backend_->allocate(page_bytes_ * capacity_pages);
  references_.assign(capacity_pages, 0);
  free_.reserve(capacity_pages);
}

KvPool::KvPool(AnyBackend backend, const KvPageLayout& layout, std::uint32_t capacity_pages, Buffer memory, bool in_file)
    : backend_(std::move(backend)),
      layout_(layout),
      page_bytes_(layout.page_bytes()),
      buffer_(std::move(memory)),
      in_file_(in_file),
      references_(capacity_pages, 0) {
  check_layout(layout);
  if (buffer_.bytes() < page_bytes_ * capacity_pages || !buffer_.host_visible())
    throw UsageError("state.kv_pool", std::to_string(buffer_.bytes()) + " bytes of memory for " +
                                          std::to_string(capacity_pages) + " pages of " + std::to_string(page_bytes_));
  free_.reserve(capacity_pages);
}

PageId KvPool::take() {
  const std::lock_guard lock(mutex_);
  PageId page = 0;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else if (untouched_ < capacity_pages()) {
    page = untouched_++;
  } else {
    throw OutOfMemoryError("state.kv_pool", "all " + std::to_string(capacity_pages()) + " KV pages of " +
                                                std::to_string(layout_.page_tokens) +
                                                " tokens are in use; free a session or raise kv.capacity_tokens");
  }
  references_[page] = 1;
  peak_ = std::max(peak_, ++used_);
  return page;
}

void KvPool::retain(PageId page) {
  const std::lock_guard lock(mutex_);
  ++references_[page];
}

void KvPool::release(PageId page) noexcept {
  const std::lock_guard lock(mutex_);
  if (--references_[page] > 0) return;
  free_.push_back(page);  // within the reserved capacity
  --used_;
}

bool KvPool::shared(PageId page) const {
  const std::lock_guard lock(mutex_);
  return references_[page] > 1;
}

std::uint32_t KvPool::used_pages() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

std::uint32_t KvPool::peak_pages() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

}  // namespace skald::inline v0
