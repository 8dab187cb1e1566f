#pragma once

// The source tree as data for the tests of its rules.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "support/paths.hpp"

namespace skald_test {

/// One file of the tree: its path from the root and its lines.
struct SourceFile {
  std::string path;
  std::vector<std::string> lines;
};

inline std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

/// All files under `folder` (from the root) whose name ends in one of `endings`, sorted by path.
inline std::vector<SourceFile> files_under(const std::string& folder, const std::vector<std::string>& endings) {
  const std::filesystem::path root = source_path("");
  std::vector<SourceFile> files;
  if (!std::filesystem::exists(root / folder)) return files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
    const auto name = entry.path().filename().string();
    const bool wanted =
        std::any_of(endings.begin(), endings.end(), [&](const std::string& ending) { return name.ends_with(ending); });
    if (entry.is_regular_file() && wanted)
      files.push_back({std::filesystem::relative(entry.path(), root).generic_string(), lines_of(entry.path())});
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return files;
}

/// What a line includes: `name` and whether it was in quotes; an empty name for other lines.
struct Include {
  std::string name;
  bool quoted = false;
};

inline Include include_in(const std::string& line) {
  const auto hash = line.find_first_not_of(" \t");
  if (hash == std::string::npos || line[hash] != '#') return {};
  const auto word = line.find_first_not_of(" \t", hash + 1);
  if (word == std::string::npos || line.compare(word, 7, "include") != 0) return {};
  const auto begin = line.find_first_of("<\"", word);
  if (begin == std::string::npos) return {};
  const auto end = line.find_first_of(">\"", begin + 1);
  return {line.substr(begin + 1, end - begin - 1), line[begin] == '"'};
}

/// Faults as one text, one per line; empty if there are none.
inline std::string joined(const std::vector<std::string>& faults) {
  std::ostringstream text;
  for (const auto& fault : faults) text << fault << '\n';
  return text.str();
}

}  // namespace skald_test
