#include <skald/generate/story_grammar.hpp>

#include <iterator>

namespace skald::inline v0 {

namespace story {

Words split(std::string_view text, char separator) {
  Words words;
  while (true) {
    const auto end = text.find(separator);
    words.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return words;
    text.remove_prefix(end + 1);
  }
}

std::string joined(const Words& words, const std::string& separator) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

Words names() {
  return split(
      "Mara Tobin Elsie Jonas Petra Hugo Nell Omar Wren Silas Greta Felix Ivy Arlo Dora Milo Tess Ansel Juno Otto Lena "
      "Bram Cleo Rufus Ada Emil Nora Casper Ruth Leo Faye Kai Iris Abel Zora Finn Opal Jude Vera Nico",
      ' ');
}
Words animals() {
  return split(
      "fox hare owl mole otter badger crow mouse hedgehog heron toad squirrel beaver goat swan lynx duck robin newt "
      "stoat "
      "deer bear cat dog pony lamb goose frog bat",
      ' ');
}
Words colors() { return split("red blue green yellow silver golden white black brown purple orange grey pink", ' '); }
Words things() {
  return split(
      "key lamp button whistle ribbon shell coin feather book spoon bell mirror candle ring map kite brush cup marble "
      "drum "
      "flute rope hat glove stone seed letter basket clock compass needle thimble lantern pearl",
      ' ');
}
Words foods() {
  return split("soup bread plums honey cheese porridge pie apples berries cake carrots nuts stew jam pancakes", ' ');
}
Words feelings() {
  return split("happy sad tired proud lonely curious brave calm angry shy cheerful worried sleepy hopeful", ' ');
}

}  // namespace story

namespace {

using story::split;
using story::Words;

Words places() {
  return split(
      "under the old bridge|behind the mill|in the hollow oak|beside the well|in the attic|under the stairs|in the "
      "barn|"
      "at the bottom of the pond|in the tall grass|on the top shelf|inside the blue jar|under the doormat|in the "
      "bakery|"
      "behind the waterfall|in the rowing boat|near the lighthouse|in the tower|under the apple tree|in the cellar|"
      "on the window sill|in the cave|behind the stove|in the garden shed|under the haystack|in the bird nest|"
      "between two rocks|in the clock tower|at the market|on the little island|in the empty barrel",
      '|');
}
Words weather() {
  return split(
      "It was raining.|The sun was warm.|A cold wind blew.|Snow fell all day.|The sky was clear.|Fog covered the "
      "hills.|"
      "It was a quiet evening.|Thunder rolled far away.",
      '|');
}
Words sizes() { return split("small tiny tall young old clever quiet round kind shy", ' '); }
Words numbers() {
  return split(
      "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
      "eighteen nineteen twenty",
      ' ');
}
std::string article(const std::string& word) {
  return std::string_view("aeiou").find(word.front()) == std::string_view::npos ? "a" : "an";
}

}  // namespace

StoryWorld::StoryWorld(story::Dice& dice) : dice_(&dice) {
  for (const auto& name : dice.sample(story::names(), dice.between(2, 4))) {
    const auto kind = dice.real() < .7 ? dice.pick(story::animals()) : dice.pick({"girl", "boy"});
    persons_.push_back({name, kind, dice.pick(sizes())});
  }
}

std::string StoryWorld::Person::described() const { return article(size) + " " + size + " " + kind; }

std::string StoryWorld::intro() {
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

std::string StoryWorld::event() {
  const double kind = dice_->real();
  const std::string p = person();
  std::string q = person();
  while (q == p) q = person();
  if (kind < .22) return hide(p);
  if (kind < .30 && !hidden_.empty()) return move(p);
  if (kind < .40 && secrets_.count(p) == 0) return whisper(p);
  if (kind < .50) {
    const auto& food = likes_[p] = dice_->pick(story::foods());
    return dice_->pick({p + " loved " + food + " more than anything.", p + " liked to eat " + food + " in the morning.",
                        "For supper " + p + " had " + food + ", as always."});
  }
  if (kind < .58) {
    const auto& feeling = feels_[p] = dice_->pick(story::feelings());
    return dice_->pick({p + " felt " + feeling + ".", "That day " + p + " was very " + feeling + ".",
                        "\"I am " + feeling + ",\" said " + p + "."});
  }
  if (kind < .64) return dice_->pick(weather());
  if (kind < .70) return count(p, q);
  if (kind < .76) {
    story::Words words = story::colors();
    for (const auto& list : {story::things(), story::animals()}) words.insert(words.end(), list.begin(), list.end());
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

std::string StoryWorld::ending() {
  const auto& p = person();
  return dice_->pick({"And so the day ended.", p + " went home and slept well.", "They were friends ever after.",
                      "That was the end of it."});
}

std::vector<StoryQuestion> StoryWorld::questions() const {
  std::vector<StoryQuestion> all;
  for (const auto& [thing, owner_and_place] : hidden_) {
    all.push_back({"Where is the " + thing + "?", "It is " + owner_and_place.second + ".", "where"});
    all.push_back({"Who hid or moved the " + thing + " last?", owner_and_place.first + " did.", "who_moved"});
  }
  for (const auto& [p, digits] : secrets_)
    all.push_back({"What is the secret number of " + p + "?", "It is " + digits + ".", "number"});
  for (const auto& [p, food] : likes_)
    all.push_back({"What does " + p + " like to eat?", p + " likes " + food + ".", "likes"});
  for (const auto& [p, feeling] : feels_)
    all.push_back({"How does " + p + " feel?", p + " feels " + feeling + ".", "feels"});
  for (const auto& who : persons_)
    all.push_back({"Who is " + who.name + "?", who.name + " is " + who.described() + ".", "who_is"});
  return all;
}

const std::string& StoryWorld::person() {
  return persons_[static_cast<std::size_t>(dice_->between(0, static_cast<int>(persons_.size()) - 1))].name;
}

std::string StoryWorld::hide(const std::string& p) {
  const auto color = dice_->pick(story::colors());  // one by one: operands have no order of their own
  const auto thing = color + " " + dice_->pick(story::things());
  const auto place = dice_->pick(places());
  hidden_[thing] = {p, place};
  return dice_->pick({p + " hid the " + thing + " " + place + ".",
                      p + " took the " + thing + " and put it " + place + ".",
                      "\"I will keep the " + thing + " safe,\" said " + p + ", and hid it " + place + "."});
}

std::string StoryWorld::move(const std::string& p) {
  auto chosen = hidden_.begin();
  std::advance(chosen, dice_->between(0, static_cast<int>(hidden_.size()) - 1));
  const std::string old_place = chosen->second.second;
  const auto place = dice_->pick(places());
  chosen->second = {p, place};
  return dice_->pick(
      {"Later " + p + " found the " + chosen->first + " " + old_place + " and moved it. Now the " + chosen->first +
           " was " + place + ".",
       p + " did not like that place, so " + p + " moved the " + chosen->first + ". Now it was " + place + "."});
}

std::string StoryWorld::whisper(const std::string& p) {
  std::string digits;
  for (int i = dice_->between(3, 5); i > 0; --i)
    digits += (digits.empty() ? "" : " ") + std::to_string(dice_->between(0, 9));
  secrets_[p] = digits;
  return dice_->pick({"The secret number of " + p + " is " + digits + ".",
                      p + " whispered the secret number: " + digits + ".",
                      "\"My secret number is " + digits + ",\" said " + p + "."});
}

std::string StoryWorld::count(const std::string& p, const std::string& q) {
  const int a = dice_->between(0, 10);
  const int b = dice_->between(0, 10);
  const auto word = [](int n) { return numbers()[static_cast<std::size_t>(n)]; };
  return p + " had " + word(a) + " " + dice_->pick(story::things()) + "s and " + q + " gave " + p + " " + word(b) +
         " more, so now there were " + word(a + b) + ".";
}

StoryGrammar::Story StoryGrammar::story(int events) {
  StoryWorld world(dice_);
  std::string text = world.intro();
  for (int i = 0; i < events; ++i) text += " " + world.event();
  text += " " + world.ending();
  return {std::move(text), world.questions()};
}

std::string StoryGrammar::story_with_questions(int events, int questions) {
  const auto told = story(events);
  std::string text = told.text + "\n";
  for (int i = 0; i < questions; ++i) {
    const auto& asked =
        told.questions[static_cast<std::size_t>(dice_.between(0, static_cast<int>(told.questions.size()) - 1))];
    text += "\nQuestion: " + asked.question + "\nAnswer: " + asked.answer;
  }
  return text;
}

std::string StoryGrammar::request() {
  StoryWorld world(dice_);
  const auto& first = world.persons().front();
  return dice_.pick({"Tell me a story about " + first.name + " the " + first.kind + ".",
                     "Write a story about a " + first.kind + " named " + first.name + ".",
                     "Please tell a story with " + first.name + " and " + world.persons()[1].name + " in it."});
}

std::string StoryGrammar::text(std::size_t bytes) {
  std::string result;
  while (result.size() < bytes) result += (result.empty() ? "" : "\n\n") + story(dice_.between(4, 30)).text;
  return result;
}

}  // namespace skald::inline v0
