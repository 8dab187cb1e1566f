#include "model/huggingface/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include <fmt/format.h>

#include <skald/core/error.hpp>

namespace skald::inline v0::huggingface {

namespace {
constexpr std::string_view place = "model.huggingface";
}  // namespace

std::pair<std::string_view, const json::Value*> Config::locate(Names names) const {
  for (const std::string_view name : names)
    if (const json::Value* value = root_->find(name)) return {name, value};
  return {*names.begin(), nullptr};
}

const json::Value* Config::find(Names names) const { return locate(names).second; }

std::optional<std::int64_t> Config::find_integer(Names names) const {
  const auto [name, value] = locate(names);
  if (!value) return {};
  if (const auto integer = value->integer()) return integer;
  fail(name, fmt::format("found {}, allowed is an integer", value->kind()));
}

std::int64_t Config::integer(Names names) const {
  if (const auto value = find_integer(names)) return *value;
  fail(*names.begin(), "the required value is missing");
}

std::optional<double> Config::find_number(Names names) const {
  const auto [name, value] = locate(names);
  if (!value) return {};
  if (const auto number = value->number(); number && std::isfinite(*number)) return number;
  fail(name, fmt::format("found {}, allowed is a number", value->kind()));
}

bool Config::flag_or(Names names, bool otherwise) const {
  const auto [name, value] = locate(names);
  if (!value) return otherwise;
  if (const auto flag = value->boolean()) return *flag;
  fail(name, fmt::format("found {}, allowed is a boolean", value->kind()));
}

std::string Config::text_or(Names names, std::string_view otherwise) const {
  const auto [name, value] = locate(names);
  if (!value) return std::string(otherwise);
  if (const auto* text = value->text()) return *text;
  fail(name, fmt::format("found {}, allowed is a string", value->kind()));
}

std::vector<float> Config::numbers(std::string_view name) const {
  const json::Value* value = root_->find(name);
  if (!value || !value->array())
    fail(name, fmt::format("found {}, allowed is an array of numbers", value ? value->kind() : "nothing"));
  std::vector<float> result;
  for (const json::Value& each : *value->array()) {
    const auto number = each.number();
    if (!number || !std::isfinite(*number)) fail(name, fmt::format("found {}, allowed is a number", each.kind()));
    result.push_back(static_cast<float>(*number));
  }
  return result;
}

std::optional<Config> Config::object(Names names) const {
  const auto [name, value] = locate(names);
  if (!value) return {};
  if (!value->object()) fail(name, fmt::format("found {}, allowed is an object", value->kind()));
  return Config(*value, file_, path_ + "." + std::string(name));
}

void Config::fail(std::string_view name, std::string_view message) const {
  throw FormatError(place, message, {.file = file_, .path = path_ + "." + std::string(name)});
}

void Config::unsupported(std::string_view name, std::string_view message) const {
  throw UnsupportedError(place, message, {.file = file_, .path = path_ + "." + std::string(name)});
}

namespace {

// Translates one config.json.
class Translator {
 public:
  Translator(const Config& config, std::string_view architecture, std::string_view model_type)
      : config_(config), architecture_(architecture), type_(model_type), result_{Metadata(config.file()), {}} {}

  ConfigReading run() && {
    result_.metadata.set("general.architecture", std::string(architecture_));
    result_.metadata.set("general.type", std::string("model"));
    sizes();
    norms();
    experts();
    if (is_deepseek()) latent();
    rotation();
    windows();
    own();
    return std::move(result_);
  }

 private:
  void set(std::string_view key, std::int64_t value, std::string_view source) {
    if (value < 0 || value > std::numeric_limits<std::uint32_t>::max())
      config_.fail(source, fmt::format("found {}, allowed is 0 to {}", value, std::numeric_limits<std::uint32_t>::max()));
    result_.metadata.set(fmt::format("{}.{}", architecture_, key), static_cast<std::uint32_t>(value));
  }
  void set(std::string_view key, double value) {
    result_.metadata.set(fmt::format("{}.{}", architecture_, key), static_cast<float>(value));
  }
  void set_flag(std::string_view key, bool value) {
    result_.metadata.set(fmt::format("{}.{}", architecture_, key), value);
  }
  void copy_integer(std::string_view key, Names names) {
    if (const auto value = config_.find_integer(names)) set(key, *value, *names.begin());
  }
  void copy_number(std::string_view key, Names names) {
    if (const auto value = config_.find_number(names)) set(key, *value);
  }
  [[nodiscard]] bool is(Names types) const { return std::ranges::find(types, type_) != types.end(); }

