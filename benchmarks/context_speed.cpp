// Restoring a compressed context beside computing it.
//   skald_context_speed model.gguf [tokens [rounds]]
// The tokens are random; the file lies in the folder for temporary files and is read back at once, from the memory of the
// operating system. Prints CSV.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include <skald/decoder/context_file.hpp>
#include <skald/decoder/decoder.hpp>

namespace {

template <class Work>
double seconds(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s model.gguf [tokens [rounds]]\n", argv[0]);
    return 2;
  }
  const auto model = skald::Model::load(argv[1]);
  const auto count = static_cast<std::size_t>(argc > 2 ? std::stoul(argv[2]) : 4096);
  const int rounds = argc > 3 ? std::stoi(argv[3]) : 1;
  const skald::Decoder decoder(model, {.context = static_cast<std::int64_t>(count) + 64});
  std::mt19937 random(1);
  std::vector<skald::TokenId> tokens(count);
  for (auto& token : tokens)
    token = static_cast<skald::TokenId>(random() % static_cast<std::uint32_t>(model.spec().vocabulary));
  const auto path = (std::filesystem::temp_directory_path() / "skald_context_speed.ctx").string();
  std::printf("tokens,compute s,save s,load s,file MiB,KV MiB\n");
  for (int round = 0; round < rounds; ++round) {
    auto session = decoder.new_session();
    const double computed = seconds([&] { (void)session.forward(tokens, skald::LogitsWanted::none); });
    const auto bytes = static_cast<double>(session.bytes());
    const double saved = seconds([&] { skald::save_context(session, path); });
    session.clear();
    const double loaded = seconds([&] { (void)skald::ContextFile::open(path).load(session); });
    std::printf("%zu,%.3f,%.3f,%.3f,%.2f,%.1f\n", count, computed, saved, loaded,
                static_cast<double>(std::filesystem::file_size(path)) / 1048576.0, bytes / 1048576.0);
    std::fflush(stdout);
  }
  std::filesystem::remove(path);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
