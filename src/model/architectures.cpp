// The table of the built-in architectures: what differs from Llama, and nothing else.
#include <skald/model/architecture.hpp>
#include <skald/model/decoder_traits.hpp>

#include "model/architecture_parts.hpp"

namespace skald::inline v0 {

namespace {

Architecture decoder(std::string name, std::string models, const DecoderTraits& traits, TensorNames names = {}) {
  return {.name = std::move(name),
          .models = std::move(models),
          .read = [traits](HyperParameters& parameters) { return read_decoder(parameters, traits); },
          .names = std::move(names)};
}

// Layers whose two parts share one norm.
TensorNames one_norm() {
  return {.roles = {{Role::ffn_norm, {"attn_norm.weight"}}, {Role::ffn_norm_bias, {"attn_norm.bias"}}}};
}

TensorNames second_norm() {
  return {.roles = {{Role::ffn_norm, {"attn_norm_2.weight"}}, {Role::ffn_norm_bias, {"attn_norm_2.bias"}}}};
}

// Falcon's larger models give attention a norm of its own, and then `attn_norm` is that of the network.
TensorNames falcon_norms() {
  return {.roles = {{Role::attention_norm, {"attn_norm_2.weight", "attn_norm.weight"}},
                    {Role::attention_norm_bias, {"attn_norm_2.bias", "attn_norm.bias"}},
                    {Role::ffn_norm, {"attn_norm.weight"}},
                    {Role::ffn_norm_bias, {"attn_norm.bias"}}}};
}

TensorNames stablelm_norms() {
  return {.roles = {{Role::ffn_norm, {"ffn_norm.weight", "attn_norm.weight"}},
                    {Role::ffn_norm_bias, {"ffn_norm.bias", "attn_norm.bias"}}}};
}

TensorNames t5_names(bool encoder_alone) {
  const char* prefix = encoder_alone ? "enc" : "dec";
  return {.roles = {{Role::attention_output, {"attn_o.weight"}},
                    {Role::final_norm, {std::string(prefix) + ".output_norm.weight"}}},
          .layers = std::string(prefix) + ".blk."};
}

}  // namespace

std::vector<Architecture> architectures() {
  // GPT-2 and those that followed it: LayerNorm with biases, a network without a gate.
  const DecoderTraits gpt{.norm = NormKind::layer,
                          .norm_bias = Presence::always,
                          .rope = RopeKind::none,
                          .activation = Activation::gelu_tanh,
                          .gated = Presence::never};
  DecoderTraits bloom = gpt;
  bloom.alibi = true;
  bloom.embedding_norm = true;
  DecoderTraits mpt = gpt;
  mpt.norm_bias = Presence::if_present;
  mpt.alibi = true;
  mpt.clamp_qkv = true;
  mpt.qk_norm = Presence::if_present;
  mpt.qk_norm_scope = QkNormScope::projection;
  mpt.learned_positions = Presence::if_present;
  DecoderTraits bert = gpt;  // norms after the sums, no head
  bert.pre_norm = false;
  bert.residual_norm = true;
  bert.causal = false;
  bert.learned_positions = Presence::always;
  bert.token_types = true;
  bert.embedding_norm = true;
  bert.final_norm = false;
  bert.head = false;
  DecoderTraits nomic_bert = bert;
  nomic_bert.rope = RopeKind::half;
  nomic_bert.learned_positions = Presence::never;
  nomic_bert.activation = Activation::silu;
  nomic_bert.gated = Presence::always;
  DecoderTraits gpt2 = gpt;
  gpt2.learned_positions = Presence::always;
  DecoderTraits neox = gpt;
  neox.rope = RopeKind::half;
  neox.parallel = ParallelParts::by_key;
  DecoderTraits phi2 = neox;
  phi2.parallel = ParallelParts::always;
  DecoderTraits starcoder2 = gpt;
  starcoder2.rope = RopeKind::half;
  DecoderTraits nemotron = starcoder2;
  nemotron.activation = Activation::relu_squared;

  const DecoderTraits gemma{
      .rope = RopeKind::half, .activation = Activation::gelu_tanh, .scale_embedding = true};
  DecoderTraits gemma2 = gemma;
  gemma2.post_norm = true;
  gemma2.window_period = 2;
  gemma2.default_window = 4096;
  gemma2.embedding_scaled_layers = 46;
  gemma2.attention_softcap = 50.0;
  gemma2.logit_softcap = 30.0;
  DecoderTraits gemma3 = gemma;
  gemma3.post_norm = true;
  gemma3.qk_norm = Presence::always;
  gemma3.window_period = 6;
  gemma3.window_rope = WindowRope::local_base;
  gemma3.embedding_scaled_layers = 62;

  const DecoderTraits command_r{.norm = NormKind::layer,
                                .parallel = ParallelParts::always,
                                .qk_norm = Presence::if_present,
                                .qk_norm_scope = QkNormScope::each_head,
                                .logit_scale = LogitScale::multiply};
  DecoderTraits cohere2 = command_r;
  cohere2.window_period = 4;
  cohere2.window_rope = WindowRope::only;

  const DecoderTraits t5{.rope = RopeKind::none,
                         .stacks = Stacks::encoder_decoder,
                         .relative_positions = true,
                         .scaled_attention = false,
                         .activation = Activation::gelu_tanh,
                         .ungated_activation = Activation::relu,
                         .gated = Presence::if_present,
                         .logit_scale = LogitScale::multiply};
  DecoderTraits t5_encoder = t5;
  t5_encoder.stacks = Stacks::encoder;
  t5_encoder.head = false;

  std::vector<Architecture> table;
  const auto add = [&](Architecture architecture) { table.push_back(std::move(architecture)); };
  add(decoder("bert", "BERT, BGE, E5, MiniLM", bert));
  add(decoder("bloom", "BLOOM", bloom));
  add(decoder("cohere2", "Command R7B, Command A", cohere2, one_norm()));
  add(decoder("command-r", "Command R and R+", command_r, one_norm()));
  add(decoder("deci", "DeciLM, Llama-Nemotron (Puzzle)", {.missing_parts = true}));
  add({"deepseek2", "DeepSeek V2 and V3, R1, Kimi K2", read_deepseek2});
  add(decoder("dream", "Dream (diffusion)",
              {.rope = RopeKind::half, .causal = false, .qkv_bias = Presence::always}));
  add(decoder("falcon", "Falcon 7B to 180B", phi2, falcon_norms()));
  add({"falcon-h1", "Falcon H1", read_falcon_h1, {.roles = {{Role::ffn_norm, {"ffn_norm.weight", "ffn_norm"}}}}});
  add(decoder("gemma", "Gemma 1, CodeGemma", gemma));
  add(decoder("gemma2", "Gemma 2", gemma2));
  add(decoder("gemma3", "Gemma 3 (text)", gemma3));
  add({"gpt-oss", "gpt-oss 20B and 120B", read_gpt_oss, {.roles = {{Role::ffn_norm, {"post_attention_norm.weight"}}}}});
  add(decoder("gpt2", "GPT-2", gpt2));
  add(decoder("gptneox", "GPT-NeoX, Pythia, RedPajama, Dolly", neox));
  add(decoder("granite", "Granite 3",
              {.rope_by_finetuned = true, .scales = true, .logit_scale = LogitScale::divide}));
  add({"granitehybrid", "Granite 4", read_granitehybrid});
  add({"granitemoe", "Granite 3 with experts", read_granitemoe});
  add({"jamba", "Jamba", read_jamba});
  add({"lfm2", "LFM 2", read_lfm2, {.roles = {{Role::final_norm, {"token_embd_norm.weight", "output_norm.weight"}}}}});
  add(decoder("llada", "LLaDA (diffusion)", {.causal = false}));
  add(decoder("llama", "Llama 1-3, Mistral, Mixtral, TinyLlama, SmolLM, Vicuna, Yi", {.experts = true}));
  add({"mamba", "Mamba, Falcon Mamba", read_mamba});
  add({"mamba2", "Mamba 2, Codestral Mamba", read_mamba2});
  add(decoder("mpt", "MPT", mpt));
  add(decoder("nemotron", "Nemotron 3 and 4, Minitron", nemotron));
  add({"nemotron_h", "Nemotron H, Nemotron Nano 2", read_nemotron_h, one_norm()});
  add(decoder("nomic-bert", "Nomic Embed", nomic_bert));
  add(decoder("olmo2", "OLMo 2 and 3",
              {.pre_norm = false,
               .post_norm = true,
               .rope = RopeKind::half,
               .window_rope = WindowRope::unscaled,
               .window_period = 4,
               .qk_norm = Presence::always,
               .qk_norm_scope = QkNormScope::projection}));
  add({"olmoe", "OLMoE", read_olmoe, {}});
  add(decoder("phi2", "Phi 1, 1.5 and 2", phi2, one_norm()));
  add(decoder("phi3", "Phi 3, 3.5 and 4", {.rope = RopeKind::half}));
  add(decoder("qwen2", "Qwen 1.5, 2 and 2.5", {.rope = RopeKind::half, .qkv_bias = Presence::always}));
  add({"qwen2moe", "Qwen 1.5 and 2 with experts", read_qwen2moe});
  add(decoder("qwen3", "Qwen 3", {.rope = RopeKind::half, .qk_norm = Presence::always}));
  add({"qwen3moe", "Qwen 3 with experts", read_qwen3moe});
  add({"rwkv6", "RWKV 6", read_rwkv6, second_norm()});
  add({"rwkv7", "RWKV 7", read_rwkv7, second_norm()});
  add(decoder("smollm3", "SmolLM 3", {.no_rope_period = 4}));
  add(decoder("stablelm", "StableLM 1 and 2",
              {.norm = NormKind::layer,
               .norm_bias = Presence::always,
               .parallel = ParallelParts::unless_ffn_norm,
               .rope = RopeKind::half,
               .qk_norm = Presence::if_present,
               .qk_norm_scope = QkNormScope::each_head},
              stablelm_norms()));
  add(decoder("starcoder2", "StarCoder 2", starcoder2));
  add(decoder("t5", "T5, Flan-T5, UL2, Aya", t5, t5_names(false)));
  add(decoder("t5encoder", "the encoder of T5 (sentence-T5, GTR)", t5_encoder, t5_names(true)));
  return table;
}

}  // namespace skald::inline v0
