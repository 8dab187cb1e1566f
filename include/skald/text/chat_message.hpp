#pragma once

#include <string>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// One message of a conversation, as a chat template sees it. The template gets a mapping with `role` and `content`
/// (always there, possibly empty) and with those of the other fields that are not empty.
struct ChatMessage {
  std::string role;                 ///< "system", "user", "assistant", "tool", … whatever the template knows
  std::string content;              ///< UTF-8
  std::string reasoning_content{};  ///< what a reasoning model thought before `content`
  std::string tool_calls_json{};    ///< JSON array, becomes the list `tool_calls`
  std::string name{};               ///< name of the speaker or of the tool
  std::string tool_call_id{};       ///< which call a message of role "tool" answers
};

}  // namespace skald::inline v0