  void sizes() {
    set("context_length",
        config_.integer({"max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"}) - padding_rows(),
        "max_position_embeddings");
    dim_ = config_.integer({"hidden_size", "n_embd", "d_model", "n_embed"});
    heads_ = config_.integer({"num_attention_heads", "n_head", "n_heads"});
    if (dim_ < 1 || heads_ < 1 || dim_ > (std::int64_t{1} << 30)) config_.fail("hidden_size", "the sizes are not positive");
    set("embedding_length", dim_, "hidden_size");
    set("block_count", config_.integer({"num_hidden_layers", "n_layer", "n_layers"}), "num_hidden_layers");
    set("attention.head_count", heads_, "num_attention_heads");
    auto kv_heads = config_.find_integer({"num_key_value_heads", "n_kv_heads", "num_kv_heads", "n_head_kv"});
    if (is({"falcon"}) && !config_.flag_or({"new_decoder_architecture"}, false))
      kv_heads = config_.flag_or({"multi_query"}, true) ? 1 : heads_;
    if (const auto attention = config_.object({"attn_config"}))
      if (const auto own = attention->find_integer({"kv_n_heads"})) kv_heads = own;
    if (is_deepseek()) kv_heads = 1;  // one latent row for all heads
    set("attention.head_count_kv", kv_heads.value_or(heads_), "num_key_value_heads");
    auto width = config_.find_integer({"intermediate_size", "n_inner", "ffn_hidden_size"});
    if (width) set("feed_forward_length", *width, "intermediate_size");  // else from the tensors
    head_dim_ = config_.find_integer({"head_dim"}).value_or(dim_ / heads_);
    if (config_.has({"head_dim"}) && !is({"granite", "granitemoe", "granitemoeshared"}) && !is_deepseek()) {
      set("attention.key_length", head_dim_, "head_dim");
      set("attention.value_length", head_dim_, "head_dim");
    }
    if (const auto size = config_.find_integer({"vocab_size"})) set("vocab_size", *size, "vocab_size");
  }

  /// RoBERTa's positions begin behind the row of its padding token.
  [[nodiscard]] std::int64_t padding_rows() {
    if (!is_roberta()) return 0;
    const std::int64_t padding = config_.integer_or({"pad_token_id"}, 1);
    if (padding < 0 || padding > 65535) config_.fail("pad_token_id", fmt::format("found {}, allowed is 0 to 65535", padding));
    result_.metadata.set("tokenizer.ggml.padding_token_id", static_cast<std::uint32_t>(padding));
    return padding + 1;
  }
  [[nodiscard]] bool is_roberta() const { return is({"camembert", "roberta", "xlm-roberta"}); }

  void norms() {
    copy_number("attention.layer_norm_rms_epsilon", {"rms_norm_eps"});
    copy_number("attention.layer_norm_epsilon", {"layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"});
    // Where the class has a default that files leave out.
    if (is({"mpt", "gpt2", "bloom", "falcon", "gpt_neox"}) &&
        !config_.has({"layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"}))
      set("attention.layer_norm_epsilon", 1e-5);
    if (is({"olmoe"}) && !config_.has({"rms_norm_eps"})) set("attention.layer_norm_rms_epsilon", 1e-5);
  }

