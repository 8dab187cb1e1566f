#include <skald/decoder/session.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include <skald/core/file.hpp>
#include <skald/decoder/decoder.hpp>

#include "decoder/checksum.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view magic = "skald-session";
constexpr std::uint32_t format_version = 4;
constexpr std::size_t checksum_bytes = 8;

using detail::checksum;

}  // namespace

Session::Session(std::shared_ptr<detail::DecoderCore> core, SequenceState state)
    : core_(std::move(core)), state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

const Model& Session::model() const noexcept { return core_->model(); }
std::int64_t Session::context() const noexcept { return core_->effective_config().context; }

void Session::set_adapters(std::vector<ScaledAdapter> adapters) {
  if (length() != 0 || state_.pending() != 0 || encoded_length() != 0)
    throw UsageError("decoder.session", "adapters can be changed only while the session is empty");
  for (const auto& [adapter, scale] : adapters) {
    if (!adapter.belongs_to(model()))
      throw IncompatibleError("decoder.session", "the adapter '" + printable(adapter.name()) + "' was loaded for another model");
    if (!std::isfinite(scale)) throw NumericError("decoder.session", "the scale of an adapter is not finite");
  }
  adapters_ = std::move(adapters);
}

std::array<std::uint64_t, 2> Session::adapter_fingerprint() const noexcept {
  std::array<std::uint64_t, 2> result{};
  for (const auto& [adapter, scale] : adapters_) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &scale, sizeof bits);
    const auto own = adapter.fingerprint();
    for (std::size_t i = 0; i < result.size(); ++i) {  // the order of adapters counts
      result[i] = (result[i] ^ own[i]) * 0x100000001b3ull + bits + 1;
      result[i] ^= result[i] >> 29;
    }
  }
  return result;
}

Logits Session::forward(std::span<const TokenId> tokens, LogitsWanted wanted, std::stop_token stop,
                        const ProgressCallback& progress) {
  return core_->forward_one(*this, tokens, wanted, std::move(stop), progress);
}

void Session::encode(std::span<const TokenId> tokens, std::stop_token stop, std::vector<float>* hidden) {
  core_->encode(*this, tokens, stop, hidden);
}

void Session::truncate(std::int64_t length) {
  if (state_.pending() != 0) state_.rollback();
  pending_tokens_.clear();
  if (length < 0 || length >= state_.length()) return state_.truncate(length);
  const auto known = state_.restorable(length);
  const auto again = known < 0 ? std::span<const TokenId>{}
                               : std::span(tokens_).subspan(static_cast<std::size_t>(known),
                                                            static_cast<std::size_t>(length - known));
  if (known < 0 || std::find(again.begin(), again.end(), TokenId{-1}) != again.end())
    return state_.truncate(length);  // refuses, with the reason
  const std::vector<TokenId> computed(again.begin(), again.end());
  const auto prompt = state_.prompt_length();
  state_.truncate(known);
  tokens_.resize(static_cast<std::size_t>(known));
  state_.set_prompt_length(std::min(prompt, length));  // before: scores may depend on it
  if (!computed.empty()) (void)core_->forward_one(*this, computed, LogitsWanted::none, {}, {});
}

bool Session::can_truncate(std::int64_t length) const noexcept {
  return length >= 0 && length <= state_.length() && state_.restorable(length) >= 0;
}

void Session::accept(std::span<const std::int32_t> rows) {
  try {
    state_.commit_selected(rows);
  } catch (...) {
    if (state_.pending() == 0) pending_tokens_.clear();  // the tree was dropped
    throw;
  }
  for (const auto row : rows) tokens_.push_back(pending_tokens_[static_cast<std::size_t>(row)]);
  pending_tokens_.clear();
}

Session Session::fork() const {
  Session copy(core_, state_.fork());
  copy.tokens_.reserve(static_cast<std::size_t>(context()));
  copy.tokens_.assign(tokens_.begin(), tokens_.end());
  copy.random_stream_ = random_stream_;
  copy.adapters_ = adapters_;
  return copy;
}

void Session::clear() noexcept {
  state_.clear();
  tokens_.clear();
  pending_tokens_.clear();
}

