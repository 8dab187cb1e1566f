#include <skald/text/chat_template.hpp>

#include <utility>

#include <skald/core/error.hpp>

#include "text/jinja_evaluator.hpp"
#include "text/jinja_parser.hpp"

namespace skald::inline v0 {

struct ChatTemplate::Impl {
  std::string source;
  std::string bos_token;
  std::string eos_token;
  jinja::Program program;
};

namespace {

using jinja::make_text;
using jinja::Value;

Value message_value(const ChatMessage& message) {
  auto dict = std::make_shared<jinja::Dict>();
  const auto add = [&](const char* name, const std::string& text) {
    dict->set(make_text(nullptr, name), make_text(nullptr, text));
  };
  add("role", message.role);
  add("content", message.content);
  if (!message.reasoning_content.empty()) add("reasoning_content", message.reasoning_content);
  if (!message.tool_calls_json.empty()) {
    Value calls = jinja::parse_json(message.tool_calls_json, "a message's tool_calls_json");
    if (!calls.is(jinja::Kind::list))
      throw FormatError("text.chat_template", "a message's tool_calls_json is not an array");
    dict->set(make_text(nullptr, "tool_calls"), std::move(calls));
  }
  if (!message.name.empty()) add("name", message.name);
  if (!message.tool_call_id.empty()) add("tool_call_id", message.tool_call_id);
  return jinja::make_dict(nullptr, std::move(dict));
}

}  // namespace

ChatTemplate::ChatTemplate(std::string source, std::string bos_token, std::string eos_token) {
  auto impl = std::make_shared<Impl>();
  impl->program = jinja::Parser(source).parse();
  impl->source = std::move(source);
  impl->bos_token = std::move(bos_token);
  impl->eos_token = std::move(eos_token);
  impl_ = std::move(impl);
}

const std::string& ChatTemplate::source() const { return impl_->source; }

std::string ChatTemplate::apply(const ChatTemplateInputs& inputs) const {
  std::vector<Value> messages;
  messages.reserve(inputs.messages.size());
  for (const ChatMessage& message : inputs.messages) messages.push_back(message_value(message));
  Value tools = Value::none();
  if (!inputs.tools_json.empty()) {
    tools = jinja::parse_json(inputs.tools_json, "tools_json");
    if (!tools.is(jinja::Kind::list)) throw FormatError("text.chat_template", "tools_json is not an array");
  }
  jinja::Evaluator evaluator(impl_->program, inputs.now);
  if (!impl_->bos_token.empty()) evaluator.set("bos_token", make_text(nullptr, impl_->bos_token));
  if (!impl_->eos_token.empty()) evaluator.set("eos_token", make_text(nullptr, impl_->eos_token));
  evaluator.set("messages", jinja::make_list(nullptr, std::move(messages)));
  evaluator.set("tools", std::move(tools));
  evaluator.set("documents", Value::none());
  evaluator.set("add_generation_prompt", Value::boolean(inputs.add_generation_prompt));
  if (!inputs.extra_json.empty()) {
    const Value extra = jinja::parse_json(inputs.extra_json, "extra_json");
    if (!extra.is(jinja::Kind::dict)) throw FormatError("text.chat_template", "extra_json is not an object");
    for (const auto& [name, value] : extra.dict().items) evaluator.set(name.text(), value);
  }
  return evaluator.run();
}

}  // namespace skald::inline v0
