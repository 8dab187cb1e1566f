#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <skald/model/architecture.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>

#include "model/packed_cache.hpp"
#include "model/spec_reading.hpp"

namespace skald::inline v0 {

/// Everything that a Model shares between its copies.
struct Model::Impl {
  ModelSpec spec{};
  AnyBackend backend{};
  WeightLayout layout = WeightLayout::packed;
  ModelInfo info{};
  Metadata metadata{};
  std::array<std::uint64_t, 2> fingerprint{};
  std::vector<RopeFrequencies> ropes{};
  std::vector<DType> weight_types{};
  std::vector<DType> expert_types{};

  std::shared_ptr<const ModelFile> file{};  ///< kept only if weights use its memory in place
  std::vector<std::shared_ptr<const Weight>> weights{};
  Buffer vector_memory{};
  // One entry per layer and role, those of the network as a whole (layer -1) first.
  std::vector<const Weight*> weight_table{};
  std::vector<const float*> vector_table{};
  std::shared_ptr<const Classifier> classifier{};

  std::shared_ptr<const Tokenizer> tokenizer{};
  std::shared_ptr<const ChatTemplate> chat_template{};
  std::exception_ptr chat_template_error{};

  [[nodiscard]] std::size_t slot(Role role, int layer) const noexcept {
    return static_cast<std::size_t>(layer + 1) * static_cast<std::size_t>(role_count) + static_cast<std::size_t>(role);
  }
  [[nodiscard]] bool in_table(Role role, int layer) const noexcept {
    return layer >= -1 && layer < spec.all_layer_count() && static_cast<std::int32_t>(role) < role_count;
  }
};

/// One load, from a checked container to a Model.
class ModelLoader {
 public:
  ModelLoader(ModelFile file, const LoadOptions& options);
  [[nodiscard]] Model run();

 private:
  void check();  // all that metadata and shapes can tell
  void load_text();
  void load_chat_template();
  void load_vectors();
  void load_classifier();
  void load_weights();
  void describe();  // counts and fingerprint
  void finish();

  [[nodiscard]] bool map_packed();  // all weights from the packed cache
  void write_packed();              // the packed cache from all weights

  void load_weight(const BoundTensor& bound);
  void load_grouped(const BoundTensor& bound);
  void keep_weight(const BoundTensor& bound, std::shared_ptr<const Weight> weight);
  void read_rows(const TensorInfo& tensor, std::int64_t first, std::span<std::byte> out);
  void check_rows(const TensorInfo& tensor, std::int64_t first, std::span<const std::byte> rows) const;
  void step(std::uint64_t bytes);  // counts bytes, reports when called on the caller's thread
  void report(std::uint64_t done);
  void log(LogLevel level, const std::string& message) const;

  std::shared_ptr<const ModelFile> file_;
  const LoadOptions& options_;
  std::shared_ptr<Model::Impl> impl_;
  BoundTensors bound_;
  std::thread::id caller_ = std::this_thread::get_id();
  std::uint64_t total_bytes_ = 0;
  std::atomic<std::uint64_t> done_bytes_{0};
  std::uint64_t limit_bytes_ = 0;     // what `done_bytes_` may report while the current tensor loads
  std::optional<PackedIdentity> packed_identity_;  // only with a packed cache
  std::uint64_t reported_bytes_ = 0;  // last value given to the progress callback
};

/// Bytes of the weights and vectors of bound tensors. @throws UnsupportedError naming the tensor that the backend
/// refuses.
void add_tensor_bytes(MemoryPlan& plan, const ModelFile& file, const BoundTensors& bound,
                      const BackendInterface& backend, WeightLayout layout);
/// Formats of the matrices that multiply, each once, in ascending order.
[[nodiscard]] std::vector<DType> multiplied_types(const BoundTensors& bound, bool has_head);
/// Formats of the experts' matrices, each once, in ascending order.
[[nodiscard]] std::vector<DType> expert_types(const BoundTensors& bound);
/// Estimate of what a tokenizer takes for the vocabulary of a file.
[[nodiscard]] std::uint64_t tokenizer_bytes(const Metadata& metadata);
/// Bytes that a vector of f32 takes in the common buffer.
[[nodiscard]] std::uint64_t vector_bytes(std::int64_t elements);

}  // namespace skald::inline v0
