// Any bytes: a compressed context is loaded, or refused by a skald::Error that names the file; a session that was
// refused holds what it held. The checksums are put right first, so that what they guard is reached.

#include <cstdlib>
#include <cstring>

#include <skald/decoder/context_file.hpp>
#include <skald/decoder/decoder.hpp>

#include "decoder/checksum.hpp"
#include "support/context_model.hpp"

namespace {

using namespace skald;

void check(bool condition) {
  if (!condition) std::abort();
}

constexpr std::size_t prefix = 8 + 13 + 4 + 8;  // magic with its length, version, size of the description

void put(std::vector<std::byte>& bytes, std::size_t at, std::uint64_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

/// The checksum of the description, where that has its place inside the bytes.
bool repair_header(std::vector<std::byte>& bytes) {
  if (bytes.size() < prefix + 8) return false;
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.data() + prefix - 8, sizeof size);
  if (size < 8 || size > bytes.size() - prefix) return false;
  const auto end = prefix + static_cast<std::size_t>(size) - 8;
  put(bytes, end, skald::detail::checksum(std::span(bytes).first(end)));
  return true;
}

/// The checksums of the chunks, which the description ends with.
void repair_chunks(std::vector<std::byte>& bytes, const ContextFile& file) {
  const auto levels = file.steps().size();
  const auto chunks = file.chunks().size();
  auto at = static_cast<std::size_t>(file.header_bytes()) - 8 - 16 * levels * chunks;
  auto offset = static_cast<std::size_t>(file.header_bytes());
  for (std::size_t q = 0; q < levels; ++q)
    for (std::size_t c = 0; c < chunks; ++c, at += 16) {
      const auto size = static_cast<std::size_t>(file.chunks()[c].bytes[q]);
      put(bytes, at + 8, skald::detail::checksum(std::span(bytes).subspan(offset, size)));
      offset += size;
    }
  (void)repair_header(bytes);
}

void load(std::span<const std::byte> bytes, Session& session, int level) {
  const auto executor = AnyExecutor(std::make_shared<SerialExecutor>());
  const auto before = session.length();
  try {
    const ContextFile file({SpanSource(bytes), "input"});
    const auto report = file.load(session, {.level = level, .executor = executor});
    check(session.length() == static_cast<std::int64_t>(file.tokens().size()));
    check(report.choices.size() == file.chunks().size());
  } catch (const Error& error) {
    check(std::string_view(error.what()).size() <= 1024);
    check(session.length() == before);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Decoder decoder(skald_test::context_model(), DecoderOptions{.context = 128, .parallel = 3});
  auto session = decoder.new_session();
  const TokenId token = 1;
  (void)session.forward({&token, 1}, LogitsWanted::none);
  std::vector<std::byte> bytes(size);
  if (size > 0) std::memcpy(bytes.data(), data, size);
  load(bytes, session, 0);
  if (!repair_header(bytes)) return 0;
  try {
    const ContextFile file({SpanSource(bytes), "input"});
    repair_chunks(bytes, file);
  } catch (const Error& error) {
    check(error.context().file == "input");
  }
  for (int level = 0; level < 2; ++level) load(bytes, session, level);
  return 0;
}