  void experts() {
    copy_integer("expert_count", {"num_local_experts", "num_experts", "n_routed_experts"});
    copy_integer("expert_used_count", {"num_experts_per_tok", "experts_per_token"});
    if (is_deepseek()) deepseek_experts();
    if (is({"gpt_oss"})) {
      copy_integer("expert_feed_forward_length", {"intermediate_size"});
      if (config_.number_or({"swiglu_limit"}, 7.0) != 7.0) config_.unsupported("swiglu_limit", "only 7 is implemented");
    }
    if (is({"qwen2_moe", "qwen3_moe"})) {
      copy_integer("expert_feed_forward_length", {"moe_intermediate_size"});
      copy_integer("expert_shared_feed_forward_length", {"shared_expert_intermediate_size"});
      if (config_.flag_or({"norm_topk_prob"}, false) != is({"qwen3_moe"}))
        config_.unsupported("norm_topk_prob", "only the value of the published models of this type is implemented");
      if (const auto* layers = config_.find({"mlp_only_layers"}); layers && layers->array() && !layers->array()->empty())
        config_.unsupported("mlp_only_layers", "layers without experts are not implemented for this type");
    }
    if (is({"granitemoe", "granitemoeshared"})) copy_integer("expert_shared_feed_forward_length", {"shared_intermediate_size"});
  }

  [[nodiscard]] bool is_deepseek() const { return is({"deepseek_v2", "deepseek_v3"}); }

  void deepseek_experts() {
    const bool third = is({"deepseek_v3"});
    copy_integer("expert_feed_forward_length", {"moe_intermediate_size"});
    copy_integer("expert_shared_count", {"n_shared_experts"});
    copy_integer("leading_dense_block_count", {"first_k_dense_replace"});
    copy_integer("expert_group_count", {"n_group"});
    copy_integer("expert_group_used_count", {"topk_group"});
    copy_number("expert_weights_scale", {"routed_scaling_factor"});
    const bool norm = config_.flag_or({"norm_topk_prob"}, third);
    // The published code of the second generation then leaves the factor out, later code the division.
    if (norm && !third && config_.number_or({"routed_scaling_factor"}, 1.0) != 1.0)
      config_.unsupported("norm_topk_prob", "true is not implemented together with a routed_scaling_factor");
    set_flag("expert_weights_norm", norm);
    if (config_.integer_or({"moe_layer_freq"}, 1) != 1) config_.unsupported("moe_layer_freq", "only 1 is implemented");
    const std::string scoring = config_.text_or({"scoring_func"}, third ? "sigmoid" : "softmax");
    if (scoring != "softmax" && scoring != "sigmoid")
      config_.unsupported("scoring_func", fmt::format("'{}' is not implemented; known are softmax and sigmoid", printable(scoring, 40)));
    set("expert_gating_func", scoring == "sigmoid" ? 2 : 1, "scoring_func");
    const std::string choice = config_.text_or({"topk_method"}, third ? "noaux_tc" : "greedy");
    const bool grouped = config_.integer_or({"n_group"}, 1) > 1;
    // Groups count as much as their best expert alone, or as their two best ones together.
    if (choice == "group_limited_greedy" && grouped) set("expert_group_best_count", 1, "topk_method");
    else if (choice != "noaux_tc" && choice != "greedy" && choice != "group_limited_greedy" && grouped)
      config_.unsupported("topk_method", fmt::format("'{}' of several groups is not implemented; known are noaux_tc, "
                                                     "group_limited_greedy and greedy", printable(choice, 40)));
    if (choice == "greedy") {
      set("expert_group_count", 1, "n_group");
      set("expert_group_used_count", 1, "topk_group");
    }
  }

  /// Latent attention: a row of `kv_lora_rank` elements and a rotated part for all heads.
  void latent() {
    const std::int64_t rank = config_.integer({"kv_lora_rank"}), rotated = config_.integer({"qk_rope_head_dim"});
    copy_integer("attention.q_lora_rank", {"q_lora_rank"});
    set("attention.kv_lora_rank", rank, "kv_lora_rank");
    const std::int64_t plain = config_.integer({"qk_nope_head_dim"});
    for (const std::int64_t size : {rank, rotated, plain})
      if (size < 0 || size > (1 << 24)) config_.fail("kv_lora_rank", "a size of latent attention is out of range");
    set("attention.key_length", rank + rotated, "kv_lora_rank");
    set("attention.value_length", rank, "kv_lora_rank");
    set("attention.key_length_mla", plain + rotated, "qk_nope_head_dim");
    set("attention.value_length_mla", config_.integer({"v_head_dim"}), "v_head_dim");
    set("rope.dimension_count", rotated, "qk_rope_head_dim");
    if (!config_.flag_or({"rope_interleave"}, true)) config_.unsupported("rope_interleave", "only true is implemented");
  }

