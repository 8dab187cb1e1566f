#include <skald/text/tool_calls.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>

#include "text/tool_call_bodies.hpp"

namespace skald::inline v0 {
namespace {

constexpr std::string_view where = "text.tool_calls";
constexpr std::string_view space = " \t\r\n\f\v";
constexpr std::string_view between_calls = " \t\r\n\f\v;";

constexpr std::array<std::string_view, 8> format_names = {"none",         "hermes",      "llama3_json", "mistral",
                                                          "function_tag", "functionary", "deepseek",    "harmony"};

using Markers = std::span<const std::string_view>;

// What begins a call; empty where a call has no marker of its own.
std::string_view opener_of(ToolCallFormat format) noexcept {
  switch (format) {
    case ToolCallFormat::hermes: return "<tool_call>";
    case ToolCallFormat::llama3_json: return "<|python_tag|>";
    case ToolCallFormat::mistral: return "[TOOL_CALLS]";
    case ToolCallFormat::function_tag: return "<function=";
    case ToolCallFormat::functionary: return ">>>";
    case ToolCallFormat::deepseek: return "<｜tool▁calls▁begin｜>";
    case ToolCallFormat::none:
    case ToolCallFormat::harmony: break;
  }
  return {};
}

constexpr std::array<std::string_view, 1> hermes_closers = {"</tool_call>"};
constexpr std::array<std::string_view, 1> function_tag_closers = {"</function>"};
constexpr std::array<std::string_view, 1> functionary_closers = {">>>"};
constexpr std::array<std::string_view, 1> deepseek_closers = {"<｜tool▁calls▁end｜>"};
constexpr std::array<std::string_view, 4> harmony_closers = {"<|end|>", "<|call|>", "<|return|>", "<|start|>"};

Markers closers_of(ToolCallFormat format) noexcept {
  switch (format) {
    case ToolCallFormat::hermes: return hermes_closers;
    case ToolCallFormat::function_tag: return function_tag_closers;
    case ToolCallFormat::functionary: return functionary_closers;
    case ToolCallFormat::deepseek: return deepseek_closers;
    case ToolCallFormat::harmony: return harmony_closers;
    default: return {};
  }
}

struct Found {
  std::size_t at = std::string_view::npos;
  std::string_view marker;
};

// The leftmost marker, the longest of those.
Found find_first(std::string_view text, std::size_t from, Markers markers) {
  Found best;
  for (const std::string_view marker : markers) {
    const std::size_t at = text.find(marker, from);
    if (at < best.at || (at == best.at && at != std::string_view::npos && marker.size() > best.marker.size())) {
      best = {at, marker};
    }
  }
  return best;
}

// How much of the end of the text may be the beginning of a marker.
std::size_t unsure(std::string_view text, Markers markers) {
  std::size_t most = 0;
  for (const std::string_view marker : markers) {
    for (std::size_t size = std::min(marker.size() - 1, text.size()); size > most; --size) {
      if (text.ends_with(marker.substr(0, size))) most = size;
    }
  }
  return most;
}

}  // namespace

std::string_view to_string(ToolCallFormat format) noexcept {
  const auto i = static_cast<std::size_t>(format);
  return i < format_names.size() ? format_names[i] : "none";
}

ToolCallFormat tool_call_format(std::string_view name) {
  const auto found = std::ranges::find(format_names, name);
  if (found == format_names.end()) {
    std::string known;
    for (const std::string_view each : format_names) known.append(known.empty() ? "" : ", ").append(each);
    throw UsageError(where, "tool call format '" + printable(name) + "' is not known; known are " + known);
  }
  return static_cast<ToolCallFormat>(found - format_names.begin());
}

ToolCallFormat detect_tool_call_format(std::string_view chat_template) {
  const auto has = [&](std::string_view mark) { return chat_template.find(mark) != std::string_view::npos; };
  if (has("<|channel|>")) return ToolCallFormat::harmony;
  if (has("<｜tool▁calls▁begin｜>") || has("<｜tool▁call▁begin｜>")) return ToolCallFormat::deepseek;
  if (has("[TOOL_CALLS]")) return ToolCallFormat::mistral;
  if (has("<tool_call>")) return ToolCallFormat::hermes;
  if (has(">>>all")) return ToolCallFormat::functionary;
  if (has("<function=")) return ToolCallFormat::function_tag;
  if (has("<|python_tag|>") || (has("\"parameters\": ") && has("<|eom_id|>"))) return ToolCallFormat::llama3_json;
  return ToolCallFormat::none;
}

std::string AssistantMessage::tool_calls_json() const {
  if (tool_calls.empty()) return {};
  using Json = nlohmann::ordered_json;
  Json list = Json::array();
  for (const ToolCall& call : tool_calls) {
    Json entry = Json::object();
    if (!call.id.empty()) entry["id"] = call.id;
    entry["type"] = "function";
    Json arguments = Json::parse(call.arguments_json, nullptr, false);
    if (arguments.is_discarded()) arguments = call.arguments_json;
    entry["function"] = Json{{"name", call.name}, {"arguments", std::move(arguments)}};
    list.push_back(std::move(entry));
  }
  return list.dump(-1, ' ', false, Json::error_handler_t::replace);
}

struct MessageParser::Impl {
  enum class State { text, reasoning, call, recipient, header };

