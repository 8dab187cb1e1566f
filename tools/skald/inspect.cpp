#include <array>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <skald/decoder/plan.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/gguf/vocabulary.hpp>
#include <skald/model/huggingface/directory.hpp>
#include <skald/model/safetensors/reader.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

using nlohmann::ordered_json;

struct InspectFlags {
  std::string path;
  std::string base;
  bool json = false;
  bool tensors = false;
  bool metadata = false;
  bool isas = false;
  std::optional<std::int64_t> context;
  int parallel = 1;
  std::int64_t ubatch = 512;
  std::string cache = "f16";
  std::string eviction = "none";
  std::string codebooks;
};

ordered_json tensor_list(const skald::ModelFile& file) {
  auto list = ordered_json::array();
  for (const auto& tensor : file.tensors())
    list.push_back({{"name", tensor.name},
                    {"type", skald::to_string(tensor.type)},
                    {"shape", tensor.shape()},
                    {"bytes", tensor.bytes}});
  return list;
}

/// Values as JSON; long arrays as their length and first elements.
ordered_json metadata_list(const skald::Metadata& metadata) {
  constexpr std::size_t shown = 8;
  ordered_json list;
  for (const auto& entry : metadata.entries()) {
    auto& value = list[entry.key];
    std::visit(
        [&](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, skald::MetadataArray>) {
            auto first = ordered_json::array();
            std::visit(
                [&](const auto& values) {
                  for (std::size_t i = 0; i < std::min(shown, values.size()); ++i) {
                    using V = std::decay_t<decltype(values)>;
                    if constexpr (std::is_same_v<V, skald::StringArray>) first.push_back(std::string(values[i]));
                    else if constexpr (std::is_same_v<V, std::vector<skald::MetadataArray>>)
                      first.push_back({{"length", values[i].size()}});
                    else first.push_back(values[i]);
                  }
                },
                v.values);
            if (v.size() <= shown) value = std::move(first);
            else value = ordered_json{{"length", v.size()}, {"first", std::move(first)}};
          } else {
            value = v;
          }
        },
        entry.value);
  }
  return list;
}

ordered_json plan_of(const InspectFlags& flags, const skald::ModelFile& file, std::int64_t context) {
  skald::DecoderOptions options;
  options.context = context;
  options.parallel = flags.parallel;
  options.batch_tokens = flags.ubatch;
  options.kv.format = flags.cache;
  options.kv.eviction = flags.eviction;
  if (!flags.codebooks.empty())
    options.kv.codebooks = std::make_shared<const skald::CoupledCodebooks>(skald::CoupledCodebooks::load(flags.codebooks));
  return ordered_json::parse(skald::plan_decoder(file, options).to_json());
}

std::string dump(const ordered_json& json, int indent = 1) {
  return json.dump(indent, ' ', false, ordered_json::error_handler_t::replace);
}

void print_plan(const ordered_json& plan, std::int64_t context, int sequences) {
  std::string text =
      fmt::format("\nplan for {} sequence{} of {} tokens:\n", sequences, sequences == 1 ? "" : "s", context);
  for (const auto& [key, value] : plan.items())
    text += fmt::format("  {:<13} {:>12}  {:>15} bytes\n", key, human_bytes(value.get<std::uint64_t>()),
                        value.get<std::uint64_t>());
  write_out(text);
}

void print_metadata(const ordered_json& metadata) {
  std::string text = "\nmetadata:\n";
  for (const auto& [key, value] : metadata.items())
    text += fmt::format("  {:<45} {}\n", skald::printable(key), skald::printable(dump(value, -1), 120));
  write_out(text);
}

void print_tensors(const ordered_json& tensors) {
  std::string text = "\ntensors:\n";
  for (const auto& tensor : tensors)
    text += fmt::format("  {:<40} {:<6} {:<22} {:>12}\n", skald::printable(tensor["name"].get<std::string>(), 60),
                        tensor["type"].get<std::string>(), tensor["shape"].get<std::string>(),
                        human_bytes(tensor["bytes"].get<std::uint64_t>()));
  write_out(text);
}

/// The tensors of a PEFT folder's adapter.
ordered_json peft_tensors(const std::string& folder) {
  auto list = ordered_json::array();
  for (const auto& tensor : skald::open_safetensors(folder + "/adapter_model.safetensors").tensors())
    list.push_back({{"name", tensor.name},
                    {"type", skald::to_string(tensor.type)},
                    {"shape", fmt::format("[{}]", fmt::join(tensor.shape, ", "))},
                    {"bytes", tensor.bytes}});
  return list;
}

/// What an adapter changes in a model, by the names of GGUF files.
ordered_json changes_of(const skald::AdapterFile& adapter) {
  constexpr std::array<const char*, 3> kinds{"low_rank", "columns", "kronecker"};
  auto list = ordered_json::array();
  for (const auto& delta : adapter.deltas)
    list.push_back({{"tensor", delta.tensor},
                    {"kind", kinds[static_cast<std::size_t>(delta.kind)]},
                    {"rank", delta.rank},
                    {"outputs", delta.outputs},
                    {"inputs", delta.inputs},
                    {"scale", delta.scale},
                    {"magnitudes", !delta.magnitude.empty()}});
  return list;
}