  [[nodiscard]] std::optional<Config> rope_parameters() const {
    return config_.object({"rope_parameters", "rope_scaling"});
  }

  void rotation() {
    const auto scaling = rope_parameters();
    auto base = config_.find_number({"rope_theta", "rotary_emb_base"});
    if (!base && scaling) base = scaling->find_number({"rope_theta"});
    if (base) set("rope.freq_base", *base);
    const auto part = config_.find_number({"partial_rotary_factor", "rotary_pct", "rope_pct"});
    if (part && (*part <= 0 || *part > 1)) config_.fail("partial_rotary_factor", "allowed is a number in (0, 1]");
    const auto dims = static_cast<std::int64_t>(part.value_or(default_part()) * static_cast<double>(head_dim_));
    if (part || default_part() != 1.0 || is({"llama", "mistral", "mixtral", "phi3"}))
      set("rope.dimension_count", dims, "partial_rotary_factor");
    if (scaling) scale_rotation(*scaling, dims, base.value_or(10000.0));
  }
  /// Of a head's elements, when config.json does not say.
  [[nodiscard]] double default_part() const {
    if (is({"gpt_neox", "stablelm"})) return 0.25;
    if (is({"phi"})) return 0.5;
    return 1.0;
  }

  void scale_rotation(const Config& scaling, std::int64_t dims, double base) {
    const std::string kind = scaling.text_or({"rope_type", "type"}, "default");
    if (kind == "default") return;
    if (kind == "linear") {
      result_.metadata.set(fmt::format("{}.rope.scaling.type", architecture_), std::string("linear"));
      set("rope.scaling.factor", scaling.number_or({"factor"}, 1.0));
    } else if (kind == "yarn") {
      yarn(scaling);
    } else if (kind == "llama3") {
      llama3(scaling, dims, base);
    } else if (kind == "longrope" || kind == "su") {
      longrope(scaling, dims);
    } else {
      scaling.unsupported("rope_type", fmt::format("'{}' is not implemented; known are default, linear, yarn, llama3 and "
                                                   "longrope",
                                                   printable(kind, 40)));
    }
  }
  void yarn(const Config& scaling) {
    const double factor = scaling.number_or({"factor"}, 1.0);
    result_.metadata.set(fmt::format("{}.rope.scaling.type", architecture_), std::string("yarn"));
    set("rope.scaling.factor", factor);
    if (const auto original = scaling.find_integer({"original_max_position_embeddings"}))
      set("rope.scaling.original_context_length", *original, "original_max_position_embeddings");
    if (const auto fast = scaling.find_number({"beta_fast"})) set("rope.scaling.yarn_beta_fast", *fast);
    if (const auto slow = scaling.find_number({"beta_slow"})) set("rope.scaling.yarn_beta_slow", *slow);
    // Readers multiply by the published 1 + 0.1 ln(factor); config.json states the product.
    if (!scaling.flag_or({"truncate"}, true)) set_flag("rope.scaling.yarn_truncate", false);
    if (is_deepseek()) {
      const double all = scaling.number_or({"mscale_all_dim"}, 0.0);
      if (scaling.number_or({"mscale"}, 1.0) != (all == 0.0 ? 1.0 : all))
        scaling.unsupported("mscale", "only values equal to mscale_all_dim are implemented");
      if (all == 0.0) scaling.unsupported("mscale_all_dim", "0 is not implemented");
      set("rope.scaling.yarn_log_multiplier", 0.1 * all);
      return;
    }
    if (const auto attention = scaling.find_number({"attention_factor"}))
      set("rope.scaling.attn_factor", *attention / (factor > 1.0 ? 1.0 + 0.1 * std::log(factor) : 1.0));
  }
  /// Llama 3.1: long waves are stretched, short ones kept, those between blended.
  void llama3(const Config& scaling, std::int64_t dims, double base) {
    const double factor = scaling.number_or({"factor"}, 8.0);
    const double low = scaling.number_or({"low_freq_factor"}, 1.0);
    const double high = scaling.number_or({"high_freq_factor"}, 4.0);
    const double context = scaling.number_or({"original_max_position_embeddings"}, 8192.0);
    if (!(factor > 0) || !(low > 0) || !(high > low) || !(context > 0) || !(base > 0))
      scaling.fail("factor", "allowed are factor > 0, 0 < low_freq_factor < high_freq_factor");
    std::vector<float> factors;
    for (std::int64_t i = 0; i < dims; i += 2) {
      const double wave = 2 * std::numbers::pi * std::pow(base, static_cast<double>(i) / static_cast<double>(dims));
      const double smooth = (context / wave - low) / (high - low);
      double divisor = 1 / ((1 - smooth) / factor + smooth);
      if (wave < context / high) divisor = 1;
      else if (wave > context / low) divisor = factor;
      factors.push_back(static_cast<float>(divisor));
    }
    result_.tensors.emplace_back("rope_freqs.weight", std::move(factors));
  }
  void longrope(const Config& scaling, std::int64_t dims) {
    for (const char* which : {"long_factor", "short_factor"}) {
      auto factors = scaling.numbers(which);
      if (static_cast<std::int64_t>(factors.size()) * 2 != dims)
        scaling.fail(which, fmt::format("found {} numbers, allowed are {}, half of the rotary dimensions", factors.size(),
                                        dims / 2));
      result_.tensors.emplace_back(
          std::string(which) == "long_factor" ? "rope_factors_long.weight" : "rope_factors_short.weight",
          std::move(factors));
    }
    const auto context =
        static_cast<double>(config_.integer({"max_position_embeddings", "n_positions"}));
    auto original = config_.find_integer({"original_max_position_embeddings"});
    if (!original) original = scaling.find_integer({"original_max_position_embeddings"});
    if (!original || *original < 2) config_.fail("original_max_position_embeddings", "required for longrope, at least 2");
    set("rope.scaling.original_context_length", *original, "original_max_position_embeddings");
    const double ratio = context / static_cast<double>(*original);
    const double computed = ratio > 1 ? std::sqrt(1 + std::log(ratio) / std::log(static_cast<double>(*original))) : 1.0;
    set("rope.scaling.attn_factor", scaling.number_or({"attention_factor"}, computed));
  }

