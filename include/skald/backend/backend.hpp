#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>

#include <skald/backend/ops.hpp>
#include <skald/core/executor.hpp>
#include <skald/core/function_ref.hpp>

namespace skald::inline v0 {

/// Memory of a backend, freed with the last copy. `address()` is valid in ops; the host may dereference it only if
/// `host_visible()`.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<void> owner, std::byte* address, std::size_t bytes, bool host_visible) noexcept
      : owner_(std::move(owner)), address_(address), bytes_(bytes), host_visible_(host_visible) {}
  [[nodiscard]] std::byte* address() const noexcept { return address_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] bool host_visible() const noexcept { return host_visible_; }
  [[nodiscard]] explicit operator bool() const noexcept { return address_ != nullptr; }
  /// A matrix of f32 that begins `offset` bytes into the buffer.
  [[nodiscard]] Matrix matrix(std::size_t offset, std::int64_t rows, std::int64_t cols) const noexcept {
    return {reinterpret_cast<float*>(address_ + offset), rows, cols, cols};
  }

 private:
  std::shared_ptr<void> owner_;
  std::byte* address_ = nullptr;
  std::size_t bytes_ = 0;
  bool host_visible_ = false;
};

/// A weight matrix [rows, cols], or a stack of several, in whatever layout its backend made of it. Immutable.
class SKALD_API Weight {
 public:
  Weight(DType type, std::int64_t rows, std::int64_t cols, std::int64_t matrices = 1) noexcept
      : type_(type), rows_(rows), cols_(cols), matrices_(matrices) {}
  virtual ~Weight();
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  [[nodiscard]] DType type() const noexcept { return type_; }         ///< format of the codes
  [[nodiscard]] std::int64_t rows() const noexcept { return rows_; }  ///< outputs, of all matrices together
  [[nodiscard]] std::int64_t cols() const noexcept { return cols_; }  ///< inputs
  /// Matrices in the stack, rows() / matrices() rows each.
  [[nodiscard]] std::int64_t matrices() const noexcept { return matrices_; }
  /// Bytes held in backend memory.
  [[nodiscard]] virtual std::size_t bytes() const noexcept = 0;
  /// Name of the layout, e.g. "panel16" or "rows".
  [[nodiscard]] virtual std::string_view layout() const noexcept = 0;

 private:
  DType type_;
  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t matrices_;
};

/// How a weight is laid out in backend memory.
enum class WeightLayout : std::uint8_t {
  packed,  ///< rearranged for the backend's kernels (the default)
  rows,    ///< as in the file, one row after the other; the source's memory is used in place where possible
};

/// Where the rows of a weight come from.
struct WeightSource {
  DType type = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t matrices = 1;  ///< matrices stacked one after the other, rows / matrices rows each
  /// All rows in file order if they lie in memory that outlives the weight, else empty.
  std::span<const std::byte> mapped{};
  /// Fills `out` with rows [first, first + count); called from several threads at once.
  FunctionRef<void(std::int64_t first, std::int64_t count, std::span<std::byte> out)> read;
};

/// A weight whose packed bytes exist already: see BackendInterface::use_packed.
struct PackedWeight {
  DType type = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t matrices = 1;           ///< as in WeightSource
  std::span<const std::byte> bytes{};  ///< aligned to 64 bytes; what packed_bytes gave for such a weight
  std::shared_ptr<const void> owner{};  ///< keeps `bytes` alive
};

/// What a backend is and runs on.
struct BackendInfo {
  std::string name{};        ///< "reference", "cpu", "cuda"
  std::string device{};      ///< e.g. the processor's name
  std::string isa{};         ///< instruction set or architecture of the kernels, e.g. "avx512vnni"
  int threads = 1;           ///< most participants in one op
  bool host_visible = true;  ///< buffers may be dereferenced by the host
  bool huge_pages = false;   ///< weights and KV ask for 2 MiB pages
};

