#include "model/huggingface/text_files.hpp"

#include <filesystem>
#include <map>

#include <fmt/format.h>

#include <skald/core/byte_source.hpp>
#include <skald/core/error.hpp>

namespace skald::inline v0::huggingface {

namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t most_bytes = std::uint64_t{256} << 20;

class TextFiles {
 public:
  TextFiles(const std::string& folder, const Config& config, Metadata& metadata)
      : folder_(folder), config_(config), metadata_(metadata) {}

  void run() && {
    read_tokenizer();
    const auto generation = parse("generation_config.json");
    const auto tokenizer = parse("tokenizer_config.json");
    ids(generation);
    if (tokenizer) {
      tokenizer_config(*tokenizer);
      metadata_.set("tokenizer.huggingface.config_json", text("tokenizer_config.json"));
    }
    if (generation) sampling(Config(*generation, path("generation_config.json")));
    if (exists("chat_template.jinja")) metadata_.set("tokenizer.chat_template", text("chat_template.jinja"));
    if (const auto pooling = parse("1_Pooling/config.json")) read_pooling(Config(*pooling, path("1_Pooling/config.json")));
  }

 private:
  [[nodiscard]] std::string path(std::string_view name) const { return (fs::path(folder_) / name).string(); }
  [[nodiscard]] bool exists(std::string_view name) const {
    std::error_code error;
    return fs::is_regular_file(path(name), error);
  }
  [[nodiscard]] std::string text(std::string_view name) const {
    const AnyByteSource source = open_file(path(name));
    if (source.size() > most_bytes)
      throw FormatError("model.huggingface",
                        fmt::format("the file has {} bytes, allowed is up to {}", source.size(), most_bytes),
                        {.file = path(name)});
    std::string result(static_cast<std::size_t>(source.size()), '\0');
    source.read(0, std::as_writable_bytes(std::span(result.data(), result.size())));
    return result;
  }
  [[nodiscard]] std::optional<json::Value> parse(std::string_view name) const {
    if (!exists(name)) return {};
    return json::parse(text(name), path(name));
  }

  void read_tokenizer() {
    if (!exists("tokenizer.json")) return;
    std::string whole = text("tokenizer.json");
    const json::Value root = json::parse(whole, path("tokenizer.json"));
    if (const json::Value* added = root.find("added_tokens"); added && added->array())
      for (const json::Value& token : *added->array()) {
        const json::Value* content = token.find("content");
        const json::Value* id = token.find("id");
        if (content && content->text() && id && id->integer()) token_ids_[*content->text()] = *id->integer();
      }
    if (const json::Value* model = root.find("model"))
      if (const json::Value* vocabulary = model->find("vocab"); vocabulary && vocabulary->object())
        for (const json::Member& member : *vocabulary->object())
          if (const auto id = member.value.integer()) token_ids_.emplace(member.key, *id);
    metadata_.set("tokenizer.huggingface.json", std::move(whole));
  }

  /// Ids beyond the vocabulary are defaults of the class that nobody adapted to a small one: they mean nothing.
  [[nodiscard]] bool is_token(std::int64_t id) const {
    const auto size = metadata_.find_u64(metadata_.get_string("general.architecture") + ".vocab_size");
    return id >= 0 && id <= INT32_MAX && (!size || static_cast<std::uint64_t>(id) < *size);
  }
  void set_id(std::string_view role, std::int64_t id) {
    if (is_token(id))
      metadata_.set(fmt::format("tokenizer.ggml.{}_token_id", role), static_cast<std::uint32_t>(id));
  }

  /// Ids of config.json, or those of generation_config.json, which come later.
  void ids(const std::optional<json::Value>& generation) {
    for (const bool second : {false, true}) {
      if (second && !generation) break;
      const Config source = second ? Config(*generation, path("generation_config.json")) : config_;
      for (const auto& [name, role] : {std::pair{"bos_token_id", "bos"}, {"pad_token_id", "padding"}})
        if (const auto* value = source.find({name}))
          if (const auto id = value->integer()) set_id(role, *id);
      const auto* end = source.find({"eos_token_id"});
      if (!end) continue;
      if (const auto id = end->integer()) set_id("eos", *id);
      const auto* list = end->array();
      if (!list || list->empty()) continue;
      std::vector<std::int32_t> all;
      for (const json::Value& each : *list)
        if (const auto id = each.integer(); id && is_token(*id)) all.push_back(static_cast<std::int32_t>(*id));
      if (all.empty()) continue;
      set_id("eos", all.front());
      metadata_.set("tokenizer.ggml.eos_token_ids", MetadataArray{std::move(all)});
    }
  }

  void tokenizer_config(const json::Value& root) {
    const Config tokenizer(root, path("tokenizer_config.json"));
    for (const auto& [name, key] : {std::pair{"add_bos_token", "add_bos_token"}, {"add_eos_token", "add_eos_token"},
                                    {"add_prefix_space", "add_space_prefix"}})
      if (tokenizer.has({name})) metadata_.set(fmt::format("tokenizer.ggml.{}", key), tokenizer.flag_or({name}, false));
    for (const auto& [name, role] : {std::pair{"bos_token", "bos"}, {"eos_token", "eos"}, {"unk_token", "unknown"},
                                     {"pad_token", "padding"}, {"sep_token", "seperator"}, {"cls_token", "cls"},
                                     {"mask_token", "mask"}}) {
      const json::Value* token = root.find(name);
      if (token && token->object()) token = token->find("content");  // written with its properties
      if (!token || !token->text()) continue;
      const auto at = token_ids_.find(*token->text());
      if (at != token_ids_.end()) set_id(role, at->second);
    }
    const json::Value* chat = root.find("chat_template");
    if (!chat) return;
    if (chat->text()) metadata_.set("tokenizer.chat_template", *chat->text());
    if (!chat->array()) return;
    for (const json::Value& each : *chat->array()) {  // several, by name
      const json::Value* name = each.find("name");
      const json::Value* body = each.find("template");
      if (name && body && name->text() && body->text() && *name->text() == "default")
        metadata_.set("tokenizer.chat_template", *body->text());
    }
  }

  void sampling(const Config& generation) {
    if (!generation.flag_or({"do_sample"}, false)) return;
    for (const auto& [name, key] :
         {std::pair{"temperature", "temp"}, {"top_p", "top_p"}, {"min_p", "min_p"}, {"repetition_penalty", "penalty_repeat"}})
      if (const auto value = generation.find_number({name}))
        metadata_.set(fmt::format("general.sampling.{}", key), static_cast<float>(*value));
    if (const auto top = generation.find_integer({"top_k"}); top && *top >= 0 && *top <= INT32_MAX)
      metadata_.set("general.sampling.top_k", static_cast<std::int32_t>(*top));
  }

  void read_pooling(const Config& pooling) {
    const std::string key = metadata_.get_string("general.architecture") + ".pooling_type";
    if (pooling.flag_or({"pooling_mode_cls_token"}, false)) metadata_.set(key, std::uint32_t{2});
    else if (pooling.flag_or({"pooling_mode_mean_tokens"}, false)) metadata_.set(key, std::uint32_t{1});
    else if (pooling.flag_or({"pooling_mode_lasttoken"}, false)) metadata_.set(key, std::uint32_t{3});
  }

  const std::string& folder_;
  const Config& config_;
  Metadata& metadata_;
  std::map<std::string, std::int64_t, std::less<>> token_ids_;
};

}  // namespace

void add_text_files(const std::string& folder, const Config& config, Metadata& metadata) {
  TextFiles(folder, config, metadata).run();
}

}  // namespace skald::inline v0::huggingface
