// Compressed contexts as files. First the magic, the version and the size of the description; then the description with
// its checksum; then, level after level, the chunks, of which the description tells place, size and checksum.
#include <skald/decoder/context_file.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <mutex>

#include <skald/core/file.hpp>
#include <skald/decoder/decoder.hpp>

#include "decoder/context_access.hpp"
#include "decoder/checksum.hpp"
#include "state/context_codec.hpp"

namespace skald::inline v0 {

namespace {

using detail::ContextCut;
using detail::ContextPart;

constexpr const char* where = "decoder.context_file";
constexpr std::string_view magic = "skald-context";
constexpr std::uint32_t format_version = 1;
constexpr std::size_t most_levels = 16;
constexpr std::uint64_t most_header = std::uint64_t{1} << 31;
// Magic with its length, version, size of the description.
constexpr std::size_t prefix_bytes = 8 + magic.size() + 4 + 8;

/// Deeper layers bear coarser steps.
float layer_factor(std::size_t layer, std::size_t layers) {
  const auto third = 3 * layer / std::max<std::size_t>(layers, 1);
  return third == 0 ? 0.8F : third == 1 ? 1.0F : 1.25F;
}

AnyExecutor executor_of(const std::optional<AnyExecutor>& given) { return given ? *given : make_tbb_executor(); }

/// The first exception of several pieces of work is rethrown by the executor; a stop is seen before each.
void run_layers(const AnyExecutor& executor, std::size_t layers, const std::stop_token& stop,
                const std::function<void(std::size_t)>& work) {
  executor.run(static_cast<int>(layers), [&](int layer) {
    throw_if_stopped(stop, where);
    work(static_cast<std::size_t>(layer));
  });
}

}  // namespace

namespace detail {

/// Keys and values of a layer.
struct ContextLayer {
  bool present = false;
  ContextPart keys{};
  ContextPart values{};
};

/// The layers of a session, which must be rows of keys and values and nothing else.
std::vector<PagedKv*> context_layers(const Session& session) {
  const auto& state = session.state();
  if (state.pending() != 0)
    throw UsageError(where, "the session has a token tree that was neither accepted nor truncated");
  if (!state.row_wise())
    throw IncompatibleError(where, "a context needs every token's keys and values; eviction '" +
                                       ContextAccess::core(session).effective_config().eviction +
                                       "', a sliding window, a recurrent layer or a text that an encoder has read stand against it");
  if (ContextAccess::core(session).effective_config().kv_format.starts_with("coupled"))
    throw IncompatibleError(where, "KV format 'coupled' keeps codes, which a context cannot compress further");
  std::vector<PagedKv*> layers;
  for (int i = 0; i < state.layer_count(); ++i) {
    auto* layer = state.layer(i);
    if (layer != nullptr && layer->kind() != "paged_kv")
      throw IncompatibleError(where, "layer state '" + std::string(layer->kind()) + "' is not keys and values",
                              {.layer = i});
    layers.push_back(static_cast<PagedKv*>(layer));
  }
  return layers;
}

std::int32_t kv_heads(const PagedKv& kv) { return kv.groups() * kv.pool().layout().heads; }

}  // namespace detail

namespace {

std::uint64_t checksum_of(const std::vector<std::byte>& bytes) { return detail::checksum(bytes); }

struct Chunk {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::uint64_t checksum = 0;
};

void check(const ContextSaveOptions& options) {
  const auto refuse = [](const std::string& message) { throw UsageError(where, message); };
  if (options.steps.empty() || options.steps.size() > most_levels) refuse("1 to 16 levels are allowed");
  for (const float step : options.steps)
    if (!(step >= 1e-4F && step <= 16.0F)) refuse("a step is " + std::to_string(step) + ", 0.0001 to 16 are allowed");
  if (!std::is_sorted(options.steps.begin(), options.steps.end())) refuse("the finest level comes first");
  if (options.chunk_tokens < 16 || options.chunk_tokens > 65536)
    refuse("chunk_tokens is " + std::to_string(options.chunk_tokens) + ", 16 to 65536 are allowed");
  if (options.group_tokens < 2 || options.group_tokens > 256)
    refuse("group_tokens is " + std::to_string(options.group_tokens) + ", 2 to 256 are allowed");
}

void write_identity(ArchiveWriter& out, const Session& session) {
  const auto& core = detail::ContextAccess::core(session);
  for (const auto word : core.model().fingerprint()) out.value(word);
  for (const auto word : session.adapter_fingerprint()) out.value(word);
  out.text(core.effective_config().architecture);
  out.text(core.attention_key());
}

}  // namespace

std::vector<std::byte> compress_context(const Session& session, const ContextSaveOptions& options) {
  check(options);
  const auto layers = detail::context_layers(session);
  const ContextCut cut{options.chunk_tokens, options.group_tokens};
  const auto tokens = session.length();
  const auto chunks = static_cast<std::size_t>((tokens + cut.chunk_tokens - 1) / cut.chunk_tokens);
  std::vector<detail::ContextLayer> coded(layers.size());
  // [level][chunk][layer]: keys, then values.
  std::vector<std::vector<std::vector<std::vector<std::byte>>>> packed(
      options.steps.size(),
      std::vector<std::vector<std::vector<std::byte>>>(chunks, std::vector<std::vector<std::byte>>(layers.size())));
  std::mutex progress_mutex;
  std::uint64_t done = 0;
  run_layers(executor_of(options.executor), layers.size(), options.stop, [&](std::size_t l) {
    if (layers[l] == nullptr) return;
    auto& layer = coded[l];
    layer.present = true;
    const auto& layout = layers[l]->pool().layout();
    for (const bool keys : {true, false}) {
      auto& part = keys ? layer.keys : layer.values;
      part.heads = detail::kv_heads(*layers[l]);
      part.dims = keys ? layout.head_dim_k : layout.stored_dim_v();
      std::vector<float> values(part.channels() * static_cast<std::size_t>(tokens));
      detail::read_part(*layers[l], keys, 0, tokens, values);
      part.fit(values, tokens, cut);
      for (std::size_t q = 0; q < options.steps.size(); ++q) {
        const auto codes = part.add_level(values, tokens, cut, options.steps[q] * layer_factor(l, layers.size()));
        for (std::size_t c = 0; c < chunks; ++c) {
          const auto first = static_cast<std::int64_t>(c) * cut.chunk_tokens;
          const auto stream = part.pack(q, codes, tokens, first, std::min(cut.chunk_tokens, tokens - first), cut);
          packed[q][c][l].insert(packed[q][c][l].end(), stream.begin(), stream.end());
        }
      }
    }
    const std::lock_guard lock(progress_mutex);
    ++done;
  });
  if (options.progress) options.progress({"compress", done, done});

  ArchiveWriter header;
  write_identity(header, session);
  header.array(session.tokens());
  header.value(cut.chunk_tokens);
  header.value(cut.group_tokens);
  header.array(std::span<const float>(options.steps));
  header.value(static_cast<std::uint32_t>(layers.size()));
  for (const auto& layer : coded) {
    header.value(static_cast<std::uint8_t>(layer.present));
    if (!layer.present) continue;
    header.value(layer.keys.heads);
    header.value(layer.keys.dims);
    header.value(layer.values.dims);
    layer.keys.save(header);
    layer.values.save(header);
  }
  std::vector<std::byte> body;
  for (auto& level : packed)
    for (auto& chunk : level) {
      ArchiveWriter out;
      for (const auto& stream : chunk) out.value(static_cast<std::uint64_t>(stream.size()));
      for (auto& stream : chunk) {
        const auto to = out.reserve(stream.size());
        std::copy(stream.begin(), stream.end(), to.begin());
        stream = {};
      }
      const auto bytes = out.take();
      header.value(static_cast<std::uint64_t>(bytes.size()));
      header.value(checksum_of(bytes));
      body.insert(body.end(), bytes.begin(), bytes.end());
    }
  ArchiveWriter file;
  file.text(magic);
  file.value(format_version);
  file.value(static_cast<std::uint64_t>(header.bytes().size() + 8));
  const auto place = file.reserve(header.bytes().size());
  std::copy(header.bytes().begin(), header.bytes().end(), place.begin());
  file.value(detail::checksum(file.bytes()));
  auto result = file.take();
  result.insert(result.end(), body.begin(), body.end());
  return result;
}

void save_context(const Session& session, const std::string& path, const ContextSaveOptions& options) {
  write_file_atomically(path, compress_context(session, options));
}

struct ContextFile::Impl {
  AnyByteSource source;
  std::uint64_t header_bytes = 0;
  std::vector<std::byte> identity{};
  std::vector<TokenId> tokens{};
  ContextCut cut{};
  std::vector<float> steps{};
  std::vector<detail::ContextLayer> layers{};
  std::vector<ContextChunk> chunks{};
  std::vector<std::vector<Chunk>> places{};  // [level][chunk]

