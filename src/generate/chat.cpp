#include <skald/generate/chat.hpp>

#include <skald/model/model.hpp>

namespace skald::inline v0 {

namespace {

/// Whether a session of the model may have lost what it would need to go back a little.
bool forgets(const ModelSpec& spec) {
  if (spec.recurrent()) return true;
  for (const auto& layer : spec.layers)
    if (layer.attention && layer.attention->window > 0) return true;
  return false;
}

}  // namespace

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
  if (forgets(session_->model().spec())) before_reply_ = std::make_shared<std::optional<Session>>();
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
    if (!session_->can_truncate(static_cast<std::int64_t>(same))) {
      const bool kept =
          before_reply_ && *before_reply_ && (*before_reply_)->length() <= static_cast<std::int64_t>(same);
      if (kept) *session_ = std::move(**before_reply_);
      same = kept ? static_cast<std::size_t>(session_->length()) : 0;  // evicted: from the beginning
    }
    if (before_reply_) before_reply_->reset();
    if (same == 0) session_->clear();
    else session_->truncate(static_cast<std::int64_t>(same));
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(same));
    auto options = options_;
    // The last page is copied when the reply goes on from it: not where there may be no page left.
    constexpr std::int64_t largest_page = 256;
    const auto reply = options.max_tokens < 0 ? session_->context() : options.max_tokens;
    const auto needed = session_->length() + static_cast<std::int64_t>(tokens.size()) + reply + largest_page;
    if (before_reply_ && needed <= session_->context())
      options.after_prompt = [place = before_reply_, also = options_.after_prompt](const Session& session) {
        place->emplace(session.fork());
        if (also) also(session);
      };
    reply_.emplace(*session_, std::move(tokens), std::move(options));
  } catch (...) {
    messages_.pop_back();
    throw;
  }
  return *reply_;
}

}  // namespace skald::inline v0
