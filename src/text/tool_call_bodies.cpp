#include "text/tool_call_bodies.hpp"

#include <optional>

#include <nlohmann/json.hpp>

#include "text/json_depth.hpp"

namespace skald::inline v0::detail {
namespace {

using Json = nlohmann::ordered_json;

// Nothing for what is not JSON or nests too deeply.
std::optional<Json> parse(std::string_view text) {
  if (find_too_deep(text)) return std::nullopt;
  Json value = Json::parse(text, nullptr, false);
  if (value.is_discarded()) return std::nullopt;
  return value;
}

std::string dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

const Json* member(const Json& object, const char* name, const char* other) {
  for (const char* key : {name, other}) {
    const auto found = object.find(key);
    if (found != object.end()) return &*found;
  }
  return nullptr;
}

// Arguments are an object; some models write it as a string, and some leave it out.
std::optional<std::string> arguments_of(const Json* value) {
  if (value == nullptr || value->is_null()) return "{}";
  if (value->is_object()) return dump(*value);
  if (!value->is_string()) return std::nullopt;
  const auto inner = parse(value->get_ref<const std::string&>());
  if (!inner || !inner->is_object()) return std::nullopt;
  return dump(*inner);
}

std::optional<ToolCall> call_of(const Json& value) {
  if (!value.is_object()) return std::nullopt;
  const auto function = value.find("function");
  const bool nested = function != value.end() && function->is_object();
  const Json& body = nested ? *function : value;
  const Json* name = member(body, "name", "tool_name");
  if (name == nullptr && function != value.end()) name = &*function;
  if (name == nullptr || !name->is_string() || name->get_ref<const std::string&>().empty()) return std::nullopt;
  auto arguments = arguments_of(member(body, "arguments", "parameters"));
  if (!arguments) return std::nullopt;
  ToolCall call{name->get<std::string>(), std::move(*arguments)};
  const Json* id = member(value, "id", "tool_call_id");
  if (id != nullptr && id->is_string()) call.id = id->get<std::string>();
  return call;
}

bool is_name(std::string_view text) noexcept {
  if (text.empty() || text.size() > 256) return false;
  for (const char c : text) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                        c == '-' || c == '.' || c == '/' || static_cast<unsigned char>(c) >= 0x80;
    if (!letter) return false;
  }
  return true;
}

// Takes `text` up to the next `mark` off, and the mark itself.
std::optional<std::string_view> take_until(std::string_view& text, std::string_view mark) {
  const std::size_t end = text.find(mark);
  if (end == std::string_view::npos) return std::nullopt;
  const std::string_view taken = text.substr(0, end);
  text.remove_prefix(end + mark.size());
  return taken;
}

// Takes a JSON object or array off the front.
std::optional<std::string_view> take_json(std::string_view& text) {
  JsonEnd end;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool complete = end.push(text[i]);
    if (!end.begun()) return std::nullopt;
    if (!complete) continue;
    const std::string_view taken = text.substr(0, i + 1);
    text.remove_prefix(i + 1);
    return taken;
  }
  return std::nullopt;
}

// Values of parameters are text; what reads as JSON other than a string is taken as that.
Json parameter_value(std::string_view text) {
  if (text.starts_with('\n')) text.remove_prefix(1);
  if (text.ends_with('\n')) text.remove_suffix(1);
  const auto value = parse(text);
  if (value && !value->is_string()) return *value;
  return std::string(text);
}

bool parse_parameters(std::string_view name, std::string_view text, ToolCalls& calls) {
  Json arguments = Json::object();
  for (text = trim(text); !text.empty(); text = trim(text)) {
    constexpr std::string_view open = "<parameter=";
    if (!text.starts_with(open)) return false;
    text.remove_prefix(open.size());
    const auto key = take_until(text, ">");
    if (!key || !is_name(*key)) return false;
    const auto value = take_until(text, "</parameter>");
    if (!value) return false;
    arguments[std::string(*key)] = parameter_value(*value);
  }
  calls.push_back({std::string(name), dump(arguments)});
  return true;
}

// key="text", key=12, …
bool parse_keywords(std::string_view text, Json& arguments) {
  for (text = trim(text); !text.empty();) {
    const auto key = take_until(text, "=");
    if (!key || !is_name(trim(*key))) return false;
    text = trim(text);
    std::size_t end = 0;
    bool in_string = false;
    for (; end < text.size() && (in_string || text[end] != ','); ++end) {
      if (in_string && text[end] == '\\') ++end;
      else if (text[end] == '"') in_string = !in_string;
    }
    const auto value = parse(trim(text.substr(0, end)));
    if (!value || value->is_structured()) return false;
    arguments[std::string(trim(*key))] = *value;
    text = end < text.size() ? trim(text.substr(end + 1)) : std::string_view();
  }
  return true;
}

}  // namespace

std::string_view trim(std::string_view text) noexcept {
  constexpr std::string_view space = " \t\r\n\f\v";
  const std::size_t begin = text.find_first_not_of(space);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(space) + 1 - begin);
}

