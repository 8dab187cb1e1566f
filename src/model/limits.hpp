#pragma once

#include <cstdint>

/// Largest values that a network may have: far above every published model, and small enough that products of a few
/// of them fit 64 bits.
namespace skald::inline v0::limits {

inline constexpr std::int64_t vocabulary = std::int64_t{1} << 24;
inline constexpr std::int64_t dim = std::int64_t{1} << 20;
inline constexpr std::int64_t context = std::int64_t{1} << 30;
inline constexpr std::int64_t layers = std::int64_t{1} << 16;
inline constexpr std::int64_t heads = std::int64_t{1} << 14;
inline constexpr std::int64_t head_dim = std::int64_t{1} << 14;
inline constexpr std::int64_t ffn_width = std::int64_t{1} << 24;
inline constexpr std::int64_t experts = std::int64_t{1} << 12;
inline constexpr std::int64_t experts_used = std::int64_t{1} << 8;
inline constexpr std::int64_t relative_buckets = 1024;
inline constexpr std::int64_t relative_distance = 4096;
inline constexpr float epsilon = 1.0F;
inline constexpr double min_freq_base = 1.001;  // the logarithm of the base divides
inline constexpr double max_freq_base = 1e15;
inline constexpr double min_rope_factor = 1e-4;
inline constexpr double max_rope_factor = 1e6;
inline constexpr double min_attention_factor = 1e-3;
inline constexpr double max_attention_factor = 1e3;
inline constexpr double max_alibi = 1e3;
inline constexpr double max_scale = 1e6;  // of embeddings, residuals, attention and logits
inline constexpr double min_scale = 1e-9;
inline constexpr double min_beta = 1e-6;
inline constexpr double max_beta = 1e6;

}  // namespace skald::inline v0::limits
