#include <skald/decoder/embedding_rows.hpp>

#include <string>

namespace skald::inline v0 {

std::vector<float> embedding_rows(const Model& model, std::span<const TokenId> tokens) {
  const auto& spec = model.spec();
  for (const TokenId token : tokens)
    if (token < 0 || token >= spec.vocabulary)
      throw UsageError("decoder.embedding_rows", "token id " + std::to_string(token) +
                                                     " is not inside the vocabulary of " +
                                                     std::to_string(spec.vocabulary));
  const auto rows = static_cast<std::int64_t>(tokens.size());
  std::vector<float> values(tokens.size() * static_cast<std::size_t>(spec.dim));
  if (rows == 0) return values;
  auto& backend = *model.backend();
  const auto memory = backend.allocate(values.size() * sizeof(float));
  const auto stream = backend.new_stream({.tokens = rows, .max_cols = spec.dim});
  stream->enqueue(EmbedOp{model.weight(Role::token_embedding), tokens.data(), memory.matrix(0, rows, spec.dim),
                          spec.embedding_scale});
  stream->synchronize();
  backend.read(std::as_writable_bytes(std::span(values)), memory.address());
  return values;
}

}  // namespace skald::inline v0