  explicit Impl(AnyByteSource from) : source(std::move(from)) { read_header(); }
  void read_header();
  void read_layers(ArchiveReader& in);
  void read_places(ArchiveReader& in);
  [[nodiscard]] std::vector<std::byte> read_chunk(int level, std::size_t chunk) const;
  void check_identity(const Session& session, std::span<PagedKv* const> kv) const;
  void restore(Session& session, std::span<PagedKv* const> kv, std::span<const detail::ContextLayer> prepared,
               int level, std::size_t chunk, const AnyExecutor& executor, const std::stop_token& stop,
               std::span<const std::byte> bytes) const;
};

void ContextFile::Impl::read_header() {
  const auto refuse = [&](const std::string& message, std::uint64_t offset) {
    throw FormatError(where, message, {.file = source.name(), .offset = offset});
  };
  if (source.size() < prefix_bytes + 8) refuse("this is not a skald context", 0);
  std::vector<std::byte> bytes(prefix_bytes);
  source.read(0, bytes);
  ArchiveReader first(bytes, source.name());
  if (first.value<std::uint64_t>("magic") != magic.size() ||
      std::memcmp(first.raw(magic.size(), "magic").data(), magic.data(), magic.size()) != 0)
    refuse("this is not a skald context", 0);
  if (const auto version = first.value<std::uint32_t>("version"); version != format_version)
    throw UnsupportedError(where,
                           "context format version " + std::to_string(version) + ", this library reads version " +
                               std::to_string(format_version),
                           {.file = source.name()});
  const auto size = first.value<std::uint64_t>("size");
  if (size < 8 || size > source.size() - prefix_bytes || size > most_header)
    refuse("a description of " + std::to_string(size) + " bytes in a file of " + std::to_string(source.size()),
           prefix_bytes - 8);
  header_bytes = prefix_bytes + size;
  bytes.resize(static_cast<std::size_t>(header_bytes));
  source.read(0, bytes);
  const auto described = std::span<const std::byte>(bytes).first(bytes.size() - 8);
  std::uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + described.size(), 8);
  if (stored != detail::checksum(described))
    refuse("the checksum of the description does not match: the data is damaged or cut off", described.size());
  ArchiveReader in(described, source.name());
  (void)in.raw(prefix_bytes, "prefix");
  // Kept as bytes, to be compared with what a session would write.
  ArchiveWriter out;
  for (int i = 0; i < 4; ++i) out.value(in.value<std::uint64_t>("model"));
  out.text(in.text("architecture"));
  out.text(in.text("attention"));
  identity = out.take();
  tokens = in.array<TokenId>("tokens");
  cut.chunk_tokens = in.value<std::int64_t>("chunk_tokens");
  cut.group_tokens = in.value<std::int32_t>("group_tokens");
  if (cut.chunk_tokens < 16 || cut.chunk_tokens > 65536 || cut.group_tokens < 2 || cut.group_tokens > 256)
    in.refuse("chunk_tokens", "chunks of " + std::to_string(cut.chunk_tokens) + " and groups of " +
                                  std::to_string(cut.group_tokens) + " tokens");
  steps = in.array<float>("levels");
  if (steps.empty() || steps.size() > most_levels) in.refuse("levels", "1 to 16 are allowed");
  read_layers(in);
  read_places(in);
  in.finish();
}

