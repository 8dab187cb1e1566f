#include <algorithm>
#include <cerrno>

#include <sys/stat.h>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/file.hpp>

#include "model/loader.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "model.packed_cache";
// A stop request is seen between pieces.
constexpr std::size_t piece_bytes = std::size_t{4} << 20;

template <class F>
void in_pieces(std::span<const std::byte> bytes, const std::stop_token& stop, const F& use) {
  for (std::size_t at = 0; at < bytes.size(); at += piece_bytes) {
    throw_if_stopped(stop, where);
    use(bytes.subspan(at, std::min(piece_bytes, bytes.size() - at)));
  }
}

std::uint64_t checksum_of(std::span<const std::byte> bytes, const std::stop_token& stop) {
  PackedChecksum sum;
  in_pieces(bytes, stop, [&](std::span<const std::byte> piece) { sum.add(piece); });
  return sum.value();
}

/// The entry of a matrix without offset and checksum.
PackedEntry wanted_entry(const BoundTensor& bound, const BackendInterface& backend) {
  const TensorBinding& binding = bound.binding;
  PackedEntry entry;
  entry.role = to_string(binding.role);
  entry.layer = binding.layer;
  entry.type = to_string(bound.type());
  entry.rows = bound.grouped ? binding.shape[0] : bound.rows;
  entry.cols = binding.shape[1];
  entry.matrices = binding.matrices;
  entry.bytes = backend.weight_bytes(bound.type(), entry.rows / entry.matrices, entry.cols, WeightLayout::packed) *
                static_cast<std::uint64_t>(entry.matrices);
  return entry;
}

}  // namespace

bool ModelLoader::map_packed() {
  ModelInfo& info = impl_->info;
  info.packed_cache = "unused";
  const auto not_mapped = [&](std::string reason) {
    log(LogLevel::info, fmt::format("packed weights '{}' are not used: {}", printable(options_.packed_cache), reason));
    info.packed_cache_reason = std::move(reason);
    return false;
  };
  const std::string layout = impl_->backend->packed_layout();
  if (layout.empty()) return not_mapped("the backend cannot store packed weights");
  if (options_.check_weights) return not_mapped("check_weights reads the weights of the model's own file");
  auto files = stamp_files(file_->sources());
  if (!files) return not_mapped("the model does not come from files");
  packed_identity_ = PackedIdentity{library_version(), layout, impl_->fingerprint, std::move(*files)};

  struct stat status {};
  if (::stat(options_.packed_cache.c_str(), &status) != 0 && errno == ENOENT) return not_mapped("there is none");
  std::vector<const BoundTensor*> matrices;
  for (const BoundTensor& each : bound_.used)
    if (each.binding.use == TensorUse::matrix) matrices.push_back(&each);
  AnyByteSource mapped;
  PackedHeader header;
  std::string reason;
  try {
    mapped = map_file(options_.packed_cache);
    header = read_packed_header(mapped);
    reason = identity_difference(header.identity, *packed_identity_);
    if (reason.empty() && header.entries.size() != matrices.size())
      reason = fmt::format("it holds {} weights, the model has {}", header.entries.size(), matrices.size());
    for (std::size_t i = 0; reason.empty() && i < matrices.size(); ++i) {
      const PackedEntry& entry = header.entries[i];
      reason = entry_difference(entry, wanted_entry(*matrices[i], *impl_->backend));
      if (reason.empty() && checksum_of(mapped.view(entry.offset, static_cast<std::size_t>(entry.bytes)),
                                        options_.stop) != entry.checksum)
        reason = fmt::format("the {} of layer {} is damaged: the checksum is another", entry.role, entry.layer);
    }
  } catch (const FormatError& error) {
    reason = error.message();
  } catch (const IoError& error) {
    reason = error.message();
  }
  if (!reason.empty()) return not_mapped(std::move(reason));

  const auto owner = std::make_shared<const AnyByteSource>(mapped);
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const PackedEntry& entry = header.entries[i];
    limit_bytes_ += matrices[i]->bytes();
    keep_weight(*matrices[i], impl_->backend->use_packed(
                                  {.type = matrices[i]->type(),
                                   .rows = entry.rows,
                                   .cols = entry.cols,
                                   .matrices = entry.matrices,
                                   .bytes = mapped.view(entry.offset, static_cast<std::size_t>(entry.bytes)),
                                   .owner = owner}));
    done_bytes_ = limit_bytes_;
    report(limit_bytes_);
  }
  info.packed_cache = "mapped";
  return true;
}

void ModelLoader::write_packed() {
  if (!packed_identity_) return;
  ModelInfo& info = impl_->info;
  PackedHeader header{*packed_identity_, {}};
  std::vector<std::span<const std::byte>> weights;
  for (const BoundTensor& each : bound_.used) {
    if (each.binding.use != TensorUse::matrix) continue;
    weights.push_back(impl_->backend->packed_bytes(*impl_->weights[weights.size()]));
    header.entries.push_back(wanted_entry(each, *impl_->backend));
    PackedEntry& entry = header.entries.back();
    if (weights.back().size() != entry.bytes) {
      info.packed_cache_reason += fmt::format("; not written: the {} of layer {} is not packed", entry.role, entry.layer);
      return;
    }
    entry.checksum = checksum_of(weights.back(), options_.stop);
  }
  const std::uint64_t file_bytes = place_entries(header);
  try {
    AtomicFile file(options_.packed_cache);
    file.write(encode_header(header, file_bytes));
    for (std::size_t i = 0; i < weights.size(); ++i) {
      in_pieces(weights[i], options_.stop, [&](std::span<const std::byte> piece) { file.write(piece); });
      const std::uint64_t end = i + 1 < weights.size() ? header.entries[i + 1].offset : file_bytes;
      const std::vector<std::byte> zeros(
          static_cast<std::size_t>(end - header.entries[i].offset - header.entries[i].bytes));
      file.write(zeros);
    }
    file.commit();
    info.packed_cache = "written";
  } catch (const IoError& error) {
    // The weights are loaded all the same.
    info.packed_cache_reason += fmt::format("; not written: {}", error.message());
    log(LogLevel::warning, fmt::format("packed weights are not written: {}", error.what()));
  }
}

}  // namespace skald::inline v0
