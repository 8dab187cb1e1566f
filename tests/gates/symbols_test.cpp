// What the compiler made of the library: which symbols its object files define and call.

#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <regex>
#include <set>

#include "support/catch.hpp"
#include "tree.hpp"

namespace {

/// Output of a command, line by line.
std::vector<std::string> run(const std::string& command) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen((command + " 2>&1").c_str(), "r"), pclose);
  REQUIRE(pipe != nullptr);
  std::vector<std::string> lines(1);
  for (int c = 0; (c = std::fgetc(pipe.get())) != EOF;) {
    if (c == '\n') {
      lines.emplace_back();
    } else {
      lines.back().push_back(static_cast<char>(c));
    }
  }
  lines.pop_back();
  return lines;
}

/// Object files by instruction set; those of the rooms under "library".
const std::map<std::string, std::vector<std::string>>& objects() {
  static const auto all = [] {
    std::map<std::string, std::vector<std::string>> result;
    for (const auto& line : skald_test::lines_of(SKALD_OBJECT_LIST)) {
      const auto blank = line.find(' ');
      if (blank == std::string::npos) continue;
      auto path = line.substr(blank + 1);
      // The library's list holds the kernels' objects as well.
      const bool kernel = path.find("skald_kernels_") != std::string::npos;
      if (line.substr(0, blank) == "library" && kernel) continue;
      result[line.substr(0, blank)].push_back(std::move(path));
    }
    return result;
  }();
  return all;
}

std::string quoted(const std::string& text) { return "'" + text + "'"; }

struct Symbol {
  char kind = ' ';
  std::string name;
};

std::vector<Symbol> symbols_of(const std::string& object) {
  std::vector<Symbol> symbols;
  for (const auto& line : run(SKALD_NM " -C " + quoted(object))) {
    if (line.size() < 20) continue;
    symbols.push_back({line[17], line.substr(19)});
  }
  return symbols;
}

/// Weak and unique symbols of which the linker keeps one for the whole program.
bool shared_kind(char kind) { return std::string_view("WwVvu").find(kind) != std::string_view::npos; }

bool weak_symbol_leaks(const Symbol& symbol, const std::string& isa) {
  return shared_kind(symbol.kind) && symbol.name.find("::" + isa + "::") == std::string::npos;
}

/// True for instructions with VEX or EVEX encoding, which fault on a processor without AVX. A disassembled line is
/// "address: <tab> bytes <tab> mnemonic operands".
bool is_avx(const std::string& line) {
  static const std::regex pattern(
      R"(\t(v[a-z0-9]+|k(mov|or|and|xor|not|unpck|add|shift|test)[a-z]*|andn|bextr|pdep|pext|mulx|rorx|sarx|shlx|shrx)\s)");
  static const std::regex not_vector(R"(\t(verr|verw|vmcall|vmlaunch|vmresume|vmxoff)\s)");
  return std::regex_search(line, pattern) && !std::regex_search(line, not_vector);
}

}  // namespace

TEST_CASE("gates.symbols: the rules find what they forbid", "[gates]") {
  CHECK(weak_symbol_leaks({'W', "float std::max<float>(float, float)"}, "avx2"));
  CHECK(weak_symbol_leaks({'V', "skald::v0::kernels::avx512::table"}, "avx2"));
  CHECK(!weak_symbol_leaks({'W', "skald::v0::kernels::avx2::dot(float)"}, "avx2"));
  CHECK(!weak_symbol_leaks({'T', "skald::v0::kernels::avx2::dot(float)"}, "avx2"));
  CHECK(is_avx("  10:\tc5 f8 77 \tvzeroupper "));
  CHECK(is_avx("  10:\t62 f1 7c 48 \tvmovups (%rax),%zmm0"));
  CHECK(is_avx("  10:\tc4 e2 \tshlx   %rax,%rbx,%rcx"));
  CHECK(!is_avx("  10:\t0f 28 c1 \tmovaps %xmm1,%xmm0"));
}

#if !SKALD_SANITIZED
TEST_CASE("gates.symbols: kernels of an instruction set share no weak symbol with other code", "[gates]") {
  REQUIRE(objects().size() >= 2);
  std::vector<std::string> faults;
  for (const auto& [isa, paths] : objects()) {
    if (isa == "library") continue;
    for (const auto& path : paths)
      for (const auto& symbol : symbols_of(path))
        if (weak_symbol_leaks(symbol, isa)) faults.push_back(isa + ": " + path + ": " + symbol.name);
  }
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.symbols: kernels define only names of their instruction set", "[gates]") {
  std::vector<std::string> faults;
  for (const auto& [isa, paths] : objects()) {
    if (isa == "library") continue;
    for (const auto& path : paths)
      for (const auto& symbol : symbols_of(path))
        if (std::string_view("TDBRG").find(symbol.kind) != std::string_view::npos &&
            symbol.name.find("skald::v0::kernels::" + isa + "::") == std::string::npos)
          faults.push_back(path + ": " + symbol.name);
  }
  CHECK(skald_test::joined(faults) == "");
}

