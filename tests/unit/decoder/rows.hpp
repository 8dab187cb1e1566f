#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <skald/decoder/decoder.hpp>
#include <skald/simd/isa.hpp>

namespace skald_test {

/// Logits of some tokens, row by row.
using Rows = std::vector<float>;

inline skald::AnyBackend cpu(skald::Isa isa, int threads) {
  return skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa)) + ",threads=" + std::to_string(threads));
}

inline Rows copy(const skald::Logits& logits) {
  return logits.rows() == 0 ? Rows{} : Rows(logits.row(0).data(), logits.row(0).data() + logits.rows() * logits.vocabulary());
}

/// All logits of a prompt given in chunks.
inline Rows chunked(skald::Session& session, const std::vector<skald::TokenId>& tokens, std::size_t chunk) {
  Rows all;
  for (std::size_t i = 0; i < tokens.size(); i += chunk) {
    const auto part = std::span(tokens).subspan(i, std::min(chunk, tokens.size() - i));
    const auto rows = copy(session.forward(part, skald::LogitsWanted::all));
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

inline bool same_bits(const Rows& a, const Rows& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace skald_test
