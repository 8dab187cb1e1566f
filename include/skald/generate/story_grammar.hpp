#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// The grammar that the bundled model's training text was drawn from: endless small stories with a tracked state of the
/// world, questions about it and word lists. For fresh text of the kind that this model knows, whose answers need
/// recall of what was told long before. The same seed gives the same text on every platform.
namespace story {

using Words = std::vector<std::string>;

/// Splits at single characters.
[[nodiscard]] SKALD_API Words split(std::string_view text, char separator);
[[nodiscard]] SKALD_API std::string joined(const Words& words, const std::string& separator = " ");

[[nodiscard]] SKALD_API Words names();
[[nodiscard]] SKALD_API Words animals();
[[nodiscard]] SKALD_API Words colors();
[[nodiscard]] SKALD_API Words things();
[[nodiscard]] SKALD_API Words foods();
[[nodiscard]] SKALD_API Words feelings();

/// Random choices that are the same everywhere (the standard's distributions are not).
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}
  /// Integer in [low, high].
  int between(int low, int high) {
    return low + static_cast<int>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  /// Number in [0, 1).
  double real() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  std::string pick(const Words& words) {
    return words[static_cast<std::size_t>(between(0, static_cast<int>(words.size()) - 1))];
  }
  /// `count` different words.
  Words sample(Words words, int count) {
    for (int i = 0; i < count; ++i)
      std::swap(words[static_cast<std::size_t>(i)],
                words[static_cast<std::size_t>(between(i, static_cast<int>(words.size()) - 1))]);
    words.resize(static_cast<std::size_t>(count));
    return words;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace story

/// A question about a story and its right answer.
struct StoryQuestion {
  std::string question{};
  std::string answer{};
  std::string kind{};  ///< "where", "who_moved", "number", "likes", "feels" or "who_is"
};

/// One world: persons, what they hid, like, feel and keep secret. Each call of event() tells one more sentence.
class SKALD_API StoryWorld {
 public:
  /// Two to four persons; `dice` must outlive the world.
  explicit StoryWorld(story::Dice& dice);

  struct Person {
    std::string name{}, kind{}, size{};
    [[nodiscard]] std::string described() const;
  };
  [[nodiscard]] const std::vector<Person>& persons() const noexcept { return persons_; }

  [[nodiscard]] std::string intro();
  [[nodiscard]] std::string event();
  [[nodiscard]] std::string ending();
  /// All questions about the present state.
  [[nodiscard]] std::vector<StoryQuestion> questions() const;

 private:
  [[nodiscard]] const std::string& person();
  [[nodiscard]] std::string hide(const std::string& p);
  [[nodiscard]] std::string move(const std::string& p);
  [[nodiscard]] std::string whisper(const std::string& p);
  [[nodiscard]] std::string count(const std::string& p, const std::string& q);

  story::Dice* dice_;
  std::vector<Person> persons_{};
  std::map<std::string, std::pair<std::string, std::string>> hidden_{};  // thing -> person, place
  std::map<std::string, std::string> secrets_{}, likes_{}, feels_{};
};

/// Draws texts from the grammar.
class SKALD_API StoryGrammar {
 public:
  explicit StoryGrammar(std::uint64_t seed) : dice_(seed) {}

  struct Story {
    std::string text{};
    std::vector<StoryQuestion> questions{};  ///< about the state at its end
  };
  /// A story of `events` sentences after its introduction, with an ending.
  [[nodiscard]] Story story(int events);
  /// A story, then questions with answers, as lines.
  [[nodiscard]] std::string story_with_questions(int events, int questions);
  /// A user's message that asks for a story.
  [[nodiscard]] std::string request();
  /// At least `bytes` of stories, one per paragraph.
  [[nodiscard]] std::string text(std::size_t bytes);

 private:
  story::Dice dice_;
};

}  // namespace skald::inline v0
