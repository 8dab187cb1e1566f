#include <skald/decoder/options.hpp>

#include <nlohmann/json.hpp>

namespace skald::inline v0 {

std::string EffectiveConfig::to_json() const {
  const nlohmann::ordered_json json{{"model", model},
                                    {"architecture", architecture},
                                    {"backend", backend},
                                    {"device", device},
                                    {"isa", isa},
                                    {"threads", threads},
                                    {"huge_pages", huge_pages},
                                    {"weight_layout", weight_layout},
                                    {"kv_format", kv_format},
                                    {"eviction", eviction},
                                    {"attention", attention},
                                    {"rope", rope},
                                    {"page_tokens", page_tokens},
                                    {"heads_per_group", heads_per_group},
                                    {"capacity_tokens", capacity_tokens},
                                    {"context", context},
                                    {"batch_tokens", batch_tokens},
                                    {"parallel", parallel},
                                    {"recurrent_bytes", recurrent_bytes},
                                    {"checkpoint_interval", checkpoint_interval},
                                    {"checkpoints", checkpoints}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace skald::inline v0