  explicit Impl(MessageParserOptions from) : options(std::move(from)) {
    const ToolCallFormat format = options.format;
    if (!options.reasoning_begin.empty()) begins.push_back(options.reasoning_begin);
    if (const auto opener = opener_of(format); !opener.empty()) openers.push_back(opener);
    if (format == ToolCallFormat::harmony) openers.assign(harmony_closers.begin(), harmony_closers.end());
    begins.insert(begins.end(), openers.begin(), openers.end());
    if (format == ToolCallFormat::functionary) state = State::recipient;
    if (format == ToolCallFormat::harmony) state = State::header;
    if (options.in_reasoning && format != ToolCallFormat::harmony) {
      state = State::reasoning;
      reasoned = true;
      drop = true;
    }
  }

  MessageParserOptions options;
  AssistantMessage message;
  std::vector<MessageEvent> events;
  std::vector<std::string_view> begins;   // what ends text at the start of the message
  std::vector<std::string_view> openers;  // what ends text later
  State state = State::text;
  std::string held;         // not understood yet
  std::string spaces;       // white space that may turn out to be dropped
  std::string opener;       // how the call or header began, as it was written
  std::string name;         // of the call, where it stands before the body
  std::size_t scanned = 0;  // of `held`: in a call, or white space at the start of text or reasoning
  detail::JsonEnd json_end;
  bool bare = false;      // the call is an object without a marker
  bool drop = false;      // white space that comes next is dropped
  bool reasoned = false;  // reasoning comes once
  bool last = false;      // no more text will come

  // --- output

  void emit(MessageEvent::Kind kind, std::string text) {
    if (text.empty()) return;
    (kind == MessageEvent::Kind::content ? message.content : message.reasoning_content) += text;
    if (!events.empty() && events.back().kind == kind) events.back().text += text;
    else events.push_back({kind, std::move(text)});
  }
  void say(MessageEvent::Kind kind, std::string_view text) {
    const std::size_t begin = text.find_first_not_of(space);
    if (begin == std::string_view::npos) {
      if (!drop) spaces += text;
      return;
    }
    if (drop) text.remove_prefix(begin);
    drop = false;
    const std::size_t end = text.find_last_not_of(space) + 1;
    emit(kind, std::exchange(spaces, std::string(text.substr(end))).append(text.substr(0, end)));
  }
  void content(std::string_view text) { say(MessageEvent::Kind::content, text); }
  void border() {
    spaces.clear();
    drop = true;
  }

  // --- states; each returns false when it needs more text

  [[nodiscard]] bool at_start() const noexcept { return message.content.empty(); }

