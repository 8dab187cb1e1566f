#include <skald/model/gguf/reader.hpp>

#include <algorithm>
#include <new>

#include <skald/core/error.hpp>

#include "model/gguf/format.hpp"
#include "model/gguf/header.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.gguf";

struct Shard {
  AnyByteSource source;
  gguf::Header header;
};

/// The allocator's refusal as an error of ours.
template <class F>
auto guarded(const std::string& name, F&& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError(place, "the allocator refused memory for the header", {.file = name});
  }
}

Shard read_shard(AnyByteSource source, const GgufOptions& options) {
  auto header = gguf::read_header(source, options);
  return {std::move(source), std::move(header)};
}

/// Number of shards that a header announces; 1 if the file stands alone.
std::uint64_t shard_count(const Metadata& metadata) {
  return std::max<std::uint64_t>(1, metadata.find_u64(gguf::split_count_key, 0, 65535).value_or(1));
}

void check_shards(const std::vector<Shard>& shards) {
  const auto count = shard_count(shards.front().header.metadata);
  std::uint64_t tensors = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const auto& metadata = shards[i].header.metadata;
    if (shards.size() == 1 && count == 1) return;
    if (shard_count(metadata) != shards.size())
      metadata.fail(gguf::split_count_key, "the model has " + std::to_string(shard_count(metadata)) +
                                               " shards, given are " + std::to_string(shards.size()));
    const auto number = metadata.get_u64(gguf::split_no_key, 0, count - 1);
    if (number != i)
      metadata.fail(gguf::split_no_key, "found shard " + std::to_string(number) + ", expected is shard " +
                                            std::to_string(i) + " (counted from 0)");
    tensors += shards[i].header.tensors.size();
  }
  for (const auto& shard : shards) {
    const auto expected = shard.header.metadata.find_u64(gguf::split_tensors_key);
    if (expected && *expected != tensors)
      shard.header.metadata.fail(
          gguf::split_tensors_key,
          "found " + std::to_string(*expected) + ", but the shards hold " + std::to_string(tensors) + " tensors");
  }
  if (tensors > gguf::max_tensors)
    throw FormatError(place,
                      "the shards hold " + std::to_string(tensors) + " tensors, allowed is at most " +
                          std::to_string(gguf::max_tensors),
                      {.file = shards.front().source.name()});
}

ModelFile assemble(std::vector<Shard> shards) {
  check_shards(shards);
  std::vector<TensorInfo> tensors;
  std::vector<AnyByteSource> sources;
  for (auto& shard : shards) {
    for (auto& tensor : shard.header.tensors) {
      tensor.source = sources.size();
      tensors.push_back(std::move(tensor));
    }
    sources.push_back(shard.source);
  }
  auto name = shards.front().source.name();
  return {std::move(name), std::move(shards.front().header.metadata), std::move(tensors), std::move(sources)};
}

AnyByteSource open_source(const std::string& path, const GgufOptions& options) {
  return options.map ? map_file(path) : open_file(path);
}

std::string five_digits(std::uint64_t number) {
  const auto digits = std::to_string(number);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

std::string shard_suffix(std::uint64_t number, std::uint64_t count) {
  return "-" + five_digits(number + 1) + "-of-" + five_digits(count) + ".gguf";
}

std::vector<Shard> open_siblings(const std::string& path, Shard first, const GgufOptions& options) {
  const auto& metadata = first.header.metadata;
  const auto count = shard_count(metadata);
  const auto own = metadata.get_u64(gguf::split_no_key, 0, count - 1);
  const auto suffix = shard_suffix(own, count);
  if (!path.ends_with(suffix))
    throw FormatError(place,
                      "the file is shard " + std::to_string(own + 1) + " of " + std::to_string(count) +
                          "; to find the others, its name must end in '" + suffix + "'",
                      {.file = path, .key = std::string(gguf::split_count_key)});
  const auto prefix = path.substr(0, path.size() - suffix.size());
  std::vector<Shard> shards;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (i == own) shards.push_back(std::move(first));
    else shards.push_back(read_shard(open_source(prefix + shard_suffix(i, count), options), options));
  }
  return shards;
}

}  // namespace

ModelFile read_gguf(AnyByteSource source, const GgufOptions& options) {
  return guarded(source.name(), [&] {
    std::vector<Shard> shards;
    shards.push_back(read_shard(source, options));
    return assemble(std::move(shards));
  });
}

ModelFile read_gguf_shards(std::vector<AnyByteSource> sources, const GgufOptions& options) {
  if (sources.empty()) throw UsageError(place, "no source was given");
  return guarded(sources.front().name(), [&] {
    std::vector<Shard> shards;
    for (const auto& source : sources) shards.push_back(read_shard(source, options));
    std::stable_sort(shards.begin(), shards.end(), [](const Shard& a, const Shard& b) {
      return a.header.metadata.find_u64(gguf::split_no_key).value_or(0) <
             b.header.metadata.find_u64(gguf::split_no_key).value_or(0);
    });
    return assemble(std::move(shards));
  });
}

ModelFile open_gguf(const std::string& path, const GgufOptions& options) {
  return guarded(path, [&] {
    auto first = read_shard(open_source(path, options), options);
    if (shard_count(first.header.metadata) > 1) return assemble(open_siblings(path, std::move(first), options));
    std::vector<Shard> shards;
    shards.push_back(std::move(first));
    return assemble(std::move(shards));
  });
}

}  // namespace skald::inline v0