  void windows() {
    if (is({"gpt_oss"})) {
      copy_integer("attention.sliding_window", {"sliding_window"});
      const auto* layers = config_.find({"layer_types"});
      for (std::size_t i = 0; layers && layers->array() && i < layers->array()->size(); ++i) {
        const auto* kind = (*layers->array())[i].text();
        if (!kind || (*kind == "sliding_attention") != (i % 2 == 0))
          config_.unsupported("layer_types", "only layers that alternate, the first with a window, are implemented");
      }
      return;
    }
    const bool used = is({"gemma2", "gemma3_text", "gemma3", "cohere2", "olmo3", "mistral", "phi3"});
    if (!used && !config_.flag_or({"use_sliding_window"}, false)) return;
    copy_integer("attention.sliding_window", {"sliding_window"});
    const auto* kinds = config_.find({"layer_types"});
    if (!kinds || !kinds->array()) {
      if (is({"olmo3"})) config_.fail("layer_types", "the required value is missing");
      copy_integer("attention.sliding_window_pattern", {"sliding_window_pattern"});
      return;
    }
    std::vector<bool> pattern;
    for (const json::Value& kind : *kinds->array()) pattern.push_back(kind.text() && *kind.text() == "sliding_attention");
    result_.metadata.set(fmt::format("{}.attention.sliding_window_pattern", architecture_),
                         MetadataArray{std::move(pattern)});
  }

