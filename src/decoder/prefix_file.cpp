// Prefix caches as files: every node once, parents first, each with its own tokens' rows.
#include <algorithm>
#include <cstring>

#include <skald/core/file.hpp>

#include "decoder/checksum.hpp"
#include "decoder/prefix_tree.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view magic = "skald-prefixes";
constexpr std::uint32_t format_version = 2;
constexpr std::size_t checksum_bytes = 8;
constexpr const char* where = "decoder.prefix_cache";

}  // namespace

void PrefixCache::save(const std::string& path) const {
  auto& tree = *tree_;
  ArchiveWriter out;
  out.text(magic);
  out.value(format_version);
  out.text(key());
  const auto write = [&](const std::shared_ptr<detail::PrefixNode>& node, const std::string& scope) {
    if (node->known()) {
      out.text("prefix");
      out.text(scope);
      out.array(std::span<const TokenId>(detail::tokens_until(*node)));
      out.value(static_cast<std::uint8_t>(node->state ? node->state->row_wise() : node->rows));
      if (!node->state) {  // the slow form is that of the file
        const auto bytes = tree.copy_slow(*node);
        std::copy(bytes.begin(), bytes.end(), out.reserve(bytes.size()).begin());
      } else if (node->state->row_wise()) {
        const auto above = tree.known_above(*node);
        node->state->save_rows(out, above ? above->end() : 0);
      } else {
        node->state->save(out);
      }
    }
  };
  for (const auto& [scope, root] : tree.roots) {
    std::vector<detail::PrefixTree::NodePtr> left{root};
    while (!left.empty()) {
      const auto node = left.back();
      left.pop_back();
      write(node, scope);
      left.insert(left.end(), node->children.rbegin(), node->children.rend());
    }
  }
  out.text("end");
  out.value(detail::checksum(out.bytes()));
  write_file_atomically(path, out.bytes());
}

void PrefixCache::load(const std::string& path) {
  auto& tree = *tree_;
  const auto bytes = read_whole_file(path);
  ArchiveReader head(bytes, path);
  if (bytes.size() < checksum_bytes || head.text("magic") != magic)
    throw FormatError(where, "this is not a file of skald prefixes", {.file = path, .offset = 0});
  if (const auto version = head.value<std::uint32_t>("version"); version != format_version)
    throw UnsupportedError(where,
                           "prefix file version " + std::to_string(version) + ", this library reads version " +
                               std::to_string(format_version),
                           {.file = path});
  const auto body = std::span<const std::byte>(bytes).first(bytes.size() - checksum_bytes);
  std::uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + body.size(), sizeof stored);
  if (stored != detail::checksum(body))
    throw FormatError(where, "the checksum does not match: the data is damaged or cut off",
                      {.file = path, .offset = body.size()});
  ArchiveReader in(body, path);
  (void)in.text("magic");
  (void)in.value<std::uint32_t>("version");
  if (const auto found = in.text("key"); found != key())
    throw IncompatibleError(where, "the prefixes were made with '" + printable(found) + "', here it is '" + key() + "'",
                            {.file = path, .key = "key"});
  struct Entry {
    std::string scope;
    std::vector<TokenId> tokens;
    SequenceState state;
  };
  std::vector<Entry> entries;  // all or nothing
  const auto vocabulary = tree.core->model().spec().vocabulary;
  for (auto tag = in.text("tag"); tag != "end"; tag = in.text("tag")) {
    if (tag != "prefix") in.refuse("tag", "'" + printable(tag) + "' is neither 'prefix' nor 'end'");
    Entry entry;
    entry.scope = in.text("scope");
    entry.tokens = in.array<TokenId>("tokens");
    for (const auto token : entry.tokens)
      if (token < 0 || token >= vocabulary) in.refuse("tokens", "a token id is out of range");
    if (entry.tokens.empty() || static_cast<std::int64_t>(entry.tokens.size()) > tree.core->effective_config().context)
      in.refuse("tokens", std::to_string(entry.tokens.size()) + " tokens do not fit in this decoder's context");
    auto base = tree.core->new_session();
    entry.state = std::move(base.state());
    if (in.value<std::uint8_t>("rows") != 0) {
      if (!entry.state.row_wise()) in.refuse("rows", "this decoder's sequences do not consist of rows");
      // The longest entry before that this one continues.
      const Entry* above = nullptr;
      for (const auto& other : entries)
        if (other.scope == entry.scope && other.tokens.size() < entry.tokens.size() &&
            std::equal(other.tokens.begin(), other.tokens.end(), entry.tokens.begin()) &&
            (above == nullptr || other.tokens.size() > above->tokens.size()))
          above = &other;
      if (above != nullptr) entry.state = above->state.fork();
      entry.state.load_rows(in);
    } else {
      entry.state.load(in);
    }
    if (entry.state.length() != static_cast<std::int64_t>(entry.tokens.size()))
      in.refuse("tokens", "the number of tokens contradicts the state");
    entries.push_back(std::move(entry));
  }
  in.finish();
  for (const auto& entry : entries) (void)tree.insert(entry.scope, entry.tokens, entry.state);
  (void)tree.shrink(tree.options.fast_bytes);
}

}  // namespace skald::inline v0