/// Largest sizes that a stream must handle; its work memory is taken once for them.
struct StreamLimits {
  std::int64_t tokens = 1;    ///< rows of a batch
  std::int64_t max_cols = 0;  ///< inner dimension of any LinearOp
  std::int64_t heads = 0;     ///< query heads
  std::int64_t head_dim = 0;  ///< elements of a key or value
  std::int64_t context = 0;   ///< KV slots of one sequence
  std::int64_t segments = 1;  ///< sequences in one batch
  std::int64_t experts = 0;   ///< experts to choose from
  std::int64_t used = 0;      ///< experts that a token uses
  std::int64_t expert_cols = 0;  ///< inner dimension of any matrix of an ExpertsOp
  std::int64_t head_cols = 0;    ///< inner dimension of any HeadLinearOp
  bool earlier = false;          ///< AttentionOps with KvLayer::earlier
  /// Formats of the weights that LinearOps and ExpertsOps multiply with; empty: any. Read only during the call.
  std::span<const DType> weight_types{};
  /// Those of them that ExpertsOps multiply with; empty: any of them.
  std::span<const DType> expert_types{};
};

/// Keys and values that attention has read from pages, and weights.
struct KvReads {
  std::uint64_t bytes = 0;         ///< read
  std::uint64_t shared_bytes = 0;  ///< not read again, because sequences with common pages were computed together
  std::uint64_t weight_bytes = 0;  ///< of the matrices of linear maps, once for each map; not of stacks of experts
};

/// An ordered queue of ops. Ops run in the order given, each seeing the results of those before it. A stream is used
/// by one thread at a time; several streams of one backend are independent.
class SKALD_API Stream {
 public:
  virtual ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// Appends an op; it may start at once or at `synchronize`. Allocates only while the queue grows beyond its
  /// longest length so far.
  virtual void enqueue(const Op& op) = 0;
  /// Returns when all ops have run; the queue is then empty, also after an exception. @throws CancelledError within
  /// 50 ms after a stop request: ops that have not run are dropped, memory written by them is unspecified.
  virtual void synchronize(const std::stop_token& stop = {}) = 0;
  /// Since the stream was made; zeros where a backend does not count.
  [[nodiscard]] virtual KvReads kv_reads() const noexcept { return {}; }

 protected:
  Stream() = default;
};

/// The virtual seam between the library and a device. A backend owns its memory and weights; all work goes through
/// streams. Capability questions are asked when a pipeline is built, so that nothing fails at the first token.
/// All members may be called from several threads at once.
class SKALD_API BackendInterface {
 public:
  virtual ~BackendInterface();
  BackendInterface(const BackendInterface&) = delete;
  BackendInterface& operator=(const BackendInterface&) = delete;

  [[nodiscard]] virtual BackendInfo info() const = 0;
  /// Why an op with these shapes, formats and options cannot run here, or nothing if it can. Data pointers are not
  /// read; Weight pointers may be null.
  [[nodiscard]] virtual std::optional<std::string> refuses(const Op& op) const = 0;
  /// Why weights of this format and layout cannot be made here, or nothing if they can.
  [[nodiscard]] virtual std::optional<std::string> refuses_weight(DType type, WeightLayout layout) const = 0;

  /// Bytes that `make_weight` will hold for such a matrix, for a stack so many for each of its matrices; with
  /// WeightLayout::rows also those of a source that is used in place, since multiplying makes them resident.
  [[nodiscard]] virtual std::size_t weight_bytes(DType type, std::int64_t rows, std::int64_t cols,
                                                 WeightLayout layout) const = 0;
  /// Bytes of work memory that `new_stream` takes.
  [[nodiscard]] virtual std::size_t stream_bytes(const StreamLimits& limits) const = 0;