void ContextFile::Impl::read_layers(ArchiveReader& in) {
  const auto count = in.value<std::uint32_t>("layers");
  if (count > 65536) in.refuse("layers", std::to_string(count) + " layers");
  for (std::uint32_t l = 0; l < count; ++l) {
    auto& layer = layers.emplace_back();
    layer.present = in.value<std::uint8_t>("present") != 0;
    if (!layer.present) continue;
    const auto heads = in.value<std::int32_t>("heads");
    const auto keys = in.value<std::int32_t>("head_dim_k");
    const auto values = in.value<std::int32_t>("head_dim_v");
    if (heads < 1 || heads > 65536 || keys < 1 || keys > 65536 || values < 0 || values > 65536)
      in.refuse("heads",
                std::to_string(heads) + " heads of " + std::to_string(keys) + " and " + std::to_string(values));
    layer.keys = ContextPart::load(in, heads, keys, steps.size());
    layer.values = ContextPart::load(in, heads, values, steps.size());
  }
}

void ContextFile::Impl::read_places(ArchiveReader& in) {
  const auto length = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t first = 0; first < length; first += cut.chunk_tokens)
    chunks.push_back({first, std::min(cut.chunk_tokens, length - first), {}});
  auto offset = header_bytes;
  for (std::size_t q = 0; q < steps.size(); ++q) {
    auto& level = places.emplace_back();
    for (auto& chunk : chunks) {
      const auto size = in.value<std::uint64_t>("size");
      if (size > source.size() - offset)
        in.refuse("size", "a chunk of " + std::to_string(size) + " bytes is not all there");
      level.push_back({offset, size, in.value<std::uint64_t>("checksum")});
      chunk.bytes.push_back(size);
      offset += size;
    }
  }
  if (offset != source.size())
    in.refuse("size", "the chunks end at " + std::to_string(offset) + ", the file has " +
                          std::to_string(source.size()) + " bytes");
}

