// Sizes and forms of the files, and that the documents agree with the tree.

#include <set>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tree.hpp"

namespace {

std::set<std::string> rooms_of_tree() {
  std::set<std::string> rooms;
  for (const std::string folder : {"include/skald", "src"})
    for (const auto& entry : std::filesystem::directory_iterator(skald_test::source_path(folder)))
      if (entry.is_directory()) rooms.insert(entry.path().filename().string());
  return rooms;
}

}  // namespace

TEST_CASE("gates.tree: headers have at most 600 lines and sources at most 1000", "[gates]") {
  std::vector<std::string> faults;
  for (const std::string folder : {"include", "src", "tools", "examples", "tests", "benchmarks"})
    for (const auto& file : skald_test::files_under(folder, {".hpp", ".cpp"})) {
      const std::size_t limit = file.path.ends_with(".hpp") ? 600 : 1000;
      if (file.lines.size() > limit)
        faults.push_back(file.path + ": " + std::to_string(file.lines.size()) + " lines, at most " +
                         std::to_string(limit));
    }
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.tree: every header has #pragma once, every public one opens the versioned namespace", "[gates]") {
  // Only forwards to others.
  const std::set<std::string> without_namespace{"include/skald/skald.hpp", "include/skald/version.hpp"};
  std::vector<std::string> faults;
  for (const std::string folder : {"include", "src"})
    for (const auto& file : skald_test::files_under(folder, {".hpp"})) {
      const auto has = [&](std::string_view text) {
        return std::any_of(file.lines.begin(), file.lines.end(),
                           [&](const std::string& line) { return line.find(text) != std::string::npos; });
      };
      if (!has("#pragma once")) faults.push_back(file.path + ": no #pragma once");
      if (folder == "include" && without_namespace.count(file.path) == 0 && !has("namespace skald::inline v0"))
        faults.push_back(file.path + ": not in namespace skald::inline v0");
    }
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.tree: examples have at most 150 lines", "[gates]") {
  std::vector<std::string> faults;
  for (const auto& file : skald_test::files_under("examples", {".cpp"}))
    if (file.lines.size() > 150) faults.push_back(file.path);
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.tree: the umbrella header names only headers that exist, sorted", "[gates]") {
  std::vector<std::string> names;
  for (const auto& line : skald_test::lines_of(skald_test::source_path("include/skald/skald.hpp"))) {
    const auto include = skald_test::include_in(line);
    if (!include.name.empty()) names.push_back(include.name);
  }
  CHECK(names.size() > 15);
  CHECK(std::is_sorted(names.begin(), names.end()));
  for (const auto& name : names) {
    INFO(name);
    CHECK(std::filesystem::exists(skald_test::source_path("include/" + name)));
  }
}

TEST_CASE("gates.tree: docs/tour.md has one line for each room of the tree and no other", "[gates]") {
  std::set<std::string> told;
  for (const auto& line : skald_test::lines_of(skald_test::source_path("docs/tour.md"))) {
    if (!line.starts_with("| `")) continue;
    const auto end = line.find("/`", 3);
    if (end == std::string::npos) continue;
    INFO(line);
    CHECK(told.insert(line.substr(3, end - 3)).second);
  }
  CHECK(told == rooms_of_tree());
}

TEST_CASE("gates.tree: links of the documents lead to files of the tree", "[gates]") {
  std::vector<std::string> faults;
  std::vector<skald_test::SourceFile> documents = skald_test::files_under("docs", {".md"});
  for (const std::string name : {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "models/README.md"})
    documents.push_back({name, skald_test::lines_of(skald_test::source_path(name))});
  for (const auto& document : documents) {
    INFO(document.path);
    CHECK(!document.lines.empty());
    const auto folder = std::filesystem::path(skald_test::source_path(document.path)).parent_path();
    for (const auto& line : document.lines)
      for (auto at = line.find("]("); at != std::string::npos; at = line.find("](", at + 1)) {
        auto target = line.substr(at + 2, line.find(')', at) - at - 2);
        target = target.substr(0, target.find('#'));
        if (target.empty() || target.find("://") != std::string::npos) continue;
        if (!std::filesystem::exists(folder / target)) faults.push_back(document.path + ": " + target);
      }
  }
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.tree: names of tests are one line without a semicolon, at which CTest would cut them", "[gates]") {
  std::vector<std::string> faults;
  for (const auto& file : skald_test::files_under("tests/unit", {"_test.cpp"}))
    for (const auto& line : file.lines) {
      const std::string macro = "TEST_CASE(\"";
      if (!line.starts_with(macro)) continue;
      const auto end = line.find('"', macro.size());
      if (end == std::string::npos || line.substr(0, end).find(';') != std::string::npos)
        faults.push_back(file.path + ": " + line);
    }
  CHECK(skald_test::joined(faults) == "");
}
