// Who may include whom: rooms point to rooms above them, public headers to the standard library and skald alone, kernel
// translation units to next to nothing.

#include <array>
#include <optional>
#include <set>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tree.hpp"

namespace {

using skald_test::SourceFile;

/// The rooms in their order: a file may include from its own room and from those before it.
constexpr std::array<std::string_view, 13> rooms{"core",     "simd",   "quant",      "kernels", "backend",
                                                 "text",     "model",  "state",      "mixers",  "decoder",
                                                 "generate", "engine", "distributed"};

std::optional<std::size_t> room_index(std::string_view name) {
  const auto* found = std::find(rooms.begin(), rooms.end(), name);
  if (found == rooms.end()) return std::nullopt;
  return static_cast<std::size_t>(found - rooms.begin());
}

/// First folder of a path, or nothing.
std::string first_folder(const std::string& path) {
  const auto slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

/// Room that a file of include/skald/ or src/ belongs to; empty for files outside rooms.
std::string room_of_file(const std::string& path) {
  for (const std::string root : {"include/skald/", "src/"})
    if (path.starts_with(root)) return first_folder(path.substr(root.size()));
  return {};
}

/// Room that an include names; empty for the standard library, third parties and skald's files outside rooms.
std::string room_of_include(const skald_test::Include& include, const std::string& own_room) {
  if (include.name.starts_with("skald/")) return first_folder(include.name.substr(6));
  if (!include.quoted) return {};
  const auto folder = first_folder(include.name);
  return folder.empty() ? own_room : folder;
}

bool is_standard(const std::string& name) { return name.find_first_of("/.") == std::string::npos; }

std::vector<std::string> faults_of(const SourceFile& file) {
  std::vector<std::string> faults;
  const auto room = room_of_file(file.path);
  if (room.empty()) return faults;
  const auto own = room_index(room);
  if (!own) return {file.path + ": there is no room '" + room + "'"};
  for (std::size_t i = 0; i < file.lines.size(); ++i) {
    const auto include = skald_test::include_in(file.lines[i]);
    if (include.name.empty()) continue;
    const auto place = file.path + ":" + std::to_string(i + 1) + ": ";
    if (include.name == "skald/skald.hpp") faults.push_back(place + "the umbrella header is for users");
    const auto target = room_of_include(include, room);
    if (target.empty()) continue;
    const auto index = room_index(target);
    if (!index) {
      faults.push_back(place + "there is no room '" + target + "'");
    } else if (*index > *own) {
      faults.push_back(place + room + " includes from " + target + ", which lies below it");
    }
  }
  return faults;
}

}  // namespace

TEST_CASE("gates.includes: the rule finds what it forbids", "[gates]") {
  CHECK(faults_of({"src/core/a.cpp", {"#include <skald/model/model.hpp>"}}).size() == 1);
  CHECK(faults_of({"src/quant/a.cpp", {"# include \"kernels/kernel_table.hpp\""}}).size() == 1);
  CHECK(faults_of({"include/skald/attic/a.hpp", {"#pragma once"}}).size() == 1);
  CHECK(faults_of({"src/model/a.cpp", {"#include <skald/skald.hpp>"}}).size() == 1);
  CHECK(faults_of({"src/model/a.cpp",
                   {"#include <skald/core/error.hpp>", "#include \"limits.hpp\"", "#include <fmt/format.h>"}})
            .empty());
}

TEST_CASE("gates.includes: a file includes only from its own room and the rooms above it", "[gates]") {
  std::vector<std::string> faults;
  std::size_t files = 0;
  for (const std::string folder : {"include", "src"})
    for (const auto& file : skald_test::files_under(folder, {".hpp", ".cpp", ".h", ".cu"})) {
      ++files;
      for (auto& fault : faults_of(file)) faults.push_back(std::move(fault));
    }
  CHECK(files > 80);
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.includes: public headers include only the standard library and skald", "[gates]") {
  const std::set<std::string> heavy{"iostream", "regex", "filesystem"};
  std::vector<std::string> faults;
  for (const auto& file : skald_test::files_under("include", {""}))
    for (const auto& line : file.lines) {
      const auto include = skald_test::include_in(line);
      if (include.name.empty()) continue;
      if (include.quoted || (!is_standard(include.name) && !include.name.starts_with("skald/")) ||
          heavy.count(include.name) != 0)
        faults.push_back(file.path + ": " + line);
    }
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.includes: kernel translation units reach only what cannot leak weak symbols", "[gates]") {
  const std::set<std::string> allowed{"cstddef", "cstdint", "cmath", "immintrin.h", "arm_neon.h",
                                      // Enumerations and constants only.
                                      "string_view", "optional", "skald/config.hpp", "skald/version.hpp"};
  std::vector<SourceFile> pending = skald_test::files_under("src/kernels/isa", {".cpp"});
  REQUIRE(pending.size() >= 2);
  std::set<std::string> seen;
  std::vector<std::string> faults;
  while (!pending.empty()) {
    const auto file = pending.back();
    pending.pop_back();
    for (const auto& line : file.lines) {
      const auto include = skald_test::include_in(line);
      if (include.name.empty() || allowed.count(include.name) != 0) continue;
      const bool own = include.quoted || include.name.starts_with("skald/");
      if (!own) {
        faults.push_back(file.path + ": " + line);
        continue;
      }
      const auto path = (include.quoted ? "src/" : "include/") + include.name;
      if (seen.insert(path).second)
        pending.push_back({path, skald_test::lines_of(skald_test::source_path(path))});
      if (pending.size() > 0 && pending.back().path == path && pending.back().lines.empty())
        faults.push_back(file.path + ": cannot read " + path);
    }
  }
  CHECK(skald_test::joined(faults) == "");
}
