#pragma once

// What the tests of the assembled library share.

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <skald/decoder/decoder.hpp>

#include "support/tiny_model.hpp"

namespace skald_test {

using Rows = std::vector<float>;

/// Copies all rows of a result.
inline Rows copy(const skald::Logits& logits) {
  return logits.rows() == 0 ? Rows{}
                            : Rows(logits.row(0).data(), logits.row(0).data() + logits.rows() * logits.vocabulary());
}

inline bool same_bits(const Rows& a, const Rows& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// All logits of tokens given in chunks.
inline Rows chunked(skald::Session& session, std::span<const skald::TokenId> tokens, std::size_t chunk) {
  Rows all;
  for (std::size_t i = 0; i < tokens.size(); i += chunk) {
    const auto rows =
        copy(session.forward(tokens.subspan(i, std::min(chunk, tokens.size() - i)), skald::LogitsWanted::all));
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

/// Logits of one more token.
inline Rows next_row(skald::Session& session, skald::TokenId token) { return copy(session.forward({&token, 1})); }

inline skald::AnyBackend cpu_with(int threads) { return skald::make_backend("cpu:threads=" + std::to_string(threads)); }

/// A backend that never leaves the calling thread.
inline skald::AnyBackend serial_cpu() {
  skald::CpuOptions options;
  options.executor = skald::AnyExecutor(std::make_shared<skald::SerialExecutor>());
  options.threads = 1;
  return skald::make_cpu_backend(options);
}

/// True if the session continues exactly as a fresh one that was given the same tokens.
inline bool equals_fresh(const skald::Decoder<>& decoder, skald::Session& session) {
  const std::vector<skald::TokenId> tokens(session.tokens().begin(), session.tokens().end());
  if (session.length() != static_cast<std::int64_t>(tokens.size())) return false;
  auto fresh = decoder.new_session();
  if (!tokens.empty()) (void)fresh.forward(tokens, skald::LogitsWanted::none);
  return fresh.bytes() == session.bytes() && same_bits(next_row(session, 3), next_row(fresh, 3));
}

/// A source of the bytes, which it keeps alive.
inline skald::AnyByteSource keeping_source(std::vector<std::byte> bytes, const std::string& name) {
  const auto keep = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  return {skald::CallbackSource(keep->size(),
                                [keep](std::uint64_t offset, std::span<std::byte> out) {
                                  std::memcpy(out.data(), keep->data() + offset, out.size());
                                }),
          name};
}

}  // namespace skald_test
