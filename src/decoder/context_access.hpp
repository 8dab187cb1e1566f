#pragma once

#include <utility>
#include <vector>

#include <skald/decoder/decoder.hpp>

namespace skald::inline v0::detail {

/// What this file may touch of a session.
struct ContextAccess {
  static DecoderCore& core(const Session& session) { return *session.core_; }
  static void replace(Session& session, Session&& by) {
    session.state_ = std::move(by.state_);
    session.tokens_ = std::move(by.tokens_);
    session.pending_tokens_.clear();
  }
  static std::vector<TokenId>& tokens(Session& session) { return session.tokens_; }
};

}  // namespace skald::inline v0::detail
