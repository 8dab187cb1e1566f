#include <skald/backend/backend.hpp>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

// Out of line: one place for each class's virtual table.
Weight::~Weight() = default;
Stream::~Stream() = default;
BackendInterface::~BackendInterface() = default;

std::span<const std::byte> BackendInterface::packed_bytes(const Weight& /*weight*/) const { return {}; }
std::shared_ptr<const Weight> BackendInterface::use_packed(const PackedWeight& /*packed*/) {
  throw UnsupportedError("backend", "packed weights of this backend cannot be stored");
}

}  // namespace skald::inline v0
