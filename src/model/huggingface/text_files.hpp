#pragma once

#include <string>

#include <skald/model/metadata.hpp>

#include "model/huggingface/config.hpp"

namespace skald::inline v0::huggingface {

/// Adds what the other files of a folder say, as far as they are there: tokenizer.json (whole, as
/// `tokenizer.huggingface.json`), ids and flags of special tokens, the chat template, defaults of sampling
/// (`general.sampling.…`), pooling.
void add_text_files(const std::string& folder, const Config& config, Metadata& metadata);

}  // namespace skald::inline v0::huggingface