  bool in_text() {
    if (options.format == ToolCallFormat::llama3_json && at_start()) {
      const std::size_t begin = held.find_first_not_of(message.tool_calls.empty() ? space : between_calls, scanned);
      scanned = begin == std::string::npos ? held.size() : 0;
      if (begin == std::string::npos) {
        if (last && message.tool_calls.empty()) content(held);
        if (last) held.clear();
        return false;
      }
      if (held[begin] == '{') {
        opener = held.substr(0, begin);
        held.erase(0, begin);
        begin_call(true);
        return true;
      }
    }
    const Markers markers = at_start() && !reasoned && message.tool_calls.empty() ? begins : openers;
    Found found = find_first(held, 0, markers);
    bool reasoning = !options.reasoning_begin.empty() && found.marker == options.reasoning_begin;
    // Reasoning begins a message: behind text, its marker is text, and an opener may begin inside it.
    if (reasoning && held.find_first_not_of(space) < found.at) {
      found = find_first(held, 0, openers);
      reasoning = false;
    }
    if (found.at == std::string_view::npos) {
      const std::size_t keep = last ? 0 : unsure(held, markers);
      content(std::string_view(held).substr(0, held.size() - keep));
      held.erase(0, held.size() - keep);
      return false;
    }
    const std::string marker(found.marker);
    content(std::string_view(held).substr(0, found.at));
    held.erase(0, found.at);
    begin_marked(marker, reasoning);
    return true;
  }

  void begin_marked(const std::string& marker, bool reasoning) {
    held.erase(0, marker.size());
    opener = marker;
    if (reasoning) {
      state = State::reasoning;
      reasoned = true;
      scanned = 0;
      border();
    } else if (options.format == ToolCallFormat::harmony) {
      border();
      opener.clear();
      if (marker == "<|start|>") held.insert(0, marker);
      state = State::header;
    } else if (options.format == ToolCallFormat::functionary) {
      state = State::recipient;
    } else {
      begin_call(false);
    }
  }

  void begin_call(bool without_marker) {
    state = State::call;
    bare = without_marker;
    scanned = 0;
    json_end = {};
  }

  bool in_reasoning() {
    // Where the prompt began the reasoning, some models begin it again.
    if (message.reasoning_content.empty() && !options.reasoning_begin.empty()) {
      const std::size_t begin = std::min(held.find_first_not_of(space, scanned), held.size());
      const std::string_view rest = std::string_view(held).substr(begin);
      scanned = begin;
      if (rest.starts_with(options.reasoning_begin)) {
        held.erase(0, begin + options.reasoning_begin.size());
        scanned = 0;
        return true;
      }
      if (!last && std::string_view(options.reasoning_begin).starts_with(rest)) return false;
    }
    const std::array<std::string_view, 1> markers = {options.reasoning_end};
    const Found found = find_first(held, 0, markers);
    const bool more = found.at == std::string_view::npos;
    const std::size_t size = more ? held.size() - (last ? 0 : unsure(held, markers)) : found.at;
    say(MessageEvent::Kind::reasoning, std::string_view(held).substr(0, size));
    held.erase(0, more ? size : size + options.reasoning_end.size());
    scanned = 0;
    if (more) return false;
    border();
    state = State::text;
    return true;
  }

  // Takes the body of the call off `held` if it is complete: its size, and the size of what closes it.
  bool body_complete(std::size_t& size, std::size_t& closing) {
    closing = 0;
    if (const Markers closers = closers_of(options.format); !closers.empty()) {
      std::size_t longest = 0;
      for (const std::string_view closer : closers) longest = std::max(longest, closer.size());
      const Found found = find_first(held, scanned, closers);
      scanned = held.size() > longest ? held.size() - longest : 0;
      size = found.at;
      closing = found.marker.size();
      return found.at != std::string_view::npos;
    }
    if (options.format == ToolCallFormat::llama3_json && !bare) return false;  // code has no end
    if (options.format == ToolCallFormat::mistral && scanned == 0) {
      const std::size_t begin = held.find_first_not_of(space);
      if (begin == std::string::npos) return false;
      if (held[begin] != '[' && held[begin] != '{') {
        constexpr std::string_view mark = "[ARGS]";
        const std::size_t at = held.find(mark);
        if (at == std::string::npos) return false;
        scanned = at + mark.size();
      }
    }
    for (; scanned < held.size(); ++scanned) {
      if (!json_end.push(held[scanned])) continue;
      size = ++scanned;
      return true;
    }
    return false;
  }

