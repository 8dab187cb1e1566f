#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include <skald/state/two_part_kv.hpp>

namespace skald::inline v0 {

/// Keys in fast memory, values in slow memory (KCache, He and Wu 2024, arXiv 2404.18057): both have a row for every token, in
/// pages of pools of their own. `front` has the keys, `back` the values.
class SKALD_API KeysFirstKv final : public SlowBackKv {
 public:
  KeysFirstKv(std::unique_ptr<PagedKv> keys, std::unique_ptr<PagedKv> values)
      : SlowBackKv(std::move(keys), std::move(values)) {}

  [[nodiscard]] std::string_view kind() const noexcept override { return "keys_first_kv"; }
  [[nodiscard]] PagedKv& written() const noexcept override { return *front_; }
  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return front_->length(); }
  void remove_last(std::int64_t count) override;
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override;
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void load(ArchiveReader& in) override;
};

/// Memory that lies in a file without a name in a directory, which is gone with the memory; the system keeps of it in memory
/// what there is room for. @throws IoError.
[[nodiscard]] SKALD_API Buffer make_file_memory(const std::string& directory, std::size_t bytes);

}  // namespace skald::inline v0
