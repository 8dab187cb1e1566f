#include <skald/model/gguf/reader.hpp>

#include <filesystem>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

using namespace skald;

TEST_CASE("model.gguf: opens every reference file, mapped and read alike") {
  for (const std::string folder : {"goldens/models", "goldens/quants/models", "goldens/tokenizers/vocab"}) {
    if (!skald_test::have_shared(folder)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(skald_test::shared_path(folder))) {
      if (entry.path().extension() != ".gguf") continue;
      INFO(entry.path().string());
      const auto mapped = open_gguf(entry.path().string());
      const auto read = open_gguf(entry.path().string(), {.map = false});
      CHECK(mapped.metadata().size() > 0);
      CHECK(mapped.metadata().size() == read.metadata().size());
      CHECK(mapped.tensors().size() == read.tensors().size());
      for (const auto& tensor : mapped.tensors()) {
        CHECK(mapped.find(tensor.name) == &tensor);
        std::vector<std::byte> bytes(tensor.bytes);
        read.read(read.at(tensor.name), bytes);
        const auto view = mapped.view(tensor);
        REQUIRE(view.size() == bytes.size());
        CHECK(std::equal(view.begin(), view.end(), bytes.begin()));
      }
    }
  }
}