  bool parse_body(std::string_view body, detail::ToolCalls& calls) {
    switch (options.format) {
      case ToolCallFormat::hermes: return detail::parse_hermes(body, calls);
      case ToolCallFormat::llama3_json:
        return bare ? detail::parse_call_json(body, calls) : detail::parse_python_tag(body, calls);
      case ToolCallFormat::mistral: return detail::parse_mistral(body, calls);
      case ToolCallFormat::function_tag: return detail::parse_function_tag(body, calls);
      case ToolCallFormat::deepseek: return detail::parse_deepseek(body, calls);
      case ToolCallFormat::functionary:
      case ToolCallFormat::harmony:
        if (detail::parse_arguments(name, body, calls)) return true;
        if (name != "python") return false;
        calls.push_back({name, nlohmann::json{{"code", std::string(detail::trim(body))}}.dump(
                                   -1, ' ', false, nlohmann::json::error_handler_t::replace)});
        return true;
      case ToolCallFormat::none: break;
    }
    return false;
  }

  bool in_call() {
    std::size_t size = 0;
    std::size_t closing = 0;
    const bool complete = body_complete(size, closing);
    if (!complete && !last && held.size() <= options.max_call_bytes) return false;
    if (!complete) {
      size = held.size();
      closing = 0;
    }
    detail::ToolCalls calls;
    const std::string_view body = std::string_view(held).substr(0, size);
    const std::string closer = held.substr(size, closing);
    const bool good = (complete || last) && size <= options.max_call_bytes && parse_body(body, calls);
    if (good) {
      border();
      for (ToolCall& call : calls) {
        message.tool_calls.push_back(call);
        events.push_back({MessageEvent::Kind::tool_call, {}, std::move(call)});
      }
    } else {
      content(opener);
      content(body);
      const bool separator = options.format == ToolCallFormat::functionary || closer == "<|start|>";
      if (!separator) content(closer);
    }
    held.erase(0, size + closing);
    opener.clear();
    after_call(closer);
    return true;
  }

  void after_call(const std::string& closer) {
    state = State::text;
    scanned = 0;
    if (options.format == ToolCallFormat::functionary && closer == ">>>") {
      opener = closer;
      state = State::recipient;
    }
    if (options.format == ToolCallFormat::harmony && !closer.empty()) {
      if (closer == "<|start|>") held.insert(0, closer);
      state = State::header;
    }
  }

  // The line before a part of a Functionary answer.
  bool in_recipient() {
    if (opener.empty() && std::string_view(held).starts_with(">>>")) {
      opener = ">>>";
      held.erase(0, opener.size());
    } else if (opener.empty() && !last && std::string_view(">>>").starts_with(held)) {
      return false;
    }
    constexpr std::size_t longest = 256;
    const std::size_t end = held.find('\n');
    if (end == std::string::npos && !last && held.size() <= longest) return false;
    const std::string line = held.substr(0, std::min(end, longest));
    const bool good = end <= longest && !line.empty() && line.find_first_of(" \t<>{}") == std::string::npos;
    if (!good) {
      content(std::exchange(opener, {}));
      state = State::text;
      return !held.empty();
    }
    held.erase(0, end + 1);
    if (line == "all") {
      opener.clear();
      state = State::text;
    } else {
      opener += line + "\n";
      name = line;
      begin_call(false);
    }
    return true;
  }

  // What stands before `<|message|>` in an answer of channels.
  bool in_header() {
    constexpr std::string_view mark = "<|message|>";
    constexpr std::size_t longest = 1024;
    const std::size_t end = held.find(mark);
    const std::size_t begin = std::min(held.find_first_not_of(space), held.size());
    const std::string_view rest = std::string_view(held).substr(begin, 2);
    const bool plain = !std::string_view("<|").starts_with(rest);
    if (end > longest && !plain && !last && held.size() < longest + mark.size()) return false;
    if (plain || end > longest) {
      state = State::text;
      if (plain) return true;
      // An answer may break off after the beginning of a message.
      const std::string_view whole = detail::trim(held);
      const bool nothing = last && std::string_view("<|start|>assistant").starts_with(whole);
      const std::size_t size = std::min(held.size(), longest);
      if (!nothing) content(std::string_view(held).substr(0, size));
      held.erase(0, nothing ? held.size() : size);
      return !held.empty();
    }
    const std::string header = held.substr(0, end);
    held.erase(0, end + mark.size());
    begin_message(header);
    return true;
  }

