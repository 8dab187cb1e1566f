#pragma once

// The library's grammar, under the names that tests use.

#include <skald/generate/story_grammar.hpp>

namespace skald_test {

namespace story = skald::story;
using skald::StoryGrammar;
using skald::StoryQuestion;
using skald::StoryWorld;

}  // namespace skald_test
