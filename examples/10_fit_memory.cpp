// How large a context fits: the memory of a pipeline is planned from the file's tables, before anything is loaded.
//   fit_memory [model.gguf] [budget in MiB]
// Prints the plan for every context that was tried, takes the largest that fits and generates within it. The default
// budget is a little less than 1024 tokens need.
#include <cstdint>
#include <iostream>
#include <string>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const std::string path = argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL;
  // KV in q8_0 and one session; the plan counts weights, KV pages, activations and work memory.
  skald::PlanOptions options{.sequences = 1, .kv_type = skald::DType::q8_0, .batch_tokens = 128};
  options.context = 1024;
  skald::MemoryPlan plan = skald::plan(path, options);
  const std::uint64_t budget = argc > 2 ? std::uint64_t{std::stoul(argv[2])} << 20 : plan.total() - 1024;
  for (; options.context >= 64; options.context /= 2) {
    plan = skald::plan(path, options);
    std::cout << options.context << " tokens: " << plan.total() / 1024 << " KiB, of them weights "
              << plan.weights / 1024 << ", KV " << plan.kv / 1024 << '\n';
    if (plan.total() <= budget) break;
  }
  if (plan.total() > budget) {
    std::cerr << "error: the model does not fit into " << budget / 1024 << " KiB\n";
    return 1;
  }

  // The same numbers again, now for real. Loading would refuse a model whose weights exceed the budget.
  const auto model = skald::Model::load(path, {.memory_budget = budget});
  const auto decoder = skald::Decoder(
      model, {.kv = {.format = "q8_0"}, .context = options.context, .parallel = 1, .batch_tokens = options.batch_tokens});
  auto session = decoder.new_session();
  const std::string prompt = "Once upon a time";
  std::cout << prompt;
  for (const auto& piece : skald::generate(session, prompt, {.max_tokens = 32}))
    std::cout << piece.text << std::flush;
  std::cout << "\na context of " << options.context << " tokens fits " << budget / 1024 << " KiB; the session holds "
            << session.bytes() / 1024 << " KiB\n";
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