std::vector<std::byte> Session::snapshot() const {
  if (state_.pending() != 0) throw UsageError("decoder.session", "a token tree was not accepted yet");
  const auto& config = core_->effective_config();
  ArchiveWriter out;
  out.text(magic);
  out.value(format_version);
  for (const auto word : model().fingerprint()) out.value(word);
  for (const auto word : adapter_fingerprint()) out.value(word);
  out.text(config.architecture);
  out.text(config.kv_format);
  out.text(config.eviction);
  out.text(core_->attention_key());
  out.value(config.heads_per_group);
  out.value(config.page_tokens);
  out.value(random_stream_);
  out.array(std::span<const TokenId>(tokens_));
  state_.save(out);
  out.value(checksum(out.bytes()));
  return out.take();
}

void Session::restore(std::span<const std::byte> snapshot) { restore_named(snapshot, "snapshot"); }

void Session::restore_named(std::span<const std::byte> snapshot, const std::string& name) {
  ArchiveReader head(snapshot, name);
  if (snapshot.size() < checksum_bytes || head.text("magic") != magic)
    throw FormatError("decoder.session", "this is not a skald session", {.file = name, .offset = 0});
  const auto version = head.value<std::uint32_t>("version");
  if (version != format_version)
    throw UnsupportedError("decoder.session", "session format version " + std::to_string(version) +
                                                  ", this library reads version " + std::to_string(format_version),
                           {.file = name});
  const auto body = snapshot.first(snapshot.size() - checksum_bytes);
  std::uint64_t stored = 0;
  std::memcpy(&stored, snapshot.data() + body.size(), sizeof stored);
  if (stored != checksum(body))
    throw FormatError("decoder.session", "the checksum does not match: the data is damaged or cut off",
                      {.file = name, .offset = body.size()});

  const auto& config = core_->effective_config();
  ArchiveReader in(body, name);
  (void)in.text("magic");
  (void)in.value<std::uint32_t>("version");
  const auto differs = [&](const std::string& field, const std::string& found, const std::string& here) {
    throw IncompatibleError("decoder.session",
                            field + " of the saved session is '" + printable(found) + "', here it is '" + here + "'",
                            {.file = name, .key = field});
  };
  const auto same = [&](const std::string& field, const std::string& found, const std::string& here) {
    if (found != here) differs(field, found, here);
  };
  for (const auto word : model().fingerprint())
    same("model", std::to_string(in.value<std::uint64_t>("model")), std::to_string(word));
  for (const auto word : adapter_fingerprint())
    same("adapters", std::to_string(in.value<std::uint64_t>("adapters")), std::to_string(word));
  same("architecture", in.text("architecture"), config.architecture);
  same("kv_format", in.text("kv_format"), config.kv_format);
  same("eviction", in.text("eviction"), config.eviction);
  same("attention", in.text("attention"), core_->attention_key());
  same("heads_per_group", std::to_string(in.value<std::int32_t>("heads_per_group")),
       std::to_string(config.heads_per_group));
  same("page_tokens", std::to_string(in.value<std::int32_t>("page_tokens")), std::to_string(config.page_tokens));
  const auto random_stream = in.value<std::uint64_t>("random_stream");
  auto tokens = in.array<TokenId>("tokens");
  if (static_cast<std::int64_t>(tokens.size()) > config.context)
    differs("length", std::to_string(tokens.size()), "at most " + std::to_string(config.context));
  for (const auto token : tokens)
    if (token < -1 || token >= model().spec().vocabulary) in.refuse("tokens", "a token id is out of range");

  auto fresh = core_->new_session();
  fresh.state_.load(in);
  in.finish();
  if (fresh.state_.length() != static_cast<std::int64_t>(tokens.size()))
    in.refuse("length", "the number of tokens contradicts the state");
  tokens.reserve(static_cast<std::size_t>(config.context));
  state_ = std::move(fresh.state_);  // from here on nothing can fail
  tokens_ = std::move(tokens);
  pending_tokens_.clear();
  random_stream_ = random_stream;
}

void Session::save(const std::string& path) const { write_file_atomically(path, snapshot()); }

void Session::load(const std::string& path) { restore_named(read_whole_file(path), path); }

}  // namespace skald::inline v0
