// Writes the first inputs of fuzz_tokenizer_json.cpp into the folder named by the argument.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  const std::vector<std::string> seeds = {
      R"({"added_tokens":[{"id":3,"content":"<s>","special":true,"lstrip":true,"rstrip":true,"single_word":true}],
          "normalizer":{"type":"Sequence","normalizers":[{"type":"Strip","strip_left":true,"strip_right":true},
          {"type":"Prepend","prepend":"a"},{"type":"Replace","pattern":{"String":" "},"content":"_"}]},
          "pre_tokenizer":{"type":"Split","pattern":{"Regex":"\\s+|\\p{L}+"},"behavior":"Removed","invert":true},
          "model":{"type":"BPE","unk_token":"a","fuse_unk":true,"byte_fallback":true,"ignore_merges":true,
          "continuing_subword_prefix":"","end_of_word_suffix":"","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]},
          "post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel"},{"type":"TemplateProcessing",
          "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
          "special_tokens":{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}}]},
          "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"_"},"content":" "},
          {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}})",
      R"({"normalizer":{"type":"Precompiled","precompiled_charsmap":"BAAAAAAAAAAA"},"model":{"type":"Unigram","unk_id":0,
          "byte_fallback":true,"vocab":[["<unk>",0],["a",-1.5],["<0x41>",-2]]},"decoder":{"type":"CTC"}})",
      R"({"model":{"type":"WordPiece","max_input_chars_per_word":9,"vocab":{"[UNK]":0,"a":1,"##a":2}},
          "post_processor":{"type":"BertProcessing","sep":["a",1],"cls":["a",1]},"decoder":{"type":"BPEDecoder"}})",
      R"({"bos_token":{"content":"<s>"},"chat_template":[{"name":"default","template":"x"}],"add_bos_token":true})"};
  int number = 0;
  for (const std::string& seed : seeds) {
    std::ofstream file(std::filesystem::path(argv[1]) / ("seed" + std::to_string(number++)), std::ios::binary);
    file << seed;
    if (!file) return 1;
  }
  return 0;
}
