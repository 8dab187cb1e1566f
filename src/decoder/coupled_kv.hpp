#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/model/model_spec.hpp>
#include <skald/state/coupled.hpp>

namespace skald::inline v0::detail {

/// Turns keys by the angles of their positions, and back.
class KeyTurn {
 public:
  KeyTurn() = default;
  KeyTurn(const RopeSpec& rope, std::int64_t context);
  void turn(float* key, std::int64_t position) const noexcept { apply(key, position, 1.0F); }
  void turn_back(float* key, std::int64_t position) const noexcept { apply(key, position, -1.0F); }

  [[nodiscard]] std::size_t bytes() const noexcept { return table_.size() * sizeof(float); }

 private:
  void apply(float* key, std::int64_t position, float direction) const noexcept;
  RopeKind kind_ = RopeKind::none;
  std::size_t pairs_ = 0;
  std::vector<float> table_;  // [position][pair]: cos, sin
};

/// The KV format "coupled": pages hold codes. For each layer in turn a pass decodes them into plain pages, writes the
/// keys and values of its own rows there, replaces those by their codes and what the codes stand for, and attends over
/// the plain pages. So a row's codes depend on nothing but the row.
///
/// A page of codes is a page of 16-bit elements to all others: rows of codes are copied, saved and shared as such.
class CoupledKv {
 public:
  /// @throws IncompatibleError naming what does not fit.
  CoupledKv(std::shared_ptr<const CoupledCodebooks> codebooks, const ModelSpec& spec, AnyBackend backend,
            std::int64_t context, std::int32_t page_tokens, std::int32_t heads_per_group);
  CoupledKv(const CoupledKv&) = delete;
  CoupledKv& operator=(const CoupledKv&) = delete;

  [[nodiscard]] KvPageLayout codes(std::size_t layer) const noexcept { return layers_[layer].codes; }
  /// Announces a pass: the tables of all layers, its segments and the rows' positions, which all stay where they are.
  void begin(std::span<const KvTable> tables, std::span<const Segment> segments, const std::int32_t* positions);
  void add(std::size_t layer, std::byte* pool, std::int32_t groups, std::size_t first_table);
  void end();
  /// The plain pages of a layer.
  [[nodiscard]] KvLayer plain(std::size_t layer) const noexcept;
  [[nodiscard]] HostOp expand(std::size_t layer) noexcept;
  [[nodiscard]] HostOp pack(std::size_t layer) noexcept;
  [[nodiscard]] std::size_t memory_bytes() const noexcept {
    std::size_t bytes = scratch_.bytes();
    for (const auto& turn : turns_) bytes += turn.bytes();
    return bytes;
  }

 private:
  struct Layer {
    CoupledKv* all = nullptr;
    const CoupledCodebook* keys = nullptr;
    const CoupledCodebook* values = nullptr;
    const KeyTurn* turn = nullptr;
    KvPageLayout codes{};
    KvPageLayout plain{};
    std::byte* pool = nullptr;
    std::int32_t groups = 0;
    std::size_t first_table = 0;
    std::size_t first_page = 0;
    std::size_t pages = 0;
  };
  struct Page {
    std::size_t table = 0;
    std::int32_t segment = 0;
    std::int32_t group = 0;
    std::int32_t index = 0;  // in the table
    std::uint32_t plain = 0;
  };
  static void run_expand(void* context, std::int64_t unit) noexcept;
  static void run_pack(void* context, std::int64_t unit) noexcept;
  void expand_slot(const Layer& layer, const Page& page, std::int32_t in_page, std::int64_t position) const noexcept;
  void pack_slot(const Layer& layer, const Page& page, std::int32_t in_page, std::int64_t position) const noexcept;

  std::shared_ptr<const CoupledCodebooks> codebooks_;
  AnyBackend backend_;
  std::vector<KeyTurn> turns_;
  std::vector<Layer> layers_;
  std::span<const KvTable> tables_{};
  std::span<const Segment> segments_{};
  const std::int32_t* positions_ = nullptr;
  std::vector<KvTable> plain_tables_;
  std::vector<Page> pages_;
  std::vector<std::uint32_t> identity_;
  std::size_t needed_ = 0;
  Buffer scratch_;
};

}  // namespace skald::inline v0::detail
