#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/core/function_ref.hpp>

namespace skald::inline v0::detail {

/// Runs work(0) to work(units - 1), which do not throw, on the threads of a stream whose queue is empty; what they fail to
/// run, the calling one runs.
class HostThreads {
 public:
  explicit HostThreads(const std::unique_ptr<Stream>& stream) : stream_(&stream) {}

  void operator()(std::int64_t units, FunctionRef<void(std::int64_t)> work) const {
    Job job{work, nullptr};
    try {
      if (static_cast<std::int64_t>(done_.size()) < units) done_.resize(static_cast<std::size_t>(units));
      std::fill_n(done_.begin(), units, std::uint8_t{0});
      job.done = done_.data();
      const Op op = HostOp{.run = [](void* context, std::int64_t unit) noexcept { static_cast<Job*>(context)->run(unit); },
                           .context = &job,
                           .units = units};
      (*stream_)->enqueue(op);
      (*stream_)->synchronize();
    } catch (...) {  // no memory, or an executor of the host's that has failed
      for (std::int64_t unit = 0; unit < units; ++unit)
        if (job.done == nullptr || job.done[unit] == 0) work(unit);
    }
  }

 private:
  struct Job {
    FunctionRef<void(std::int64_t)> work;
    std::uint8_t* done;
    void run(std::int64_t unit) const noexcept {
      work(unit);
      done[unit] = 1;
    }
  };
  const std::unique_ptr<Stream>* stream_;
  mutable std::vector<std::uint8_t> done_;  // by unit; kept so that steps allocate nothing
};

}  // namespace skald::inline v0::detail
