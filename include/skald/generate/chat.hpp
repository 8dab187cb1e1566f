#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <skald/generate/generate.hpp>
#include <skald/text/chat_template.hpp>

namespace skald::inline v0 {

/// A conversation with a chat template, the model's own unless another is given. Each turn renders the whole conversation and
/// computes only what differs from the session's memory. Where layers with a sliding window or a recurrent state cannot go
/// back into the last reply, because its text has other tokens than the model chose, say, the reply is computed again, and
/// nothing before it.
class SKALD_API Chat {
 public:
  /// With `chat_template`, that one instead of the model's own.
  /// @throws UsageError if there is neither; what the parser of the model's template threw.
  explicit Chat(Session session, GenerateOptions options = {}, std::string system = {},
                std::optional<ChatTemplate> chat_template = {});
  /// Adds a user message and generates the reply, which joins the conversation as far as it is read.
  Generation& send(std::string_view message);
  [[nodiscard]] const std::vector<ChatMessage>& messages() const noexcept { return messages_; }
  [[nodiscard]] Session& session() noexcept { return *session_; }

 private:
  std::unique_ptr<Session> session_;  // stays in place when the chat moves: the reply refers to it
  GenerateOptions options_;
  std::optional<ChatTemplate> template_;
  std::vector<ChatMessage> messages_;
  std::optional<Generation> reply_;
  std::shared_ptr<std::optional<Session>> before_reply_;  // stays in place too; where going back may be refused
};

}  // namespace skald::inline v0