std::vector<std::byte> ContextFile::Impl::read_chunk(int level, std::size_t chunk) const {
  const auto& place = places[static_cast<std::size_t>(level)][chunk];
  std::vector<std::byte> bytes(static_cast<std::size_t>(place.size));
  source.read(place.offset, bytes);
  if (checksum_of(bytes) != place.checksum)
    throw FormatError(where, "the checksum of chunk " + std::to_string(chunk) + " does not match: the data is damaged",
                      {.file = source.name(), .offset = place.offset});
  return bytes;
}

void ContextFile::Impl::check_identity(const Session& session, std::span<PagedKv* const> kv) const {
  const auto& core = detail::ContextAccess::core(session);
  ArchiveWriter own;
  write_identity(own, session);
  const auto differs = [&](const std::string& field, const std::string& found, const std::string& here) {
    throw IncompatibleError(where, field + " of the context is " + found + ", here it is " + here,
                            {.file = source.name(), .key = field});
  };
  if (!std::equal(identity.begin(), identity.end(), own.bytes().begin(), own.bytes().end())) {
    ArchiveReader in(identity, source.name());
    for (const auto word : core.model().fingerprint())
      if (const auto found = in.value<std::uint64_t>("model"); found != word)
        differs("model", std::to_string(found), std::to_string(word));
    for (const auto word : session.adapter_fingerprint())
      if (const auto found = in.value<std::uint64_t>("adapters"); found != word)
        differs("adapters", std::to_string(found), std::to_string(word));
    for (const auto& [field, here] : {std::pair{"architecture", core.effective_config().architecture},
                                      std::pair{"attention", core.attention_key()}})
      if (const auto found = in.text(field); found != here) differs(field, "'" + printable(found) + "'", "'" + here + "'");
  }
  if (layers.size() != kv.size()) differs("layers", std::to_string(layers.size()), std::to_string(kv.size()));
  for (std::size_t l = 0; l < kv.size(); ++l) {
    const auto& layer = layers[l];
    if (layer.present != (kv[l] != nullptr)) differs("layers", "another list", "with keys and values elsewhere");
    if (!layer.present) continue;
    const auto& layout = kv[l]->pool().layout();
    if (layer.keys.heads != detail::kv_heads(*kv[l]) || layer.keys.dims != layout.head_dim_k ||
        layer.values.dims != layout.stored_dim_v())
      differs("heads", std::to_string(layer.keys.heads) + " of " + std::to_string(layer.keys.dims),
              std::to_string(detail::kv_heads(*kv[l])) + " of " + std::to_string(layout.head_dim_k));
  }
  const auto& config = core.effective_config();
  if (static_cast<std::int64_t>(tokens.size()) > config.context)
    differs("length", std::to_string(tokens.size()), "at most " + std::to_string(config.context));
  for (const auto token : tokens)
    if (token < -1 || token >= core.model().spec().vocabulary)
      throw FormatError(where, "a token id is out of range", {.file = source.name(), .key = "tokens"});
}

