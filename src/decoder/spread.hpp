#pragma once

#include <cstdint>
#include <memory>

#include <skald/backend/backend.hpp>
#include <skald/core/function_ref.hpp>

namespace skald::inline v0::detail {

/// Runs work(0) to work(units - 1), which do not throw, on the threads of a stream whose queue is empty.
class HostThreads {
 public:
  explicit HostThreads(const std::unique_ptr<Stream>& stream) : stream_(&stream) {}

  void operator()(std::int64_t units, FunctionRef<void(std::int64_t)> work) const {
    const Op op = HostOp{.run = [](void* context, std::int64_t unit) noexcept {
                           (*static_cast<FunctionRef<void(std::int64_t)>*>(context))(unit);
                         },
                         .context = &work,
                         .units = units};
    try {
      (*stream_)->enqueue(op);
    } catch (...) {  // no room: then one after the other
      for (std::int64_t unit = 0; unit < units; ++unit) work(unit);
      return;
    }
    (*stream_)->synchronize();
  }

 private:
  const std::unique_ptr<Stream>* stream_;
};

}  // namespace skald::inline v0::detail
