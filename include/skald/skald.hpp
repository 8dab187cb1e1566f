#pragma once

/// Everything an application needs. Each header also compiles alone.

#include <skald/backend/backend.hpp>
#include <skald/config.hpp>
#include <skald/core/byte_source.hpp>
#include <skald/core/dtype.hpp>
#include <skald/core/error.hpp>
#include <skald/core/executor.hpp>
#include <skald/core/log.hpp>
#include <skald/core/progress.hpp>
#include <skald/core/tensor.hpp>
#include <skald/decoder/context_file.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/decoder/embed.hpp>
#include <skald/decoder/embedding_rows.hpp>
#include <skald/decoder/kv_prediction.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/generate/chat.hpp>
#include <skald/generate/eval.hpp>
#include <skald/generate/generate.hpp>
#include <skald/generate/guard.hpp>
#include <skald/generate/rerank.hpp>
#include <skald/generate/sampler.hpp>
#include <skald/generate/score.hpp>
#include <skald/generate/story_grammar.hpp>
#include <skald/model/adapter.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>
#include <skald/simd/isa.hpp>
#include <skald/text/chat_template.hpp>
#include <skald/text/detokenizer.hpp>
#include <skald/text/tokenizer.hpp>
#include <skald/text/tokenizer_json.hpp>
#include <skald/text/tool_calls.hpp>
