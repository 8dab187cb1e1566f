#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <skald/config.hpp>
#include <skald/text/chat_message.hpp>

namespace skald::inline v0 {

/// What a chat template is rendered with.
struct ChatTemplateInputs {
  std::vector<ChatMessage> messages{};
  /// Ends the prompt with the header of the assistant's turn.
  bool add_generation_prompt = true;
  /// JSON array of tool descriptions; empty means that `tools` is none.
  std::string tools_json{};
  /// JSON object whose members become variables of the template and win over everything above,
  /// e.g. `{"enable_thinking":false,"documents":[…]}`.
  std::string extra_json{};
  /// The time that `strftime_now` tells, as local time; the current time if not set.
  std::optional<std::chrono::system_clock::time_point> now{};
};

/// A chat template: the Jinja2 program from a model's `tokenizer.chat_template` that turns a conversation into the text
/// of a prompt. Renders byte for byte what Hugging Face's `apply_chat_template(tokenize=False)` does, that is Jinja2
/// in its immutable sandbox with `trim_blocks` and `lstrip_blocks`, the loop controls `break` and `continue`, the tag
/// `generation`, and the functions `raise_exception`, `strftime_now` and `tojson`. What is not supported is refused by
/// name; there is no template to fall back to.
///
/// A template is untrusted data: it reaches nothing but the values given to it, and its work is bounded (source 1 MiB,
/// nesting 128, 1,000,000 steps, 8 MiB of values, output 1 MiB).
///
/// Immutable, safe to use from many threads at once, cheap to copy.
class SKALD_API ChatTemplate {
 public:
  /// Parses `source`. An empty `bos_token` or `eos_token` leaves that variable undefined, as for a tokenizer without
  /// one. Throws FormatError for a malformed template, UnsupportedError for a construct that is not implemented; both
  /// name the template's line in `context().path`.
  ChatTemplate(std::string source, std::string bos_token, std::string eos_token);

  /// Renders the prompt. The text already holds the special tokens, so tokenize it with special tokens recognized and
  /// without adding another beginning-of-text token.
  /// Throws FormatError, with the template's line, if the template raises an exception, computes with values of the
  /// wrong type or exceeds a limit, and for malformed JSON; UnsupportedError for a construct that is not implemented.
  [[nodiscard]] std::string apply(const ChatTemplateInputs& inputs) const;

  /// The text the template was made from.
  [[nodiscard]] const std::string& source() const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace skald::inline v0