void ContextFile::Impl::restore(Session& session, std::span<PagedKv* const> kv,
                                std::span<const detail::ContextLayer> prepared, int level, std::size_t chunk,
                                const AnyExecutor& executor, const std::stop_token& stop,
                                std::span<const std::byte> bytes) const {
  const auto first = chunks[chunk].first;
  const auto count = chunks[chunk].tokens;
  ArchiveReader in(bytes, source.name());
  std::vector<std::uint64_t> sizes;
  for (std::size_t l = 0; l < kv.size(); ++l) sizes.push_back(in.value<std::uint64_t>("size"));
  std::vector<std::span<const std::byte>> streams;
  for (const auto size : sizes) streams.push_back(in.raw(static_cast<std::size_t>(size), "codes"));
  in.finish();
  auto& state = session.state();
  state.append(count);
  try {
    run_layers(executor, kv.size(), stop, [&](std::size_t l) {
      if (kv[l] == nullptr) return;
      ArchiveReader stream(streams[l], source.name());
      for (const bool keys : {true, false}) {
        const auto& part = keys ? prepared[l].keys : prepared[l].values;
        std::vector<std::int32_t> codes(part.channels() * static_cast<std::size_t>(count));
        std::vector<float> values(codes.size());
        part.unpack(static_cast<std::size_t>(level), stream, count, cut, codes);
        part.decode(static_cast<std::size_t>(level), codes, count, cut, values);
        detail::write_part(*kv[l], keys, first, count, values);
      }
      stream.finish();
    });
  } catch (...) {
    state.rollback();
    throw;
  }
  state.commit();
  auto& known = detail::ContextAccess::tokens(session);
  known.insert(known.end(), tokens.begin() + first, tokens.begin() + first + count);
}

ContextFile::ContextFile(AnyByteSource source) : impl_(std::make_unique<const Impl>(std::move(source))) {}
ContextFile::~ContextFile() = default;
ContextFile::ContextFile(ContextFile&&) noexcept = default;
ContextFile& ContextFile::operator=(ContextFile&&) noexcept = default;

std::span<const TokenId> ContextFile::tokens() const noexcept { return impl_->tokens; }
const std::vector<ContextChunk>& ContextFile::chunks() const noexcept { return impl_->chunks; }
std::span<const float> ContextFile::steps() const noexcept { return impl_->steps; }
std::uint64_t ContextFile::header_bytes() const noexcept { return impl_->header_bytes; }