  /// Zeroed memory, aligned to 64 bytes. @throws OutOfMemoryError.
  [[nodiscard]] virtual Buffer allocate(std::size_t bytes) = 0;
  /// Reads and rearranges a weight, in parallel; beside the weight it holds at most about 1 MiB (or sixteen rows) per
  /// thread. @throws CancelledError, UnsupportedError, whatever `read` throws.
  [[nodiscard]] virtual std::shared_ptr<const Weight> make_weight(const WeightSource& source, WeightLayout layout,
                                                                  const std::stop_token& stop) = 0;
  /// Names how `make_weight` lays packed weights out, to the last byte: weights stored under an equal name can be used
  /// again. Empty: packed weights of this backend cannot be stored.
  [[nodiscard]] virtual std::string packed_layout() const { return {}; }
  /// The packed bytes of a weight of this backend; empty if it is laid out otherwise or cannot be stored.
  [[nodiscard]] virtual std::span<const std::byte> packed_bytes(const Weight& weight) const;
  /// A weight that uses packed bytes in place. Any bytes are safe; wrong ones give wrong products.
  /// @throws UnsupportedError if packed weights cannot be stored; UsageError for a wrong size, shape or alignment.
  [[nodiscard]] virtual std::shared_ptr<const Weight> use_packed(const PackedWeight& packed);

  /// The first rows and columns of a weight that is no stack, without a copy: it uses the other's memory, and keeps it.
  /// `cols` ends with a block of the format. Null if the backend cannot.
  [[nodiscard]] virtual std::shared_ptr<const Weight> narrow_weight(std::shared_ptr<const Weight> /*whole*/,
                                                                    std::int64_t /*rows*/, std::int64_t /*cols*/) {
    return nullptr;
  }
  /// Copies between host and backend memory, synchronously. For set-up, snapshots and tests, not for steps.
  virtual void write(std::byte* device, std::span<const std::byte> host) = 0;
  virtual void read(std::span<std::byte> host, const std::byte* device) = 0;
  /// Copies inside backend memory; done before any op that is synchronized later.
  virtual void copy(std::byte* to, const std::byte* from, std::size_t bytes) = 0;

  /// A new queue for ops of at most these sizes.
  [[nodiscard]] virtual std::unique_ptr<Stream> new_stream(const StreamLimits& limits) = 0;

 protected:
  BackendInterface() = default;
};

/// The CPU backend as a type, for compositions that name it: `Decoder<CpuBackend, ...>`. Made by make_cpu_backend().
class SKALD_API CpuBackend : public BackendInterface {
 public:
  static constexpr std::string_view backend_name = "cpu";
};
/// The reference backend as a type. Made by make_reference_backend().
class SKALD_API ReferenceBackend : public BackendInterface {
 public:
  static constexpr std::string_view backend_name = "reference";
};

/// A backend: a class that implements the interface above. The type-erased twin is `AnyBackend`.
template <class B>
concept Backend = std::derived_from<B, BackendInterface>;

/// Shared handle to any backend.
using AnyBackend = std::shared_ptr<BackendInterface>;

/// Options of the CPU backend.
struct CpuOptions {
  /// Instruction set by name ("baseline", "avx2", "avx512", "avx512vnni", "avx512bf16"); empty: SKALD_FORCE_ISA if set, else the
  /// best this processor and operating system have. @see available_isas
  std::string isa{};
  /// Threads to use; 0: all of the executor's.
  int threads = 0;
  /// Where work runs; nothing: a oneTBB arena of the backend's own.
  std::optional<AnyExecutor> executor{};
  /// Ask for 2 MiB pages for weights, KV and work memory.
  bool huge_pages = true;
};

/// SIMD kernels on the host's threads. @throws UnsupportedError if the instruction set is unknown or absent.
[[nodiscard]] SKALD_API AnyBackend make_cpu_backend(const CpuOptions& options = {});
/// Plain f32 loops on Eigen, one thread: slow and obviously right. The oracle of the tests.
[[nodiscard]] SKALD_API AnyBackend make_reference_backend();
/// Backend by name: "cpu", "reference", or with options "cpu:isa=avx2,threads=2". @throws UsageError listing the names.
[[nodiscard]] SKALD_API AnyBackend make_backend(std::string_view spec);

}  // namespace skald::inline v0
