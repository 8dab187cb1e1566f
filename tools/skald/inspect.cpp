#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/model/architecture.hpp>
#include <skald/model/gguf/vocabulary.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

using nlohmann::ordered_json;

struct InspectFlags {
  std::string path;
  bool json = false;
  bool tensors = false;
  bool metadata = false;
  bool isas = false;
  std::int64_t context = 0;
  int parallel = 1;
  std::int64_t ubatch = 512;
  std::string cache = "f16";
};

ordered_json tensor_list(const skald::ModelFile& file) {
  auto list = ordered_json::array();
  for (const auto& tensor : file.tensors())
    list.push_back({{"name", tensor.name}, {"type", skald::to_string(tensor.type)}, {"shape", tensor.shape()}, {"bytes", tensor.bytes}});
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
                    else if constexpr (std::is_same_v<V, std::vector<skald::MetadataArray>>) first.push_back({{"length", values[i].size()}});
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
  skald::PlanOptions options;
  options.context = context;
  options.sequences = flags.parallel;
  options.batch_tokens = flags.ubatch;
  options.kv_type = skald::AnyKvFormat(flags.cache).dtype();
  return ordered_json::parse(skald::plan(file, options).to_json());
}

void print_plan(const ordered_json& plan, std::int64_t context, int sequences) {
  fmt::print("\nplan for {} sequence{} of {} tokens:\n", sequences, sequences == 1 ? "" : "s", context);
  for (const auto& [key, value] : plan.items())
    fmt::print("  {:<13} {:>12}  {:>15} bytes\n", key, human_bytes(value.get<std::uint64_t>()), value.get<std::uint64_t>());
}

int run(const InspectFlags& flags) {
  if (flags.isas) {
    fmt::print("processor: {}\n", skald::processor_name());
    for (const auto isa : skald::available_isas())
      fmt::print("{}{}\n", skald::to_string(isa), isa == skald::default_isa() ? " (active)" : "");
    return exit_ok;
  }
  if (flags.path.empty()) throw skald::UsageError("cli.inspect", "give a model with -m, or --isas");
  const auto file = skald::open_gguf(flags.path);
  ordered_json json{{"file", flags.path}, {"tensor_count", file.tensors().size()}};
  if (flags.metadata || flags.json) json["metadata"] = metadata_list(file.metadata());
  if (flags.tensors || flags.json) json["tensors"] = tensor_list(file);
  const auto spec = skald::read_spec(file);
  const auto context = flags.context > 0 ? flags.context : std::min<std::int64_t>(spec.context_length, 4096);
  json["spec"] = ordered_json::parse(skald::to_json(spec));
  json["plan"] = plan_of(flags, file, context);
  if (flags.json) {
    fmt::print("{}\n", json.dump(1, ' ', false, ordered_json::error_handler_t::replace));
    return exit_ok;
  }
  fmt::print("{}: {}, {} tensors, {} of data\n\n", flags.path, spec.architecture, file.tensors().size(), human_bytes(file.tensor_bytes()));
  fmt::print("spec:\n{}\n", json["spec"].dump(1, ' ', false, ordered_json::error_handler_t::replace));
  if (flags.metadata) {
    fmt::print("\nmetadata:\n");
    for (const auto& [key, value] : json["metadata"].items())
      fmt::print("  {:<45} {}\n", key, skald::printable(value.dump(-1, ' ', false, ordered_json::error_handler_t::replace), 120));
  }
  if (flags.tensors) {
    fmt::print("\ntensors:\n");
    for (const auto& tensor : json["tensors"])
      fmt::print("  {:<40} {:<6} {:<22} {:>12}\n", skald::printable(tensor["name"].get<std::string>(), 60), tensor["type"].get<std::string>(),
                 tensor["shape"].get<std::string>(), human_bytes(tensor["bytes"].get<std::uint64_t>()));
  }
  print_plan(json["plan"], context, flags.parallel);
  return exit_ok;
}

}  // namespace

void add_inspect(CLI::App& app, Global&, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("inspect", "What a model file is: spec, tensors, metadata and the memory plan");
  auto flags = std::make_shared<InspectFlags>();
  command->add_option("-m,--model", flags->path, "GGUF model file");
  command->add_flag("--json", flags->json, "Print everything as one JSON object");
  command->add_flag("--tensors", flags->tensors, "List the tensors");
  command->add_flag("--metadata", flags->metadata, "List the metadata");
  command->add_flag("--isas", flags->isas, "List the instruction sets that can be used here");
  command->add_option("-c,--ctx-size", flags->context, "Tokens of context for the plan")->check(CLI::NonNegativeNumber);
  command->add_option("--parallel,--np", flags->parallel, "Sequences for the plan")->check(CLI::PositiveNumber);
  command->add_option("-u,--ubatch-size,--ub", flags->ubatch, "Batch tokens for the plan")->check(CLI::PositiveNumber);
  command->add_option("--cache-type-k,--ctk", flags->cache, "KV format for the plan")->capture_default_str();
  commands.push_back({command, [flags] { return run(*flags); }});
}

}  // namespace skald_cli