ContextLoadReport ContextFile::load(Session& session, const ContextLoadOptions& options) const {
  const auto& file = *impl_;
  const auto levels = static_cast<int>(file.steps.size());
  if (options.controller == nullptr && (options.level < recompute_chunk || options.level >= levels))
    throw UsageError(where, "level " + std::to_string(options.level) + " of " + std::to_string(levels));
  auto fresh = detail::ContextAccess::core(session).new_session();
  fresh.set_adapters({session.adapters().begin(), session.adapters().end()});
  const auto kv = detail::context_layers(fresh);
  file.check_identity(fresh, kv);
  const auto executor = executor_of(options.executor);
  const auto clock = options.clock ? options.clock : [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  const double begin = clock();
  auto prepared = file.layers;  // with the tables that reading needs, for the levels that are read
  std::vector<bool> ready(file.steps.size());
  ContextLoadReport report;
  report.bytes_read = file.header_bytes;
  for (std::size_t c = 0; c < file.chunks.size(); ++c) {
    throw_if_stopped(options.stop, where);
    const double from = clock();
    const auto& chunk = file.chunks[c];
    const int choice = options.controller == nullptr
                           ? options.level
                           : options.controller->choose(std::span(file.chunks).subspan(c), from - begin);
    report.choices.push_back(choice);
    if (choice == recompute_chunk) {
      const auto tokens =
          std::span(file.tokens).subspan(static_cast<std::size_t>(chunk.first), static_cast<std::size_t>(chunk.tokens));
      (void)fresh.forward(tokens, LogitsWanted::none, options.stop);
      report.computed_tokens += chunk.tokens;
      if (options.controller != nullptr) options.controller->computed(chunk.tokens, clock() - from);
    } else {
      const auto bytes = file.read_chunk(choice, c);
      if (options.controller != nullptr) options.controller->loaded(bytes.size(), clock() - from);
      report.bytes_read += bytes.size();
      if (!ready[static_cast<std::size_t>(choice)])
        for (auto& layer : prepared) {
          if (!layer.present) continue;
          layer.keys.prepare(static_cast<std::size_t>(choice));
          layer.values.prepare(static_cast<std::size_t>(choice));
        }
      ready[static_cast<std::size_t>(choice)] = true;
      file.restore(fresh, kv, prepared, choice, c, executor, options.stop, bytes);
      fresh.state().set_approximate();
    }
    if (options.progress)
      options.progress({"context", static_cast<std::uint64_t>(chunk.first + chunk.tokens), file.tokens.size()});
  }
  detail::ContextAccess::replace(session, std::move(fresh));
  return report;
}

int ContextController::choose(std::span<const ContextChunk> left, double elapsed) const {
  if (left.empty()) return recompute_chunk;
  const auto levels = static_cast<int>(left.front().bytes.size());
  const double time = rates_.seconds > 0 ? rates_.seconds - elapsed : -1.0;
  const auto seconds = [&](int choice) {
    double sum = 0;
    for (const auto& chunk : left)
      sum += choice == recompute_chunk ? static_cast<double>(chunk.tokens)
                                       : static_cast<double>(chunk.bytes[static_cast<std::size_t>(choice)]);
    const double rate = choice == recompute_chunk ? rates_.tokens_per_second : rates_.bytes_per_second;
    return rate > 0 ? sum / rate : 0.0;
  };
  const int coarsest = std::clamp(rates_.coarsest_level, 0, std::max(levels - 1, 0));
  int fastest = 0;
  for (int choice = recompute_chunk; choice <= coarsest; ++choice) {
    if (choice == recompute_chunk && rates_.tokens_per_second <= 0) continue;
    if (seconds(choice) <= time) return choice;
    if (seconds(choice) < seconds(fastest)) fastest = choice;
  }
  return fastest;
}

void ContextController::loaded(std::uint64_t bytes, double seconds) {
  if (seconds > 0 && bytes > 0) rates_.bytes_per_second = static_cast<double>(bytes) / seconds;
}

void ContextController::computed(std::int64_t tokens, double seconds) {
  if (seconds > 0 && tokens > 0 && rates_.tokens_per_second > 0)
    rates_.tokens_per_second = static_cast<double>(tokens) / seconds;
}

}  // namespace skald::inline v0