bool JsonEnd::push(char c) noexcept {
  if (done_) return true;
  if (depth_ == 0 && c != '{' && c != '[') return false;
  if (in_string_) {
    if (escaped_) escaped_ = false;
    else if (c == '\\') escaped_ = true;
    else if (c == '"') in_string_ = false;
    return false;
  }
  if (c == '"') in_string_ = true;
  if (c == '{' || c == '[') ++depth_;
  if ((c == '}' || c == ']') && --depth_ == 0) done_ = true;
  return done_;
}

bool parse_arguments(std::string_view name, std::string_view json, ToolCalls& calls, std::string_view id) {
  if (!is_name(name)) return false;
  const auto value = parse(trim(json));
  if (!value || !value->is_object()) return false;
  calls.push_back({std::string(name), dump(*value), std::string(id)});
  return true;
}

bool parse_call_json(std::string_view text, ToolCalls& calls) {
  const auto value = parse(trim(text));
  if (!value) return false;
  ToolCalls found;
  if (value->is_array()) {
    for (const Json& each : *value) {
      auto call = call_of(each);
      if (!call) return false;
      found.push_back(std::move(*call));
    }
  } else if (auto call = call_of(*value)) {
    found.push_back(std::move(*call));
  }
  calls.insert(calls.end(), found.begin(), found.end());
  return !found.empty();
}

bool parse_call_list(std::string_view text, ToolCalls& calls) {
  ToolCalls found;
  for (text = trim(text); !text.empty(); text = trim(text)) {
    const auto json = take_json(text);
    if (!json || !parse_call_json(*json, found)) return false;
    text = trim(text);
    if (text.starts_with(';')) text.remove_prefix(1);
  }
  calls.insert(calls.end(), found.begin(), found.end());
  return !found.empty();
}

bool parse_function_tag(std::string_view text, ToolCalls& calls) {
  const auto name = take_until(text, ">");
  if (!name || !is_name(*name)) return false;
  text = trim(text);
  if (text.starts_with('{')) return parse_arguments(*name, text, calls);
  return parse_parameters(*name, text, calls);
}

bool parse_hermes(std::string_view text, ToolCalls& calls) {
  text = trim(text);
  constexpr std::string_view open = "<function=";
  constexpr std::string_view close = "</function>";
  if (!text.starts_with(open)) return parse_call_json(text, calls);
  text.remove_prefix(open.size());
  if (text.ends_with(close)) text.remove_suffix(close.size());
  return parse_function_tag(text, calls);
}

bool parse_python_tag(std::string_view text, ToolCalls& calls) {
  text = trim(text);
  if (text.empty()) return false;
  if (parse_call_list(text, calls)) return true;
  const std::size_t call = text.find(".call(");
  if (call != std::string_view::npos && is_name(text.substr(0, call)) && text.ends_with(')')) {
    constexpr std::size_t opening = 6;
    Json arguments = Json::object();
    if (parse_keywords(text.substr(call + opening, text.size() - call - opening - 1), arguments)) {
      calls.push_back({std::string(text.substr(0, call)), dump(arguments)});
      return true;
    }
  }
  calls.push_back({"python", dump(Json{{"code", std::string(text)}})});
  return true;
}

bool parse_mistral(std::string_view text, ToolCalls& calls) {
  text = trim(text);
  if (text.starts_with('[') || text.starts_with('{')) return parse_call_json(text, calls);
  auto name = take_until(text, "[ARGS]");
  if (!name) return false;
  std::string_view id;
  if (const std::size_t at = name->find("[CALL_ID]"); at != std::string_view::npos) {
    constexpr std::size_t mark = 9;
    id = trim(name->substr(at + mark));
    name = name->substr(0, at);
  }
  return parse_arguments(trim(*name), text, calls, id);
}

bool parse_deepseek(std::string_view text, ToolCalls& calls) {
  ToolCalls found;
  for (text = trim(text); !text.empty(); text = trim(text)) {
    constexpr std::string_view open = "<｜tool▁call▁begin｜>";
    if (!text.starts_with(open)) return false;
    text.remove_prefix(open.size());
    auto body = take_until(text, "<｜tool▁call▁end｜>");
    if (!body) {  // the last one may lack its end
      body = text;
      text = {};
    }
    const auto head = take_until(*body, "<｜tool▁sep｜>");
    if (!head) return false;
    if (trim(*head) == "function") {
      const auto name = take_until(*body, "\n");
      if (!name) return false;
      std::string_view json = trim(*body);
      constexpr std::string_view fence = "```";
      if (json.starts_with("```json")) json.remove_prefix(fence.size() + 4);
      if (json.ends_with(fence)) json.remove_suffix(fence.size());
      if (!parse_arguments(trim(*name), json, found)) return false;
    } else if (!parse_arguments(trim(*head), *body, found)) {
      return false;
    }
  }
  calls.insert(calls.end(), found.begin(), found.end());
  return !found.empty();
}

}  // namespace skald::inline v0::detail
