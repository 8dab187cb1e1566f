#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <skald/model/metadata.hpp>

#include "model/json.hpp"

namespace skald::inline v0::huggingface {

using Names = std::initializer_list<std::string_view>;

/// config.json with typed access: the first of several names that is there counts. Every error names file and path.
class Config {
 public:
  Config(const json::Value& root, std::string file, std::string path = "$")
      : root_(&root), file_(std::move(file)), path_(std::move(path)) {}

  [[nodiscard]] const std::string& file() const noexcept { return file_; }
  [[nodiscard]] const json::Value* find(Names names) const;
  [[nodiscard]] bool has(Names names) const { return find(names) != nullptr; }
  [[nodiscard]] std::optional<std::int64_t> find_integer(Names names) const;
  [[nodiscard]] std::int64_t integer(Names names) const;
  [[nodiscard]] std::int64_t integer_or(Names names, std::int64_t otherwise) const {
    return find_integer(names).value_or(otherwise);
  }
  [[nodiscard]] std::optional<double> find_number(Names names) const;
  [[nodiscard]] double number_or(Names names, double otherwise) const { return find_number(names).value_or(otherwise); }
  [[nodiscard]] bool flag_or(Names names, bool otherwise) const;
  [[nodiscard]] std::string text_or(Names names, std::string_view otherwise) const;
  [[nodiscard]] std::vector<float> numbers(std::string_view name) const;
  /// An object inside, or nothing.
  [[nodiscard]] std::optional<Config> object(Names names) const;
  [[noreturn]] void fail(std::string_view name, std::string_view message) const;
  [[noreturn]] void unsupported(std::string_view name, std::string_view message) const;

 private:
  [[nodiscard]] std::pair<std::string_view, const json::Value*> locate(Names names) const;
  const json::Value* root_;
  std::string file_;
  std::string path_;
};

/// What config.json says, as the keys of a GGUF file, and tensors that it states as numbers.
struct ConfigReading {
  Metadata metadata;
  std::vector<std::pair<std::string, std::vector<float>>> tensors;
};
/// `architecture` is that of GGUF files; `model_type` that of config.json.
[[nodiscard]] ConfigReading read_config(const Config& config, std::string_view architecture,
                                        std::string_view model_type);

}  // namespace skald::inline v0::huggingface
