#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Kind of failure. Every kind has an exception class of its own below.
enum class ErrorCode {
  usage,          ///< the caller broke a documented precondition
  format,         ///< a file or text is malformed
  unsupported,    ///< well-formed, but skald has no implementation for it
  incompatible,   ///< parts that cannot work together
  io,             ///< the operating system refused to read or write
  out_of_memory,  ///< a budget or the allocator refused
  cancelled,      ///< a stop token was triggered
  numeric,        ///< a value that must be finite is not
};

/// Where the failure lies. Fields that do not apply stay empty.
struct ErrorContext {
  std::string file{};                     ///< name of the file or byte source
  std::optional<std::uint64_t> offset{};  ///< byte offset in `file`
  std::string path{};                     ///< JSON path or template line, e.g. "$.model.merges[3]"
  std::string key{};                      ///< metadata key
  std::string tensor{};                   ///< tensor name
  std::optional<int> layer{};             ///< layer index, from 0
};

/// Base of everything skald throws. `what()` is one line of at most 1 KiB:
/// `[room.function] file: offset N: key 'k': tensor 't': layer L: message`, control characters escaped.
class SKALD_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string_view where, std::string_view message, ErrorContext context = {});
  ~Error() override;

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  /// Room and function that refused, e.g. "model.gguf".
  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  /// The message alone, without place and context.
  [[nodiscard]] const std::string& message() const noexcept { return message_; }
  [[nodiscard]] const ErrorContext& context() const noexcept { return context_; }
  /// The error as one JSON object: code, where, message and the context fields that are set.
  [[nodiscard]] std::string to_json() const;

 private:
  ErrorCode code_;
  std::string where_;
  std::string message_;
  ErrorContext context_;
};

// NOLINTBEGIN(bugprone-macro-parentheses)
#define SKALD_DEFINE_ERROR(Name, code_value)                                                  \
  class SKALD_API Name : public Error {                                                       \
   public:                                                                                    \
    Name(std::string_view where, std::string_view message, ErrorContext context = {})         \
        : Error(ErrorCode::code_value, where, message, static_cast<ErrorContext&&>(context)) {} \
    ~Name() override;                                                                         \
  }
/// The caller broke a documented precondition.
SKALD_DEFINE_ERROR(UsageError, usage);
/// A model file, tokenizer file, template or session file is malformed.
SKALD_DEFINE_ERROR(FormatError, format);
/// Well-formed input that asks for something skald does not implement; the message names it.
SKALD_DEFINE_ERROR(UnsupportedError, unsupported);
/// Components that cannot be combined; the message names both and the reason.
SKALD_DEFINE_ERROR(IncompatibleError, incompatible);
/// Reading or writing failed.
SKALD_DEFINE_ERROR(IoError, io);
/// A memory budget or the allocator refused; the message gives bytes needed and available.
SKALD_DEFINE_ERROR(OutOfMemoryError, out_of_memory);
/// A stop token was triggered.
SKALD_DEFINE_ERROR(CancelledError, cancelled);
/// A value that must be finite is not.
SKALD_DEFINE_ERROR(NumericError, numeric);
#undef SKALD_DEFINE_ERROR
// NOLINTEND(bugprone-macro-parentheses)

/// Name of a code, e.g. "format".
[[nodiscard]] SKALD_API std::string_view to_string(ErrorCode code) noexcept;

/// Escapes control characters and cuts after `max_bytes` (on a UTF-8 border): what may appear in messages.
[[nodiscard]] SKALD_API std::string printable(std::string_view text, std::size_t max_bytes = 200);

namespace detail {
/// Throws the class that belongs to `code`. All throws of the library go through here or a class above.
[[noreturn]] SKALD_API void throw_error(ErrorCode code, std::string_view where, std::string_view message,
                                        ErrorContext context = {});
}  // namespace detail

}  // namespace skald::inline v0
