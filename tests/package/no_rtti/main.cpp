// A host without RTTI plugs in components of its own (type erasure must not need typeid) and catches skald's errors.
#include <cstring>
#include <string>

#include <skald/skald.hpp>

struct NoRepeat {
  [[nodiscard]] std::string name() const { return "no_repeat"; }
  void apply(skald::Candidates& candidates, const skald::SamplingContext& context) const {
    if (!context.history.empty()) candidates.forbid(context.history.back());
  }
};
static_assert(skald::Sampler<NoRepeat>);

int main() {
  try {
    (void)skald::Model::load("no such file.gguf");
    return 1;
  } catch (const skald::Error& error) {
    if (std::strstr(error.what(), "no such file.gguf") == nullptr) return 2;
  }
  const auto model = skald::Model::load(MODEL);
  const auto decoder = skald::Decoder(model);
  auto session = decoder.new_session();
  skald::SamplerChain chain;
  chain.add(NoRepeat{}).add(skald::TopK{8}).add(skald::Temperature{0.5F});
  auto text = skald::generate(session, "One day", {.max_tokens = 16, .chain = chain});
  if (text.collect().empty()) return 3;
  for (std::size_t i = 1; i < text.tokens().size(); ++i)
    if (text.tokens()[i] == text.tokens()[i - 1]) return 4;
  return 0;
}
