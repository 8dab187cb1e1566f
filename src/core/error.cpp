#include <skald/core/error.hpp>

#include <cstdio>

namespace skald::inline v0 {

namespace {

constexpr std::size_t max_message_bytes = 600;
constexpr std::size_t max_what_bytes = 1000;

std::string describe(std::string_view where, std::string_view message, const ErrorContext& context) {
  std::string out = "[" + std::string(where) + "] ";
  if (!context.file.empty()) out += printable(context.file) + ": ";
  if (context.offset) out += "offset " + std::to_string(*context.offset) + ": ";
  if (!context.path.empty()) out += printable(context.path) + ": ";
  if (!context.key.empty()) out += "key '" + printable(context.key, 80) + "': ";
  if (!context.tensor.empty()) out += "tensor '" + printable(context.tensor, 80) + "': ";
  if (context.layer) out += "layer " + std::to_string(*context.layer) + ": ";
  out += printable(message, max_message_bytes);
  return out.size() > max_what_bytes ? printable(out, max_what_bytes) : out;
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", static_cast<unsigned>(c));
      out += buffer;
    } else {
      out += c;
    }
  }
  out += '"';
}

void append_field(std::string& out, std::string_view name, std::string_view value) {
  if (value.empty()) return;
  out += ",\"";
  out += name;
  out += "\":";
  append_json_string(out, value);
}

}  // namespace

const char* library_version() noexcept {
#define SKALD_STRINGIFY_(x) #x
#define SKALD_STRINGIFY(x) SKALD_STRINGIFY_(x)
  return SKALD_STRINGIFY(SKALD_VERSION_MAJOR) "." SKALD_STRINGIFY(SKALD_VERSION_MINOR) "." SKALD_STRINGIFY(
      SKALD_VERSION_PATCH);
#undef SKALD_STRINGIFY
#undef SKALD_STRINGIFY_
}

std::string printable(std::string_view text, std::size_t max_bytes) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    std::size_t length = 1;
    if (c >= 0xC2 && c < 0xE0) length = 2;
    else if (c >= 0xE0 && c < 0xF0) length = 3;
    else if (c >= 0xF0 && c < 0xF5) length = 4;
    bool valid = i + length <= text.size() && (c < 0x80 || length > 1);
    for (std::size_t k = 1; valid && k < length; ++k)
      valid = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
    std::string piece;
    if (!valid || c < 0x20 || c == 0x7F || (c == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0)) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\x%02X", static_cast<unsigned>(c));
      piece = buffer;
      length = 1;
    } else {
      piece = text.substr(i, length);
    }
    if (out.size() + piece.size() > max_bytes) return out + "...";
    out += piece;
    i += length;
  }
  return out;
}

Error::Error(ErrorCode code, std::string_view where, std::string_view message, ErrorContext context)
    : std::runtime_error(describe(where, message, context)),
      code_(code),
      where_(where),
      message_(printable(message, max_message_bytes)),
      context_(std::move(context)) {}

Error::~Error() = default;
UsageError::~UsageError() = default;
FormatError::~FormatError() = default;
UnsupportedError::~UnsupportedError() = default;
IncompatibleError::~IncompatibleError() = default;
IoError::~IoError() = default;
OutOfMemoryError::~OutOfMemoryError() = default;
CancelledError::~CancelledError() = default;
NumericError::~NumericError() = default;

std::string Error::to_json() const {
  std::string out = "{\"code\":";
  append_json_string(out, to_string(code_));
  append_field(out, "where", where_);
  append_field(out, "message", message_);
  append_field(out, "file", printable(context_.file, 400));
  if (context_.offset) out += ",\"offset\":" + std::to_string(*context_.offset);
  append_field(out, "path", printable(context_.path, 400));
  append_field(out, "key", printable(context_.key));
  append_field(out, "tensor", printable(context_.tensor));
  if (context_.layer) out += ",\"layer\":" + std::to_string(*context_.layer);
  return out + "}";
}

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::usage: return "usage";
    case ErrorCode::format: return "format";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::incompatible: return "incompatible";
    case ErrorCode::io: return "io";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::cancelled: return "cancelled";
    case ErrorCode::numeric: return "numeric";
  }
  return "unknown";
}

void detail::throw_error(ErrorCode code, std::string_view where, std::string_view message, ErrorContext context) {
  switch (code) {
    case ErrorCode::usage: throw UsageError(where, message, std::move(context));
    case ErrorCode::format: throw FormatError(where, message, std::move(context));
    case ErrorCode::unsupported: throw UnsupportedError(where, message, std::move(context));
    case ErrorCode::incompatible: throw IncompatibleError(where, message, std::move(context));
    case ErrorCode::io: throw IoError(where, message, std::move(context));
    case ErrorCode::out_of_memory: throw OutOfMemoryError(where, message, std::move(context));
    case ErrorCode::cancelled: throw CancelledError(where, message, std::move(context));
    case ErrorCode::numeric: throw NumericError(where, message, std::move(context));
  }
  throw Error(code, where, message, std::move(context));
}

}  // namespace skald::inline v0