#if defined(__x86_64__)
TEST_CASE("gates.symbols: code for every processor holds no AVX instruction", "[gates]") {
  std::vector<std::string> faults;
  std::size_t instructions = 0;
  for (const std::string isa : {"library", "baseline"})
    for (const auto& path : objects().at(isa))
      for (const auto& line : run(SKALD_OBJDUMP " -d -w " + quoted(path))) {
        ++instructions;
        if (is_avx(line)) faults.push_back(path + ": " + line);
      }
  CHECK(instructions > 10000);
  if (faults.size() > 20) faults.resize(20);
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.symbols: kernels of the instruction sets use them", "[gates]") {
  const std::map<std::string, std::string> expected{{"avx2", "%ymm"}, {"avx512", "%zmm"}, {"avx512vnni", "vpdpbusd"},
                                                    {"avx512bf16", "vdpbf16ps"}};
  for (const auto& [isa, word] : expected) {
    INFO(isa);
    if (objects().count(isa) == 0) continue;
    bool found = false;
    for (const auto& path : objects().at(isa))
      for (const auto& line : run(SKALD_OBJDUMP " -d -w " + quoted(path)))
        found = found || line.find(word) != std::string::npos;
    CHECK(found);
  }
}
#endif

TEST_CASE("gates.symbols: the library neither ends the process nor writes to its streams", "[gates]") {
  const std::set<std::string> forbidden{
      "abort",  "exit",      "_exit",     "_Exit",     "quick_exit",   "__assert_fail",  "raise",
      "kill",   "signal",    "sigaction", "printf",    "vprintf",      "puts",           "putchar",
      "putc",   "fputs",     "perror",    "stdout",    "stderr",       "system",         "fork",
      "popen",  "execv",     "setenv",    "putenv",    "setlocale",    "srand",          "rand",
      "dlopen", "std::cout", "std::cerr", "std::clog", "std::abort()", "std::exit(int)", "pthread_create"};
  // std::terminate: the compilers call it where an exception would leave a noexcept function or a destructor. No source
  // calls it, which the test below looks for.
  std::vector<std::string> faults;
  for (const auto& [isa, paths] : objects())
    for (const auto& path : paths)
      for (const auto& symbol : symbols_of(path))
        if (symbol.kind == 'U' && forbidden.count(symbol.name) != 0) faults.push_back(path + ": " + symbol.name);
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.symbols: the library has no mutable globals", "[gates]") {
  // Each is written once, under the compiler's guard, before anybody reads it.
  const std::vector<std::string> allowed{
      "skald::v0::(anonymous namespace)::highest_isa()::",  // what the processor has
      "skald::v0::processor_name()::",                      // its name
      "skald::v0::quant::(anonymous namespace)::iq",        // searchable codebooks of the encoders
      "Eigen::internal::manage_caching_sizes(",             // sizes of the processor's caches, in Eigen's products
  };
  // constexpr arrays that GCC 12 puts into a writable section because of the relocations in them.
  const std::vector<std::string> constants{"skald::v0::detail::(anonymous namespace)::"};
  std::vector<std::string> faults;
  for (const auto& [isa, paths] : objects())
    for (const auto& path : paths)
      for (const auto& line : run(SKALD_OBJDUMP " -t -C " + quoted(path))) {
        static const std::regex writable(R"( O (\.(data|bss|tdata|tbss)\S*)\s+[0-9a-f]+\s+(.*)$)");
        std::smatch match;
        if (!std::regex_search(line, match, writable)) continue;
        const std::string section = match[1];
        std::string name = match[3];
        if (section.starts_with(".data.rel.ro") || name.find("DW.ref.") != std::string::npos) continue;
        for (const std::string prefix : {".hidden ", "guard variable for "})
          if (name.starts_with(prefix)) name = name.substr(prefix.size());
        const auto begins = [&](const std::string& start) { return name.starts_with(start); };
        if (std::any_of(allowed.begin(), allowed.end(), begins)) continue;
        if (section == ".data.rel.local" && path.find("pre_tokenizer_table") != std::string::npos &&
            std::any_of(constants.begin(), constants.end(), begins))
          continue;
        faults.push_back(path + ": " + section + " " + name);
      }
  CHECK(skald_test::joined(faults) == "");
}
#endif

TEST_CASE("gates.symbols: no source of the library ends the process or prints", "[gates]") {
  const std::regex forbidden(
      R"((^|[^\w.>:])(std::)?(abort|exit|_Exit|quick_exit|terminate|raise|printf|puts|assert)\s*\(|std::(cout|cerr|clog)\b)");
  std::vector<std::string> faults;
  for (const std::string folder : {"include", "src"})
    for (const auto& file : skald_test::files_under(folder, {".hpp", ".cpp"}))
      for (std::size_t i = 0; i < file.lines.size(); ++i) {
        const auto code = file.lines[i].substr(0, file.lines[i].find("//"));
        if (std::regex_search(code, forbidden)) faults.push_back(file.path + ":" + std::to_string(i + 1) + ": " + code);
      }
  CHECK(skald_test::joined(faults) == "");
}

TEST_CASE("gates.symbols: only one place reads the environment", "[gates]") {
  std::vector<std::string> places;
  for (const std::string folder : {"include", "src"})
    for (const auto& file : skald_test::files_under(folder, {".hpp", ".cpp"}))
      for (const auto& line : file.lines)
        if (line.find("getenv") != std::string::npos) places.push_back(file.path);
  CHECK(places == std::vector<std::string>{"src/simd/isa.cpp"});
}
