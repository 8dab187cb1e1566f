// What the compilers made of the hot loops: products and attention in registers.

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "tree.hpp"

namespace {

struct Instruction {
  unsigned long address = 0;
  std::string mnemonic;
  std::string operands;
};

/// A disassembled line is "  address:<blanks>mnemonic<blanks>operands"; GNU's and LLVM's objdump differ in the blanks.
bool parse(const std::string& line, Instruction& out) {
  if (line.empty() || line[0] != ' ') return false;
  char* colon = nullptr;
  out.address = std::strtoul(line.c_str(), &colon, 16);
  if (colon == line.c_str() || *colon != ':') return false;
  const auto begin = line.find_first_not_of(" \t", static_cast<std::size_t>(colon + 1 - line.c_str()));
  if (begin == std::string::npos) return false;
  const auto blank = line.find_first_of(" \t", begin);
  out.mnemonic = line.substr(begin, blank == std::string::npos ? blank : blank - begin);
  const auto rest = blank == std::string::npos ? blank : line.find_first_not_of(" \t", blank);
  out.operands = rest == std::string::npos ? "" : line.substr(rest);
  return true;
}

/// A multiplication whose result is added up: what the hot loops consist of.
bool is_product(const Instruction& i) {
  const std::string_view m = i.mnemonic;
  return m.starts_with("vpdpbusd") || m.starts_with("vpdpwssd") || m.starts_with("vdpbf16ps") ||
         m.starts_with("vpmaddubsw") || m.starts_with("vpmaddwd") ||
         ((m.starts_with("vfmadd") || m.starts_with("vfnmadd")) && m.ends_with("ps"));
}
bool is_call(const Instruction& i) { return i.mnemonic.starts_with("call"); }
/// A vector that is read from or written to the stack.
bool is_spill(const Instruction& i) {
  const bool stack = i.operands.find("(%rsp") != std::string::npos || i.operands.find("(%rbp") != std::string::npos;
  return stack && i.operands.find("mm") != std::string::npos;
}

struct Loop {
  std::string function;
  int instructions = 0;
  int products = 0;
  int calls = 0;
  int spills = 0;
};

/// The innermost loops of a function with at least eight products: jumps back over no other jump back.
void find_loops(const std::string& function, const std::vector<Instruction>& code, std::vector<Loop>& loops) {
  std::vector<std::pair<std::size_t, std::size_t>> jumps;  // where they go, where they are
  for (std::size_t end = 0; end < code.size(); ++end) {
    if (code[end].mnemonic.front() != 'j' || code[end].operands.empty()) continue;
    char* stop = nullptr;
    const unsigned long target = std::strtoul(code[end].operands.c_str(), &stop, 16);
    if (stop == code[end].operands.c_str() || target > code[end].address) continue;
    const auto at = std::lower_bound(code.begin(), code.end(), target,
                                     [](const Instruction& i, unsigned long address) { return i.address < address; });
    if (at != code.end() && at->address == target) jumps.emplace_back(at - code.begin(), end);
  }
  for (const auto& jump : jumps) {
    const auto inside = [&](const auto& other) {
      return other != jump && other.first >= jump.first && other.second <= jump.second;
    };
    if (std::any_of(jumps.begin(), jumps.end(), inside)) continue;
    Loop loop;
    loop.function = function;
    for (std::size_t i = jump.first; i <= jump.second; ++i) {
      ++loop.instructions;
      loop.products += is_product(code[i]) ? 1 : 0;
      loop.calls += is_call(code[i]) ? 1 : 0;
      loop.spills += is_spill(code[i]) ? 1 : 0;
    }
    if (loop.products >= 8) loops.push_back(std::move(loop));
  }
}

std::vector<Loop> loops_of(const std::vector<std::string>& lines) {
  std::vector<Loop> loops;
  std::vector<Instruction> code;
  std::string function;
  for (const auto& line : lines) {
    Instruction instruction;
    if (parse(line, instruction)) {
      code.push_back(std::move(instruction));
    } else if (line.ends_with(">:")) {
      find_loops(function, code, loops);
      code.clear();
      function = line.substr(line.find('<'));
    }
  }
  find_loops(function, code, loops);
  return loops;
}

/// Objects of an instruction set.
std::vector<std::string> objects_of(const std::string& isa) {
  std::vector<std::string> paths;
  for (const auto& line : skald_test::lines_of(SKALD_OBJECT_LIST))
    if (line.starts_with(isa + " ")) paths.push_back(line.substr(isa.size() + 1));
  return paths;
}

std::vector<std::string> disassemble(const std::string& object) {
  const std::string command = SKALD_OBJDUMP " -d -w -C --no-show-raw-insn '" + object + "'";
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  REQUIRE(pipe != nullptr);
  std::vector<std::string> lines(1);
  std::array<char, 65536> buffer{};
  while (const auto n = std::fread(buffer.data(), 1, buffer.size(), pipe.get())) {
    for (std::size_t i = 0; i < n; ++i) {
      if (buffer[i] == '\n') lines.emplace_back();
      else lines.back().push_back(buffer[i]);
    }
  }
  return lines;
}

}  // namespace