  void begin_message(const std::string& header) {
    const auto value_of = [&](std::string_view key) -> std::string {
      const std::size_t at = header.find(key);
      if (at == std::string::npos) return {};
      const std::size_t begin = at + key.size();
      return header.substr(begin, std::min(header.find_first_of(" \t\r\n<", begin), header.size()) - begin);
    };
    name = value_of("to=");
    if (name.starts_with("functions.")) name.erase(0, std::string_view("functions.").size());
    border();
    if (!name.empty()) {
      opener = header + "<|message|>";
      begin_call(false);
    } else {
      state = value_of("<|channel|>") == "analysis" ? State::reasoning : State::text;
    }
  }

  // Reasoning and text of channels end in the same ways.
  bool in_channel() {
    const Markers markers = closers_of(options.format);
    const Found found = find_first(held, 0, markers);
    const bool more = found.at == std::string_view::npos;
    const std::size_t size = more ? held.size() - (last ? 0 : unsure(held, markers)) : found.at;
    say(state == State::reasoning ? MessageEvent::Kind::reasoning : MessageEvent::Kind::content,
        std::string_view(held).substr(0, size));
    held.erase(0, size);
    if (!more) begin_marked(std::string(found.marker), false);
    return !more;
  }

  bool step() {
    if (options.format == ToolCallFormat::harmony && (state == State::text || state == State::reasoning)) {
      return in_channel();
    }
    switch (state) {
      case State::text: return in_text();
      case State::reasoning: return in_reasoning();
      case State::call: return in_call();
      case State::recipient: return in_recipient();
      case State::header: return in_header();
    }
    return false;
  }

  std::vector<MessageEvent> run() {
    while ((!held.empty() || (last && state == State::call)) && step()) {
    }
    return std::exchange(events, {});
  }
};

MessageParser::MessageParser(MessageParserOptions options) {
  if (!options.reasoning_begin.empty() && options.reasoning_end.empty()) {
    throw UsageError(where,
                     "reasoning_begin is '" + printable(options.reasoning_begin) + "' but reasoning_end is empty");
  }
  if (options.in_reasoning && options.reasoning_end.empty()) {
    throw UsageError(where, "in_reasoning is set but reasoning_end is empty");
  }
  impl_ = std::make_unique<Impl>(std::move(options));
}

MessageParser::~MessageParser() = default;
MessageParser::MessageParser(MessageParser&&) noexcept = default;
MessageParser& MessageParser::operator=(MessageParser&&) noexcept = default;

std::vector<MessageEvent> MessageParser::push(std::string_view text) {
  impl_->held += text;
  return impl_->run();
}

std::vector<MessageEvent> MessageParser::finish() {
  impl_->last = true;
  auto events = impl_->run();
  if (impl_->state == Impl::State::recipient && !impl_->opener.empty()) impl_->content(impl_->opener);
  if (!impl_->spaces.empty()) {
    const bool reasoning = impl_->state == Impl::State::reasoning;
    // White space at the end of reasoning that never ended means nothing.
    if (!reasoning) impl_->emit(MessageEvent::Kind::content, std::exchange(impl_->spaces, {}));
  }
  for (MessageEvent& event : impl_->events) events.push_back(std::move(event));
  impl_->events.clear();
  return events;
}

const AssistantMessage& MessageParser::message() const noexcept { return impl_->message; }

AssistantMessage parse_message(std::string_view text, MessageParserOptions options) {
  MessageParser parser(std::move(options));
  (void)parser.push(text);
  (void)parser.finish();
  return parser.message();
}

}  // namespace skald::inline v0