void print_changes(const ordered_json& changes) {
  std::string text = "\nchanges:\n";
  for (const auto& each : changes)
    text += fmt::format("  {:<40} {:<9} rank {:<4} scale {}{}\n", skald::printable(each["tensor"].get<std::string>(), 60),
                        each["kind"].get<std::string>(), each["rank"].get<int>(), each["scale"].get<float>(),
                        each["magnitudes"].get<bool>() ? ", magnitudes (to be merged)" : "");
  write_out(text);
}

int inspect_adapter(const InspectFlags& flags) {
  const bool folder = std::filesystem::is_directory(flags.path);
  ordered_json json{{"file", flags.path}, {"adapter", folder ? "peft" : "gguf"}};
  ordered_json facts;
  if (folder) {
    const auto config = flags.path + "/adapter_config.json";
    facts = ordered_json::parse(read_input(config), nullptr, false);
    if (!facts.is_object()) throw skald::FormatError("cli.inspect", "it is no JSON object", {.file = config});
    json["tensors"] = peft_tensors(flags.path);
  } else {
    const auto file = skald::open_gguf(flags.path);
    facts = metadata_list(file.metadata());
    json["tensors"] = tensor_list(file);
  }
  json[folder ? "config" : "metadata"] = facts;
  json["tensor_count"] = json["tensors"].size();
  if (!flags.base.empty())
    json["changes"] = changes_of(skald::read_adapter(flags.path, skald::open_model(flags.base).metadata()));
  if (flags.json) {
    write_out(dump(json) + "\n");
    return exit_ok;
  }
  std::uint64_t bytes = 0;
  for (const auto& tensor : json["tensors"]) bytes += tensor["bytes"].get<std::uint64_t>();
  write_out(fmt::format("{}: adapter, {} tensors, {} of data\n", skald::printable(flags.path, 4096),
                        json["tensor_count"].get<std::size_t>(), human_bytes(bytes)));
  print_metadata(facts);
  if (flags.tensors) print_tensors(json["tensors"]);
  if (json.contains("changes")) print_changes(json["changes"]);
  return exit_ok;
}

int list_isas() {
  std::string text = fmt::format("processor: {}\n", skald::processor_name());
  for (const auto isa : skald::available_isas())
    text += fmt::format("{}{}\n", skald::to_string(isa), isa == skald::default_isa() ? " (active)" : "");
  write_out(text);
  return exit_ok;
}

int run(const InspectFlags& flags) {
  if (flags.isas) return list_isas();
  if (flags.path.empty()) throw skald::UsageError("cli.inspect", "give a model with -m, or --isas");
  if (skald::is_adapter(flags.path)) return inspect_adapter(flags);
  if (!flags.base.empty())
    throw skald::UsageError("cli.inspect", "--base goes with an adapter, and this is none", {.file = flags.path});
  const auto file = skald::open_model(flags.path);
  ordered_json json{{"file", flags.path}, {"tensor_count", file.tensors().size()}};
  if (flags.metadata || flags.json) json["metadata"] = metadata_list(file.metadata());
  if (flags.tensors || flags.json) json["tensors"] = tensor_list(file);
  if (!flags.json) {
    write_out(fmt::format("{}: {} tensors, {} of data\n", skald::printable(flags.path, 4096), file.tensors().size(),
                          human_bytes(file.tensor_bytes())));
    // What the file holds can be shown also when skald cannot run it.
    if (flags.metadata) print_metadata(json["metadata"]);
    if (flags.tensors) print_tensors(json["tensors"]);
  }
  const auto spec = skald::read_spec(file);
  const auto context = choose_context(flags.context, spec);
  json["spec"] = ordered_json::parse(skald::to_json(spec));
  json["plan_context"] = context;
  json["plan_sequences"] = flags.parallel;
  json["plan"] = plan_of(flags, file, context);
  if (flags.json) {
    write_out(dump(json) + "\n");
    return exit_ok;
  }
  write_out("\nspec:\n" + dump(json["spec"]) + "\n");
  print_plan(json["plan"], context, flags.parallel);
  return exit_ok;
}

}  // namespace

void add_inspect(CLI::App& app, Global&, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("inspect", "What a model file is: spec, tensors, metadata and the memory plan");
  auto flags = std::make_shared<InspectFlags>();
  command->add_option("-m,--model", flags->path, "GGUF file or Hugging Face folder, also of an adapter");
  command->add_option("--base", flags->base, "Model that an adapter is for: also list what it changes there");
  command->add_flag("--json", flags->json, "Print everything as one JSON object");
  command->add_flag("--tensors", flags->tensors, "List the tensors");
  command->add_flag("--metadata", flags->metadata, "List the metadata");
  command->add_flag("--isas", flags->isas, "List the instruction sets that can be used here");
  command
      ->add_option("-c,--ctx-size", flags->context,
                   "Tokens of context for the plan; 0: the model's own (default: the model's own, at most 4096)")
      ->check(at_least(0));
  command->add_option("--np,--parallel", flags->parallel, "Sequences for the plan")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--ub,--ubatch-size", flags->ubatch, "Batch tokens for the plan")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--ctk,--cache-type-k", flags->cache, "KV format for the plan")->capture_default_str();
  command->add_option("--kv-eviction", flags->eviction, "Eviction policy for the plan")->capture_default_str();
  command->add_option("--kv-codebooks", flags->codebooks, "Codebooks of -ctk coupled for the plan");
  commands.push_back({command, [flags] { return run(*flags); }});
}

}  // namespace skald_cli