TEST_CASE("gates.loops: calls and spilled vectors are found", "[gates]") {
  struct Style {
    const char* after_address;
    const char* after_mnemonic;
    const char* target;
  };
  for (const Style& style : {Style{"\t", " ", ""}, Style{"      \t", "\t", "0x"}}) {  // GNU's and LLVM's objdump
    std::vector<std::string> lines{"", "Disassembly of section .text:", "0000000000000010 <hot(int)>:"};
    const auto add = [&](int address, const std::string& mnemonic, const std::string& operands) {
      std::array<char, 32> number{};
      std::snprintf(number.data(), number.size(), "  %x:", static_cast<unsigned>(address));
      lines.push_back(number.data() + (style.after_address + mnemonic) + style.after_mnemonic + operands);
    };
    add(0x10, "vmovaps", "%zmm0,0x40(%rsp)");  // before the loop: not counted
    add(0x20, "vmovaps", "0x40(%rsp),%zmm1");
    for (int i = 0; i < 8; ++i) add(0x21 + i, "vfmadd231ps", "%zmm1,%zmm2,%zmm3");
    add(0x30, "mov", "0x8(%rsp),%rax");  // no vector
    add(0x31, "call", "1234 <other>");
    add(0x32, "jne", style.target + std::string("20 <hot(int)+0x10>"));
    add(0x33, "jne", style.target + std::string("10 <hot(int)>"));  // the loop around it
    const auto loops = loops_of(lines);
    REQUIRE(loops.size() == 1);
    CHECK(loops[0].function == "<hot(int)>:");
    CHECK(loops[0].instructions == 12);
    CHECK(loops[0].products == 8);
    CHECK(loops[0].calls == 1);
    CHECK(loops[0].spills == 1);
  }
}

#if !SKALD_SANITIZED && defined(NDEBUG) && defined(__x86_64__)
TEST_CASE("gates.loops: products neither call nor spill", "[gates]") {
  // With GCC the tiles that decide the speed of the most common formats keep everything in registers. Others may spill a few
  // multipliers: instances with twelve columns of formats with two levels of scales need more than 32 registers, and avx2 has
  // sixteen, each half a vector. Clang spills more; its
  // loops are only searched for calls.
#if defined(__clang__)
  constexpr bool bounded = false;
#else
  constexpr bool bounded = true;
#endif
  struct Limit {
    std::string isa;
    double most_spills_per_product;
    std::vector<std::string> without;  ///< pieces of names of files that spill nothing
  };
  const std::vector<Limit> limits{
      {"avx512vnni", 0.34, {"matmul_q4_0", "matmul_q8_0", "matmul_float", "matmul_mxfp4", "matmul_iq4_nl"}},
      {"avx512bf16", 0.0, {"matmul_bf16"}},
      {"avx512", 1.2, {"matmul_q8_0", "matmul_float"}},
      {"avx2", 3.0, {}},
  };
  for (const auto& limit : limits) {
    INFO(limit.isa);
    std::vector<std::string> faults;
    std::size_t count = 0;
    for (const auto& path : objects_of(limit.isa)) {
      const auto name = path.substr(path.rfind('/') + 1);
      const bool products = name.starts_with("matmul") || name.starts_with("attention");
      if (!products) continue;
      bool strict = false;
      for (const auto& piece : limit.without) strict = strict || name.find(piece) != std::string::npos;
      for (const auto& loop : loops_of(disassemble(path))) {
        if (loop.function.find("::merge(") != std::string::npos) continue;  // once for each chunk of a row
        ++count;
        const double most = strict ? 0.0 : limit.most_spills_per_product * loop.products;
        if (loop.calls > 0 || (bounded && loop.spills > most))
          faults.push_back(name + ": " + loop.function.substr(0, 160) + " " + std::to_string(loop.products) +
                           " products, " + std::to_string(loop.calls) + " calls, " + std::to_string(loop.spills) +
                           " vectors on the stack");
      }
    }
    if (objects_of(limit.isa).empty()) continue;
    CHECK(count > 10);
    CHECK(skald_test::joined(faults) == "");
  }
}
#endif
