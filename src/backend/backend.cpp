#include <skald/backend/backend.hpp>

namespace skald::inline v0 {

// Out of line: one place for each class's virtual table.
Weight::~Weight() = default;
Stream::~Stream() = default;
BackendInterface::~BackendInterface() = default;

}  // namespace skald::inline v0
