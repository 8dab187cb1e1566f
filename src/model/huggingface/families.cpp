// The names of the tensors of each model type, as `transformers` saves them, and their names in GGUF files.
#include "model/huggingface/families.hpp"

#include <algorithm>
#include <array>

namespace skald::inline v0::huggingface {

namespace {

using enum Form;

// Llama's names, which most later models took over; rules of a family come before these.
#define SKALD_DECODER_ENDS                                                             \
  {"embed_tokens", "token_embd"}, {"norm", "output_norm"}, {"lm_head", "output"}
#define SKALD_DECODER_NORMS                                                            \
  {"layers.{}.input_layernorm", "blk.{}.attn_norm"}, {"layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"}
#define SKALD_DECODER_ATTENTION                                                        \
  {"layers.{}.self_attn.q_proj", "blk.{}.attn_q"}, {"layers.{}.self_attn.k_proj", "blk.{}.attn_k"},           \
      {"layers.{}.self_attn.v_proj", "blk.{}.attn_v"}, {"layers.{}.self_attn.o_proj", "blk.{}.attn_output"}
#define SKALD_DECODER_HEAD_NORMS                                                       \
  {"layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"}, {"layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"}
#define SKALD_ROTARY_ATTENTION                                                                                 \
  {"layers.{}.self_attn.q_proj", "blk.{}.attn_q", rotary_q}, {"layers.{}.self_attn.k_proj", "blk.{}.attn_k", rotary_k}, \
      {"layers.{}.self_attn.v_proj", "blk.{}.attn_v"}, {"layers.{}.self_attn.o_proj", "blk.{}.attn_output"}
#define SKALD_DECODER_MLP                                                              \
  {"layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"}, {"layers.{}.mlp.up_proj", "blk.{}.ffn_up"}, \
      {"layers.{}.mlp.down_proj", "blk.{}.ffn_down"}
#define SKALD_DECODER_EXPERTS                                                                                   \
  {"layers.{}.mlp.gate", "blk.{}.ffn_gate_inp"},                                                                \
      {"layers.{}.mlp.experts.{e}.gate_proj.weight", "blk.{}.ffn_gate_exps.weight", experts},                   \
      {"layers.{}.mlp.experts.{e}.up_proj.weight", "blk.{}.ffn_up_exps.weight", experts},                       \
      {"layers.{}.mlp.experts.{e}.down_proj.weight", "blk.{}.ffn_down_exps.weight", experts}

constexpr Rule llama[] = {SKALD_DECODER_ENDS, SKALD_DECODER_NORMS, SKALD_ROTARY_ATTENTION, SKALD_DECODER_MLP,
                          {"layers.{}.block_sparse_moe.gate", "blk.{}.ffn_gate_inp"},
                          {"layers.{}.block_sparse_moe.experts.{e}.w1.weight", "blk.{}.ffn_gate_exps.weight", experts},
                          {"layers.{}.block_sparse_moe.experts.{e}.w3.weight", "blk.{}.ffn_up_exps.weight", experts},
                          {"layers.{}.block_sparse_moe.experts.{e}.w2.weight", "blk.{}.ffn_down_exps.weight", experts}};

// Families that rotate as the original does, so that no rows move.
constexpr Rule plain[] = {SKALD_DECODER_ENDS, SKALD_DECODER_NORMS, SKALD_DECODER_ATTENTION, SKALD_DECODER_HEAD_NORMS, SKALD_DECODER_MLP};

// Norms of the heads in a list of modules.
constexpr Rule stablelm[] = {
    SKALD_DECODER_ENDS, SKALD_DECODER_NORMS, SKALD_DECODER_ATTENTION, SKALD_DECODER_MLP,
    {"layers.{}.self_attn.q_layernorm.norms.{e}.weight", "blk.{}.attn_q_norm.weight", query_heads},
    {"layers.{}.self_attn.k_layernorm.norms.{e}.weight", "blk.{}.attn_k_norm.weight", key_heads}};

constexpr Rule moe[] = {SKALD_DECODER_ENDS,    SKALD_DECODER_NORMS, SKALD_DECODER_ATTENTION, SKALD_DECODER_HEAD_NORMS, SKALD_DECODER_MLP,
                        SKALD_DECODER_EXPERTS,
                        {"layers.{}.mlp.shared_expert.gate_proj", "blk.{}.ffn_gate_shexp"},
                        {"layers.{}.mlp.shared_expert.up_proj", "blk.{}.ffn_up_shexp"},
                        {"layers.{}.mlp.shared_expert.down_proj", "blk.{}.ffn_down_shexp"},
                        {"layers.{}.mlp.shared_expert_gate", "blk.{}.ffn_gate_inp_shexp", flat}};

constexpr Rule granite_moe[] = {
    SKALD_DECODER_ENDS,
    SKALD_DECODER_NORMS,
    SKALD_ROTARY_ATTENTION,
    {"layers.{}.block_sparse_moe.router.layer", "blk.{}.ffn_gate_inp"},
    {"layers.{}.block_sparse_moe.input_linear.weight", "blk.{}.ffn_gate_exps.weight", stack_first},
    {"layers.{}.block_sparse_moe.input_linear.weight", "blk.{}.ffn_up_exps.weight", stack_second},
    {"layers.{}.block_sparse_moe.output_linear.weight", "blk.{}.ffn_down_exps.weight"},
    {"layers.{}.shared_mlp.input_linear.weight", "blk.{}.ffn_gate_shexp.weight", halves_first},
    {"layers.{}.shared_mlp.input_linear.weight", "blk.{}.ffn_up_shexp.weight", halves_second},
    {"layers.{}.shared_mlp.output_linear.weight", "blk.{}.ffn_down_shexp.weight"}};

#define SKALD_GEMMA_ENDS                                                                           \
  {"embed_tokens", "token_embd"}, {"norm", "output_norm", plus_one}, {"lm_head", "output"},        \
      {"layers.{}.input_layernorm", "blk.{}.attn_norm", plus_one}
constexpr Rule gemma[] = {SKALD_GEMMA_ENDS,
                          {"layers.{}.post_attention_layernorm", "blk.{}.ffn_norm", plus_one},
                          SKALD_DECODER_ATTENTION,
                          SKALD_DECODER_MLP};
constexpr Rule gemma2[] = {SKALD_GEMMA_ENDS,
                           {"layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", plus_one},
                           {"layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm", plus_one},
                           {"layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", plus_one},
                           {"layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", plus_one},
                           {"layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", plus_one},
                           SKALD_DECODER_ATTENTION,
                           SKALD_DECODER_MLP};

constexpr Rule olmo2[] = {SKALD_DECODER_ENDS,
                          {"layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"},
                          {"layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"},
                          SKALD_DECODER_ATTENTION,
                          SKALD_DECODER_HEAD_NORMS,
                          SKALD_DECODER_MLP};

constexpr Rule phi[] = {
    {"embed_tokens", "token_embd"},
    {"final_layernorm", "output_norm"},
    {"lm_head", "output"},
    {"layers.{}.input_layernorm", "blk.{}.attn_norm"},
    {"layers.{}.self_attn.q_proj+layers.{}.self_attn.k_proj+layers.{}.self_attn.v_proj", "blk.{}.attn_qkv", concat},
    {"layers.{}.self_attn.dense", "blk.{}.attn_output"},
    {"layers.{}.mlp.fc1", "blk.{}.ffn_up"},
    {"layers.{}.mlp.fc2", "blk.{}.ffn_down"}};

constexpr Rule phi3[] = {SKALD_DECODER_ENDS, SKALD_DECODER_NORMS,
                         {"layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv"},
                         {"layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
                         {"layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"},
                         {"layers.{}.mlp.down_proj", "blk.{}.ffn_down"}};

constexpr Rule starcoder2[] = {SKALD_DECODER_ENDS, SKALD_DECODER_NORMS, SKALD_DECODER_ATTENTION,
                               {"layers.{}.mlp.c_fc", "blk.{}.ffn_up"},
                               {"layers.{}.mlp.c_proj", "blk.{}.ffn_down"}};

constexpr Rule gpt2[] = {{"wte", "token_embd"},
                         {"wpe", "position_embd"},
                         {"ln_f", "output_norm"},
                         {"lm_head", "output"},
                         {"h.{}.ln_1", "blk.{}.attn_norm"},
                         {"h.{}.attn.c_attn", "blk.{}.attn_qkv", transpose},
                         {"h.{}.attn.c_proj", "blk.{}.attn_output", transpose},
                         {"h.{}.ln_2", "blk.{}.ffn_norm"},
                         {"h.{}.mlp.c_fc", "blk.{}.ffn_up", transpose},
                         {"h.{}.mlp.c_proj", "blk.{}.ffn_down", transpose}};

constexpr Rule gpt_neox[] = {{"embed_in", "token_embd"},
                             {"final_layer_norm", "output_norm"},
                             {"embed_out", "output"},
                             {"layers.{}.input_layernorm", "blk.{}.attn_norm"},
                             {"layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"},
                             {"layers.{}.attention.query_key_value", "blk.{}.attn_qkv", head_qkv},
                             {"layers.{}.attention.dense", "blk.{}.attn_output"},
                             {"layers.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"},
                             {"layers.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"}};

constexpr Rule falcon[] = {{"word_embeddings", "token_embd"},
                           {"ln_f", "output_norm"},
                           {"lm_head", "output"},
                           {"h.{}.input_layernorm", "blk.{}.attn_norm"},
                           {"h.{}.ln_mlp", "blk.{}.attn_norm"},
                           {"h.{}.ln_attn", "blk.{}.attn_norm_2"},
                           {"h.{}.self_attention.query_key_value", "blk.{}.attn_qkv", group_qkv},
                           {"h.{}.self_attention.dense", "blk.{}.attn_output"},
                           {"h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"},
                           {"h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"}};

constexpr Rule bloom[] = {{"word_embeddings", "token_embd"},
                          {"word_embeddings_layernorm", "token_embd_norm"},
                          {"ln_f", "output_norm"},
                          {"lm_head", "output"},
                          {"h.{}.input_layernorm", "blk.{}.attn_norm"},
                          {"h.{}.post_attention_layernorm", "blk.{}.ffn_norm"},
                          {"h.{}.self_attention.query_key_value", "blk.{}.attn_qkv", head_qkv},
                          {"h.{}.self_attention.dense", "blk.{}.attn_output"},
                          {"h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"},
                          {"h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"}};

constexpr Rule mpt[] = {{"wte", "token_embd"},
                        {"norm_f", "output_norm"},
                        {"lm_head", "output"},
                        {"blocks.{}.norm_1", "blk.{}.attn_norm"},
                        {"blocks.{}.norm_2", "blk.{}.ffn_norm"},
                        {"blocks.{}.attn.Wqkv", "blk.{}.attn_qkv"},
                        {"blocks.{}.attn.out_proj", "blk.{}.attn_output"},
                        {"blocks.{}.attn.q_ln", "blk.{}.attn_q_norm"},
                        {"blocks.{}.attn.k_ln", "blk.{}.attn_k_norm"},
                        {"blocks.{}.ffn.up_proj", "blk.{}.ffn_up"},
                        {"blocks.{}.ffn.down_proj", "blk.{}.ffn_down"}};

#define SKALD_ENCODER_LAYERS                                                                         \
  {"encoder.layer.{}.attention.self.query", "blk.{}.attn_q"}, {"encoder.layer.{}.attention.self.key", "blk.{}.attn_k"}, \
      {"encoder.layer.{}.attention.self.value", "blk.{}.attn_v"},                                    \
      {"encoder.layer.{}.attention.output.dense", "blk.{}.attn_output"},                             \
      {"encoder.layer.{}.attention.output.LayerNorm", "blk.{}.attn_output_norm"},                    \
      {"encoder.layer.{}.intermediate.dense", "blk.{}.ffn_up"}, {"encoder.layer.{}.output.dense", "blk.{}.ffn_down"}, \
      {"encoder.layer.{}.output.LayerNorm", "blk.{}.layer_output_norm"}
constexpr Rule bert[] = {{"embeddings.word_embeddings", "token_embd"},
                         {"embeddings.token_type_embeddings", "token_types"},
                         {"embeddings.position_embeddings", "position_embd"},
                         {"embeddings.LayerNorm", "token_embd_norm"},
                         SKALD_ENCODER_LAYERS};
constexpr Rule roberta[] = {{"embeddings.word_embeddings", "token_embd"},
                            {"embeddings.token_type_embeddings", "token_types"},
                            {"embeddings.position_embeddings", "position_embd", after_padding},
                            {"embeddings.LayerNorm", "token_embd_norm"},
                            SKALD_ENCODER_LAYERS};
#undef SKALD_ENCODER_LAYERS

// BERT's first layer is called the pooler; RoBERTa has it in the classifier; decoders have none.
constexpr Rule classifier[] = {{"pooler.dense", "cls"},
                               {"classifier.dense", "cls"},
                               {"classifier.out_proj", "cls.output"},
                               {"classifier", "cls.output"},
                               {"score", "cls.output"}};

constexpr Rule nomic_bert[] = {{"embeddings.word_embeddings", "token_embd"},
                               {"embeddings.token_type_embeddings", "token_types"},
                               {"emb_ln", "token_embd_norm"},
                               {"encoder.layers.{}.attn.Wqkv", "blk.{}.attn_qkv"},
                               {"encoder.layers.{}.attn.out_proj", "blk.{}.attn_output"},
                               {"encoder.layers.{}.norm1", "blk.{}.attn_output_norm"},
                               {"encoder.layers.{}.mlp.fc11", "blk.{}.ffn_up"},
                               {"encoder.layers.{}.mlp.fc12", "blk.{}.ffn_gate"},
                               {"encoder.layers.{}.mlp.fc2", "blk.{}.ffn_down"},
                               {"encoder.layers.{}.norm2", "blk.{}.layer_output_norm"}};

// The gate's and the other rows of experts alternate.
constexpr Rule gpt_oss[] = {SKALD_DECODER_ENDS,
                            {"layers.{}.input_layernorm", "blk.{}.attn_norm"},
                            {"layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"},
                            SKALD_DECODER_ATTENTION,
                            {"layers.{}.self_attn.sinks", "blk.{}.attn_sinks.weight"},
                            {"layers.{}.mlp.router", "blk.{}.ffn_gate_inp"},
                            {"layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_gate_exps.weight", even_rows},
                            {"layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_up_exps.weight", odd_rows},
                            {"layers.{}.mlp.experts.gate_up_proj_bias", "blk.{}.ffn_gate_exps.bias", even_elements},
                            {"layers.{}.mlp.experts.gate_up_proj_bias", "blk.{}.ffn_up_exps.bias", odd_elements},
                            {"layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight", stack_back},
                            {"layers.{}.mlp.experts.down_proj_bias", "blk.{}.ffn_down_exps.bias"}};

constexpr Rule deepseek[] = {SKALD_DECODER_ENDS,
                             SKALD_DECODER_NORMS,
                             {"layers.{}.self_attn.q_proj", "blk.{}.attn_q"},
                             {"layers.{}.self_attn.q_a_proj", "blk.{}.attn_q_a"},
                             {"layers.{}.self_attn.q_a_layernorm", "blk.{}.attn_q_a_norm"},
                             {"layers.{}.self_attn.q_b_proj", "blk.{}.attn_q_b"},
                             {"layers.{}.self_attn.kv_a_proj_with_mqa", "blk.{}.attn_kv_a_mqa"},
                             {"layers.{}.self_attn.kv_a_layernorm", "blk.{}.attn_kv_a_norm"},
                             {"layers.{}.self_attn.kv_b_proj", "blk.{}.attn_kv_b"},
                             {"layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
                             SKALD_DECODER_MLP,
                             SKALD_DECODER_EXPERTS,
                             {"layers.{}.mlp.gate.e_score_correction_bias", "blk.{}.exp_probs_b.bias"},
                             {"layers.{}.mlp.shared_experts.gate_proj", "blk.{}.ffn_gate_shexp"},
                             {"layers.{}.mlp.shared_experts.up_proj", "blk.{}.ffn_up_shexp"},
                             {"layers.{}.mlp.shared_experts.down_proj", "blk.{}.ffn_down_shexp"}};

#undef SKALD_DECODER_ENDS
#undef SKALD_DECODER_NORMS
#undef SKALD_DECODER_ATTENTION
#undef SKALD_DECODER_HEAD_NORMS
#undef SKALD_ROTARY_ATTENTION
#undef SKALD_DECODER_MLP
#undef SKALD_DECODER_EXPERTS
#undef SKALD_GEMMA_ENDS

constexpr Family table[] = {
    {"bert", "bert", bert, true},
    {"bloom", "bloom", bloom, true},
    {"camembert", "bert", roberta, true},
    {"cohere", "command-r", plain, true},
    {"cohere2", "cohere2", plain, true},
    {"deepseek_v2", "deepseek2", deepseek},
    {"deepseek_v3", "deepseek2", deepseek},
    {"falcon", "falcon", falcon, true},
    {"gemma", "gemma", gemma, true},
    {"gemma2", "gemma2", gemma2, true},
    {"gemma3", "gemma3", gemma2, true},
    {"gemma3_text", "gemma3", gemma2, true},
    {"gpt2", "gpt2", gpt2, true},
    {"gpt_neox", "gptneox", gpt_neox},
    {"gpt_oss", "gpt-oss", gpt_oss},
    {"granite", "granite", llama},
    {"granitemoe", "granitemoe", granite_moe},
    {"granitemoeshared", "granitemoe", granite_moe},
    {"llama", "llama", llama},
    {"mistral", "llama", llama},
    {"mixtral", "llama", llama},
    {"mpt", "mpt", mpt, true},
    {"nomic_bert", "nomic-bert", nomic_bert, true},
    {"olmo2", "olmo2", olmo2},
    {"olmo3", "olmo2", olmo2},
    {"olmoe", "olmoe", moe},
    {"phi", "phi2", phi},
    {"phi3", "phi3", phi3},
    {"qwen2", "qwen2", plain},
    {"qwen2_moe", "qwen2moe", moe},
    {"qwen3", "qwen3", plain},
    {"qwen3_moe", "qwen3moe", moe},
    {"roberta", "bert", roberta, true},
    {"smollm3", "smollm3", llama, true},
    {"stablelm", "stablelm", stablelm},
    {"starcoder2", "starcoder2", starcoder2, true},
    {"xlm-roberta", "bert", roberta, true},
};
static_assert(std::ranges::is_sorted(table, {}, &Family::model_type));

}  // namespace

std::span<const Family> families() noexcept { return table; }

const Family* find_family(std::string_view model_type) noexcept {
  const auto at = std::ranges::find(table, model_type, &Family::model_type);
  return at != std::end(table) ? &*at : nullptr;
}

std::span<const Rule> classifier_rules() noexcept { return classifier; }

bool is_ignored(std::string_view name, bool classifies) noexcept {
  if (!classifies && name.starts_with("pooler.")) return true;
  constexpr std::array<std::string_view, 6> endings = {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
                                                       "attention.masked_bias", "position_ids"};
  constexpr std::array<std::string_view, 7> beginnings = {"lm_head.dense.", "lm_head.layer_norm.", "cls.predictions",        "cls.seq_relationship",
                                                          "vision_tower.",  "multi_modal_projector.", "vision_model."};
  return std::ranges::any_of(endings, [&](std::string_view end) { return name.ends_with(end); }) ||
         std::ranges::any_of(beginnings, [&](std::string_view begin) { return name.starts_with(begin); });
}

}  // namespace skald::inline v0::huggingface
