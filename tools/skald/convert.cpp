// skald convert: a model in another form, GGUF or a Hugging Face folder, as one GGUF file.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <skald/model/adapter.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/model/huggingface/directory.hpp>
#include <skald/model/huggingface/gguf_vocabulary.hpp>
#include <skald/model/quantize.hpp>
#include <skald/model/tensor_forms.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

struct ConvertFlags {
  std::string path;
  std::string output;
  std::string type;
  std::vector<std::string> adapters;
};

/// A model file with the adapter "FILE" or "FILE:SCALE" merged.
skald::ModelFile with_adapter(const skald::ModelFile& file, const std::string& text) {
  const auto [path, scale] = split_scale(text);
  return skald::merged(file, skald::read_adapter(path, file.metadata()), scale);
}

/// The output replaces what has its name: never the model itself, which it could be the only copy of.
void check_output(const ConvertFlags& flags) {
  std::error_code error;
  std::vector<std::string> inputs{flags.path};
  for (const auto& adapter : flags.adapters) inputs.push_back(split_scale(adapter).first);
  for (const auto& input : inputs)
    if (std::filesystem::equivalent(input, flags.output, error))
      throw skald::UsageError("cli.convert", "the output is an input; give -o another name", {.file = flags.output});
  if (std::filesystem::is_directory(flags.output, error))
    throw skald::UsageError("cli.convert", "the output is a folder; give the name of a file", {.file = flags.output});
}

int run(const ConvertFlags& flags, const Global& global) {
  check_output(flags);
  auto file = skald::in_usual_forms(skald::open_model(flags.path, false));
  const auto before = file.tensor_bytes();
  for (const auto& adapter : flags.adapters) file = with_adapter(file, adapter);
  if (!flags.type.empty()) file = skald::quantized(file, flags.type);

  const std::stop_token stop = stop_on_interrupt();
  ProgressLine line(global.quiet);
  const auto progress = line.callback("converting");
  std::uint64_t done = 0;
  skald::GgufWriter writer;
  auto metadata = file.metadata();
  if (const auto* table = file.find("token_embd.weight")) {
    const std::string lacks = skald::add_gguf_vocabulary(metadata, table->dims[1]);
    if (!lacks.empty() && !global.quiet)
      std::fprintf(stderr, "warning: the tokenizer for other engines: %s\n", skald::printable(lacks, 400).c_str());
  }
  writer.set_all(metadata);
  for (const auto& tensor : file.tensors()) {
    std::vector<std::int64_t> dims(tensor.dims.begin(), tensor.dims.begin() + static_cast<std::ptrdiff_t>(tensor.rank));
    writer.add_tensor(tensor.name, tensor.type, std::move(dims), [&](std::uint64_t offset, std::span<std::byte> out) {
      skald::throw_if_stopped(stop, "cli.convert");
      file.read(tensor, offset, out);
      done += out.size();
      if (progress) progress({.stage = "convert", .done = done, .total = file.tensor_bytes()});
    });
  }
  writer.write_file(flags.output);
  line.show("");
  write_out(fmt::format("{}: {} tensors, {} (from {})\n", skald::printable(flags.output, 4096), file.tensors().size(),
                        human_bytes(file.tensor_bytes()), human_bytes(before)));
  return exit_ok;
}

}  // namespace

void add_convert(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("convert", "Writes a GGUF file from a Hugging Face folder or another GGUF file");
  auto flags = std::make_shared<ConvertFlags>();
  command->add_option("-m,--model", flags->path, "GGUF file or folder")->required();
  command->add_option("-o,--output", flags->output, "GGUF file to write; it is replaced when everything is there")
      ->required();
  command->add_option(
      "--type", flags->type,
      fmt::format("Type of the matrices (default: as they are): {}", fmt::join(skald::quantization_names(), ", ")));
  command->add_option("--lora", flags->adapters, "Adapter to merge, FILE or FILE:SCALE: a PEFT folder or a GGUF file; may be repeated")
      ->allow_extra_args(false);
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
