// A guard beside a writer: perception, policy and explanation are separate.
//   guard [guard.gguf]
// The bundled model is no guard model; it is asked how somebody feels, and the policy blocks sorrow.
#include <iomanip>
#include <iostream>
#include <string>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const auto decoder = skald::Decoder(model);
  skald::GuardOptions options;
  options.instructions = "Nora was a small fox. ";
  options.question = "\nQuestion: How does Nora feel?\nAnswer: Nora feels";
  options.categories = {{"joy", " happy"}, {"sorrow", " sad"}, {"anger", " angry"}};
  options.reason = ".";
  const skald::Guard guard(decoder.new_session(), options);

  auto perceived = guard.perceive("That day Nora was very sad.");
  std::cout << std::fixed << std::setprecision(3);
  for (const auto& category : options.categories)
    std::cout << category.name << " " << perceived.probability(category.name) << '\n';
  skald::GuardPolicy policy;
  policy.block("sorrow", 0.5);
  std::cout << "blocked: " << policy.decide(perceived).blocked << '\n';
  policy.block("sorrow", 1.1);  // no call of the model
  std::cout << "with another policy: " << policy.decide(perceived).blocked << '\n';
  std::cout << "it goes on:" << perceived.explain({.max_tokens = 12, .sampler = {.temperature = 0.0F}}) << '\n';

  auto writer = decoder.new_session();
  const auto told = skald::generate_guarded(writer, "Once upon a time", guard, policy, {.max_tokens = 40}, 16);
  std::cout << (told.prompt.blocked || told.answer.blocked ? "withheld" : "passed") << ":" << told.text << '\n';
  return 0;
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
