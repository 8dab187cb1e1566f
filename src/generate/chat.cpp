#include <skald/generate/chat.hpp>

#include <skald/model/model.hpp>

namespace skald::inline v0 {

Chat::Chat(Session session, GenerateOptions options, std::string system, std::optional<ChatTemplate> chat_template)
    : session_(std::make_unique<Session>(std::move(session))),
      options_(std::move(options)),
      template_(std::move(chat_template)) {
  if (!template_) {
    const auto* own = session_->model().chat_template();
    if (own == nullptr)
      throw UsageError("generate.chat",
                       "the model has no chat template; give one, or use generate() with a prompt of your own");
    template_ = *own;
  }
  if (!system.empty()) messages_.push_back({"system", std::move(system)});
}

Generation& Chat::send(std::string_view message) {
  if (reply_) messages_.push_back({"assistant", reply_->text()});
  reply_.reset();
  messages_.push_back({"user", std::string(message)});
  try {
    const auto text = template_->apply({.messages = messages_});
    // Templates write BOS themselves where the model wants one.
    auto tokens = session_->model().tokenizer().encode(text, {.add_special = false, .parse_special = true});
    if (tokens.empty()) throw UsageError("generate.chat", "the chat template rendered to no tokens");
    const auto known = session_->tokens();
    std::size_t same = 0;
    while (same < known.size() && same + 1 < tokens.size() && known[same] == tokens[same]) ++same;
    if (!session_->can_truncate(static_cast<std::int64_t>(same))) same = 0;  // evicted: from the beginning
    if (same == 0) session_->clear();
    else session_->truncate(static_cast<std::int64_t>(same));
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(same));
    reply_.emplace(*session_, std::move(tokens), options_);
  } catch (...) {
    messages_.pop_back();
    throw;
  }
  return *reply_;
}

}  // namespace skald::inline v0
