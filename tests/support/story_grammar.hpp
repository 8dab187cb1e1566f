#pragma once

// The grammar that the bundled model's training text was drawn from: endless small stories with a tracked state of the
// world, questions about it, chats and word lists. For tests that need fresh text of the kind the model knows. The same
// seed gives the same text on every platform.

#include <array>
#include <cctype>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace skald_test {

namespace story {

using Words = std::vector<std::string>;

/// Splits at single characters.
inline Words split(std::string_view text, char separator) {
  Words words;
  while (true) {
    const auto end = text.find(separator);
    words.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return words;
    text.remove_prefix(end + 1);
  }
}

inline const Words& names() {
  static const Words words = split(
      "Mara Tobin Elsie Jonas Petra Hugo Nell Omar Wren Silas Greta Felix Ivy Arlo Dora Milo Tess Ansel Juno Otto Lena "
      "Bram Cleo Rufus Ada Emil Nora Casper Ruth Leo Faye Kai Iris Abel Zora Finn Opal Jude Vera Nico",
      ' ');
  return words;
}
inline const Words& animals() {
  static const Words words = split(
      "fox hare owl mole otter badger crow mouse hedgehog heron toad squirrel beaver goat swan lynx duck robin newt "
      "stoat "
      "deer bear cat dog pony lamb goose frog bat",
      ' ');
  return words;
}
inline const Words& colors() {
  static const Words words =
      split("red blue green yellow silver golden white black brown purple orange grey pink", ' ');
  return words;
}
inline const Words& things() {
  static const Words words = split(
      "key lamp button whistle ribbon shell coin feather book spoon bell mirror candle ring map kite brush cup marble "
      "drum "
      "flute rope hat glove stone seed letter basket clock compass needle thimble lantern pearl",
      ' ');
  return words;
}
inline const Words& places() {
  static const Words words = split(
      "under the old bridge|behind the mill|in the hollow oak|beside the well|in the attic|under the stairs|in the "
      "barn|"
      "at the bottom of the pond|in the tall grass|on the top shelf|inside the blue jar|under the doormat|in the "
      "bakery|"
      "behind the waterfall|in the rowing boat|near the lighthouse|in the tower|under the apple tree|in the cellar|"
      "on the window sill|in the cave|behind the stove|in the garden shed|under the haystack|in the bird nest|"
      "between two rocks|in the clock tower|at the market|on the little island|in the empty barrel",
      '|');
  return words;
}
inline const Words& foods() {
  static const Words words =
      split("soup bread plums honey cheese porridge pie apples berries cake carrots nuts stew jam pancakes", ' ');
  return words;
}
inline const Words& feelings() {
  static const Words words =
      split("happy sad tired proud lonely curious brave calm angry shy cheerful worried sleepy hopeful", ' ');
  return words;
}
inline const Words& weather() {
  static const Words words = split(
      "It was raining.|The sun was warm.|A cold wind blew.|Snow fell all day.|The sky was clear.|Fog covered the "
      "hills.|"
      "It was a quiet evening.|Thunder rolled far away.",
      '|');
  return words;
}
inline const Words& sizes() {
  static const Words words = split("small tiny tall young old clever quiet round kind shy", ' ');
  return words;
}
inline const Words& numbers() {
  static const Words words = split(
      "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
      "eighteen nineteen twenty",
      ' ');
  return words;
}
inline std::string article(const std::string& word) {
  return std::string_view("aeiou").find(word.front()) == std::string_view::npos ? "a" : "an";
}
inline std::string capitalized(std::string word) {
  word.front() = static_cast<char>(std::toupper(static_cast<unsigned char>(word.front())));
  return word;
}

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
  const std::string& pick(const Words& words) {
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

inline std::string joined(const Words& words, const std::string& separator = " ") {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

}  // namespace story

/// A question about a story and its right answer.
struct StoryQuestion {
  std::string question;
  std::string answer;
};

/// One world: persons, what they hid, like, feel and keep secret. Each call of event() tells one more sentence.
class StoryWorld {
 public:
  explicit StoryWorld(story::Dice& dice) : dice_(&dice) {
    for (const auto& name : dice.sample(story::names(), dice.between(2, 4))) {
      const auto kind = dice.real() < .7 ? dice.pick(story::animals()) : dice.pick({"girl", "boy"});
      persons_.push_back({name, kind, dice.pick(story::sizes())});
    }
  }

  struct Person {
    std::string name, kind, size;
    [[nodiscard]] std::string described() const { return story::article(size) + " " + size + " " + kind; }
  };
  [[nodiscard]] const std::vector<Person>& persons() const { return persons_; }

  [[nodiscard]] std::string intro() {
    const auto& first = persons_.front();
    std::string text =
        dice_->pick({"Once upon a time there was " + first.described() + " named " + first.name + ".",
                     "Long ago, " + first.described() + " called " + first.name + " lived near the forest.",
                     first.name + " was " + first.described() + "."});
    for (std::size_t i = 1; i < persons_.size(); ++i) {
      const auto& other = persons_[i];
      text += " " + dice_->pick({first.name + " had a friend named " + other.name + ", " + other.described() + ".",
                                 other.name + " was " + other.described() + " who lived next door.",
                                 "One day " + first.name + " met " + other.described() + " named " + other.name + "."});
    }
    return text;
  }

  [[nodiscard]] std::string event() {
    const double kind = dice_->real();
    const std::string p = person();
    std::string q = person();
    while (q == p) q = person();
    if (kind < .22) return hide(p);
    if (kind < .30 && !hidden_.empty()) return move(p);
    if (kind < .40 && secrets_.count(p) == 0) return whisper(p);
    if (kind < .50) {
      const auto& food = likes_[p] = dice_->pick(story::foods());
      return dice_->pick({p + " loved " + food + " more than anything.",
                          p + " liked to eat " + food + " in the morning.",
                          "For supper " + p + " had " + food + ", as always."});
    }
    if (kind < .58) {
      const auto& feeling = feels_[p] = dice_->pick(story::feelings());
      return dice_->pick({p + " felt " + feeling + ".", "That day " + p + " was very " + feeling + ".",
                          "\"I am " + feeling + ",\" said " + p + "."});
    }
    if (kind < .64) return dice_->pick(story::weather());
    if (kind < .70) return count(p, q);
    if (kind < .76) {
      story::Words words = story::colors();
      words.insert(words.end(), story::things().begin(), story::things().end());
      words.insert(words.end(), story::animals().begin(), story::animals().end());
      const auto said = story::joined(dice_->sample(words, dice_->between(3, 6)));
      return p + " said \"" + said + "\" and " + q + " repeated \"" + said + "\".";
    }
    return dice_->pick({p + " and " + q + " walked to the river.", p + " asked " + q + " for help.",
                        q + " smiled and said yes.", "They played until the moon came up.",
                        p + " told " + q + " a long story about the sea.", q + " laughed and " + p + " laughed too.",
                        p + " looked for " + q + " everywhere.",
                        "\"Where are you going?\" asked " + q + ". \"Home,\" said " + p + ".",
                        p + " helped " + q + " carry the heavy bag.", "Nobody spoke for a while.",
                        p + " climbed the hill and looked at the stars.", q + " fell asleep next to the fire.",
                        p + " sang a song for " + q + "."});
  }

  [[nodiscard]] std::string ending() {
    const auto& p = person();
    return dice_->pick({"And so the day ended.", p + " went home and slept well.", "They were friends ever after.",
                        "That was the end of it."});
  }

  /// All questions about the present state.
  [[nodiscard]] std::vector<StoryQuestion> questions() const {
    std::vector<StoryQuestion> all;
    for (const auto& [thing, owner_and_place] : hidden_) {
      all.push_back({"Where is the " + thing + "?", "It is " + owner_and_place.second + "."});
      all.push_back({"Who hid or moved the " + thing + " last?", owner_and_place.first + " did."});
    }
    for (const auto& [p, digits] : secrets_)
      all.push_back({"What is the secret number of " + p + "?", "It is " + digits + "."});
    for (const auto& [p, food] : likes_)
      all.push_back({"What does " + p + " like to eat?", p + " likes " + food + "."});
    for (const auto& [p, feeling] : feels_) all.push_back({"How does " + p + " feel?", p + " feels " + feeling + "."});
    for (const auto& who : persons_)
      all.push_back({"Who is " + who.name + "?", who.name + " is " + who.described() + "."});
    return all;
  }

 private:
  [[nodiscard]] const std::string& person() {
    return persons_[static_cast<std::size_t>(dice_->between(0, static_cast<int>(persons_.size()) - 1))].name;
  }
  [[nodiscard]] std::string hide(const std::string& p) {
    const auto thing = dice_->pick(story::colors()) + " " + dice_->pick(story::things());
    const auto& place = dice_->pick(story::places());
    hidden_[thing] = {p, place};
    return dice_->pick({p + " hid the " + thing + " " + place + ".",
                        p + " took the " + thing + " and put it " + place + ".",
                        "\"I will keep the " + thing + " safe,\" said " + p + ", and hid it " + place + "."});
  }
  [[nodiscard]] std::string move(const std::string& p) {
    auto chosen = hidden_.begin();
    std::advance(chosen, dice_->between(0, static_cast<int>(hidden_.size()) - 1));
    const std::string old_place = chosen->second.second;
    const auto& place = dice_->pick(story::places());
    chosen->second = {p, place};
    return dice_->pick(
        {"Later " + p + " found the " + chosen->first + " " + old_place + " and moved it. Now the " + chosen->first +
             " was " + place + ".",
         p + " did not like that place, so " + p + " moved the " + chosen->first + ". Now it was " + place + "."});
  }
  [[nodiscard]] std::string whisper(const std::string& p) {
    std::string digits;
    for (int i = dice_->between(3, 5); i > 0; --i)
      digits += (digits.empty() ? "" : " ") + std::to_string(dice_->between(0, 9));
    secrets_[p] = digits;
    return dice_->pick({"The secret number of " + p + " is " + digits + ".",
                        p + " whispered the secret number: " + digits + ".",
                        "\"My secret number is " + digits + ",\" said " + p + "."});
  }
  [[nodiscard]] std::string count(const std::string& p, const std::string& q) {
    const int a = dice_->between(0, 10);
    const int b = dice_->between(0, 10);
    const auto word = [](int n) { return story::numbers()[static_cast<std::size_t>(n)]; };
    return p + " had " + word(a) + " " + dice_->pick(story::things()) + "s and " + q + " gave " + p + " " + word(b) +
           " more, so now there were " + word(a + b) + ".";
  }

  story::Dice* dice_;
  std::vector<Person> persons_;
  std::map<std::string, std::pair<std::string, std::string>> hidden_;  // thing -> person, place
  std::map<std::string, std::string> secrets_, likes_, feels_;
};

/// Draws texts from the grammar.
class StoryGrammar {
 public:
  explicit StoryGrammar(std::uint64_t seed) : dice_(seed) {}

  struct Story {
    std::string text;
    std::vector<StoryQuestion> questions;  ///< about the state at its end
  };
  /// A story of `events` sentences after its introduction, with an ending.
  [[nodiscard]] Story story(int events) {
    StoryWorld world(dice_);
    std::string text = world.intro();
    for (int i = 0; i < events; ++i) text += " " + world.event();
    text += " " + world.ending();
    return {std::move(text), world.questions()};
  }
  /// A story, then questions with answers, as lines.
  [[nodiscard]] std::string story_with_questions(int events, int questions) {
    const auto told = story(events);
    std::string text = told.text + "\n";
    for (int i = 0; i < questions; ++i) {
      const auto& [question, answer] =
          told.questions[static_cast<std::size_t>(dice_.between(0, static_cast<int>(told.questions.size()) - 1))];
      text += "\nQuestion: " + question + "\nAnswer: " + answer;
    }
    return text;
  }
  /// A user's message that asks for a story.
  [[nodiscard]] std::string request() {
    StoryWorld world(dice_);
    const auto& first = world.persons().front();
    return dice_.pick({"Tell me a story about " + first.name + " the " + first.kind + ".",
                       "Write a story about a " + first.kind + " named " + first.name + ".",
                       "Please tell a story with " + first.name + " and " + world.persons()[1].name + " in it."});
  }
  /// At least `bytes` of stories, one per paragraph.
  [[nodiscard]] std::string text(std::size_t bytes) {
    std::string result;
    while (result.size() < bytes) result += (result.empty() ? "" : "\n\n") + story(dice_.between(4, 30)).text;
    return result;
  }

 private:
  story::Dice dice_;
};

}  // namespace skald_test