  /// The activation, where GGUF files have none: the one of the architecture is not always that of the model. Gemma's
  /// code does not look at `hidden_act`; in Nomic's files the name is that of a whole network.
  void activation() {
    if (is({"nomic_bert"})) return;
    const bool gemma = type_.starts_with("gemma");
    const std::string name = gemma         ? config_.text_or({"hidden_activation"}, "")
                             : is({"mpt"}) ? "gelu"  // always
                                           : config_.text_or({"hidden_act", "activation_function", "activation"}, "");
    if (name.empty()) return;
    constexpr std::array<std::pair<std::string_view, std::string_view>, 12> known = {
        {{"gelu", "gelu_erf"},  {"gelu_python", "gelu_erf"}, {"gelu_new", "gelu_tanh"}, {"gelu_fast", "gelu_tanh"},
         {"gelu_pytorch_tanh", "gelu_tanh"}, {"silu", "silu"}, {"swish", "silu"}, {"relu", "relu"},
         {"relu2", "relu_squared"}, {"tanh", "tanh"}, {"sigmoid", "sigmoid"}, {"gelu_accurate", "gelu_tanh"}}};
    const auto at = std::ranges::find(known, name, &std::pair<std::string_view, std::string_view>::first);
    if (at == known.end()) config_.unsupported("hidden_act", fmt::format("'{}' is not implemented", printable(name, 40)));
    result_.metadata.set(fmt::format("{}.hidden_activation", architecture_), std::string(at->second));
  }

  /// What only one family says.
  void own() {
    activation();
    if (is({"bert"}) || is_roberta())
      if (const std::string kind = config_.text_or({"position_embedding_type"}, "absolute"); kind != "absolute")
        config_.unsupported("position_embedding_type", fmt::format("'{}' is not implemented", printable(kind, 40)));
    copy_number("attn_logit_softcapping", {"attn_logit_softcapping"});
    copy_number("final_logit_softcapping", {"final_logit_softcapping"});
    if (const auto scalar = config_.find_number({"query_pre_attn_scalar"});
        scalar && *scalar > 0 && *scalar != static_cast<double>(head_dim_))
      set("attention.scale", 1.0 / std::sqrt(*scalar));
    copy_number("rope.freq_base_swa", {"rope_local_base_freq"});
    copy_number("attention.scale", {"attention_multiplier"});
    copy_number("embedding_scale", {"embedding_multiplier"});
    copy_number("residual_scale", {"residual_multiplier"});
    copy_number("logit_scale", {"logit_scale", "logits_scaling"});
    if (is({"gpt_neox", "stablelm"}))
      set_flag("use_parallel_residual", config_.flag_or({"use_parallel_residual"}, is({"gpt_neox"})));
    if (is({"bert", "nomic_bert"}) || is_roberta()) set_flag("attention.causal", false);
    if (const auto attention = config_.object({"attn_config"})) {
      if (const auto clip = attention->find_number({"clip_qkv"})) set("attention.clamp_kqv", *clip);
      set("attention.max_alibi_bias",
          attention->flag_or({"alibi"}, true) ? attention->number_or({"alibi_bias_max"}, 8.0) : 0.0);
    }
    if (is({"falcon"}) && config_.flag_or({"alibi"}, false))
      config_.unsupported("alibi", "falcon models without rotation are not implemented");
    if (is({"bloom"}) && config_.flag_or({"apply_residual_connection_post_layernorm"}, false))
      config_.unsupported("apply_residual_connection_post_layernorm", "only false is implemented");
  }

  const Config& config_;
  std::string_view architecture_;
  std::string_view type_;
  ConfigReading result_;
  std::int64_t dim_ = 0;
  std::int64_t heads_ = 0;
  std::int64_t head_dim_ = 0;
};

}  // namespace

ConfigReading read_config(const Config& config, std::string_view architecture, std::string_view model_type) {
  return Translator(config, architecture, model_type).run();
}

}  // namespace skald::inline v0::huggingface
