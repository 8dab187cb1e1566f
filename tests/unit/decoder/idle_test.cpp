// A library in somebody's process: what decoders leave to others.
#include <atomic>
#include <filesystem>
#include <thread>

#include <sys/resource.h>

#include <skald/core/executor.hpp>
#include <skald/decoder/decoder.hpp>

#include "support/catch.hpp"
#include "support/tiny_model.hpp"

namespace {

/// Processor time of all threads of this process.
double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::ptrdiff_t thread_count() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
}

/// Counts those who work at the same time.
class CountingExecutor {
 public:
  explicit CountingExecutor(skald::AnyExecutor inner) : inner_(std::move(inner)) {}
  [[nodiscard]] int concurrency() const { return inner_.concurrency(); }
  void run(int n, skald::FunctionRef<void(int)> work) {
    inner_.run(n, [&](int i) {
      const int now = active_.fetch_add(1) + 1;
      for (int peak = peak_.load(); now > peak && !peak_.compare_exchange_weak(peak, now);) {
      }
      work(i);
      active_.fetch_sub(1);
    });
  }
  [[nodiscard]] int peak() const { return peak_.load(); }

 private:
  skald::AnyExecutor inner_;
  std::atomic<int> active_{0};
  std::atomic<int> peak_{0};
};

void decode(const skald::Model& model, int count) {
  auto session = skald::Decoder(model).new_session();
  for (const auto token : skald_test::some_tokens(count, model.spec().vocabulary)) (void)session.forward({&token, 1});
}

}  // namespace

TEST_CASE("decoder.idle: a tenth of a second after the last token no processor time is used") {
  const auto model = skald_test::tiny_model({.type = skald::DType::q8_0}, {.backend = skald::make_backend("cpu:threads=4")});
  decode(model, 30);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(cpu_seconds() - before < 0.005);  // one percent of a core
}

TEST_CASE("decoder.idle: two decoders on one arena share its threads") {
  const auto counting = std::make_shared<CountingExecutor>(skald::make_tbb_executor(3));
  const skald::CpuOptions options{.threads = 3, .executor = skald::AnyExecutor(counting)};
  const auto one = skald_test::tiny_model({.type = skald::DType::q8_0}, {.backend = skald::make_cpu_backend(options)});
  const auto two = skald_test::tiny_model({.type = skald::DType::q4_0}, {.backend = skald::make_cpu_backend(options)});
  decode(one, 1);
  const auto threads = thread_count();
  {
    std::thread first([&] { decode(one, 60); });
    std::thread second([&] { decode(two, 60); });
    CHECK(thread_count() <= threads + 2 + counting->concurrency());
    first.join();
    second.join();
  }
  CHECK(counting->peak() <= counting->concurrency());
  CHECK(counting->peak() > 0);
}
