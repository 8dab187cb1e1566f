#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include <skald/backend/backend.hpp>

namespace skald::inline v0 {

/// Number of a page in its pool.
using PageId = std::uint32_t;

/// Reference-counted pages of one size in one block of backend memory. Address space is reserved at construction;
/// physical memory is used page by page. Taking and releasing pages allocates nothing. Thread-safe.
class SKALD_API KvPool {
 public:
  /// @throws OutOfMemoryError, UsageError for a layout that is not one.
  KvPool(AnyBackend backend, const KvPageLayout& layout, std::uint32_t capacity_pages);
  /// The same over memory that is there already, which the host can see; `in_file`: a file behind it holds what memory does not.
  KvPool(AnyBackend backend, const KvPageLayout& layout, std::uint32_t capacity_pages, Buffer memory, bool in_file);
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  [[nodiscard]] const KvPageLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] BackendInterface& backend() const noexcept { return *backend_; }
  /// Address of page 0.
  [[nodiscard]] std::byte* base() const noexcept { return buffer_.address(); }
  [[nodiscard]] std::byte* address(PageId page) const noexcept { return base() + page * page_bytes_; }
  /// True if the host may read and write pages through their addresses.
  [[nodiscard]] bool host_visible() const noexcept { return buffer_.host_visible(); }
  [[nodiscard]] std::size_t page_bytes() const noexcept { return page_bytes_; }
  [[nodiscard]] bool in_file() const noexcept { return in_file_; }

  /// A page with one reference; its contents are unspecified. @throws OutOfMemoryError when all pages are taken.
  [[nodiscard]] PageId take();
  void retain(PageId page);
  /// Gives one reference back; the last one frees the page.
  void release(PageId page) noexcept;
  /// True if somebody else holds the page too: it must then not be written.
  [[nodiscard]] bool shared(PageId page) const;

  [[nodiscard]] std::uint32_t capacity_pages() const noexcept { return static_cast<std::uint32_t>(references_.size()); }
  [[nodiscard]] std::uint32_t used_pages() const;
  /// Most pages ever in use at the same time.
  [[nodiscard]] std::uint32_t peak_pages() const;
  [[nodiscard]] std::uint32_t free_pages() const { return capacity_pages() - used_pages(); }

 private:
  AnyBackend backend_;
  KvPageLayout layout_;
  std::size_t page_bytes_;
  Buffer buffer_;
  bool in_file_ = false;
  mutable std::mutex mutex_;
  std::vector<std::uint32_t> references_;
  std::vector<PageId> free_;      // stack of released pages, capacity reserved
  std::uint32_t untouched_ = 0;   // pages from here on were never taken
  std::uint32_t used_ = 0;
  std::uint32_t peak_ = 0;
};

}  // namespace skald::inline v0
