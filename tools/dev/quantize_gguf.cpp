// Quantizes the matrices of a GGUF file with the library's own encoders and keeps everything else.
//   skald_quantize_dev IN.gguf OUT.gguf TYPE
#include <cstdint>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/quant/row_codec.hpp>

namespace {

using skald::DType;

/// `general.file_type` of a file whose matrices are mostly of this type (GGUF specification, docs/gguf.md).
std::uint32_t file_type(DType type) {
  switch (type) {
    case DType::f32: return 0;
    case DType::f16: return 1;
    case DType::q4_0: return 2;
    case DType::q4_1: return 3;
    case DType::q8_0: return 7;
    case DType::q5_0: return 8;
    case DType::q5_1: return 9;
    case DType::q4_k: return 14;
    case DType::q5_k: return 16;
    case DType::q6_k: return 18;
    case DType::bf16: return 32;
    case DType::q2_k: return 10;
    case DType::q3_k: return 12;
    case DType::iq2_xxs: return 19;
    case DType::iq2_xs: return 20;
    case DType::iq3_xxs: return 23;
    case DType::iq1_s: return 24;
    case DType::iq4_nl: return 25;
    case DType::iq3_s: return 26;
    case DType::iq2_s: return 28;
    case DType::iq4_xs: return 30;
    case DType::iq1_m: return 31;
    case DType::tq1_0: return 36;
    case DType::tq2_0: return 37;
    case DType::mxfp4: return 38;
    default: throw skald::UsageError("quantize", "no file type is defined for " + std::string(skald::to_string(type)));
  }
}

/// Rows of `tensor` from byte `offset` of the encoded tensor on, as many as `out` holds.
void encode_rows(const skald::ModelFile& file, const skald::TensorInfo& tensor, DType type, std::uint64_t offset,
                 std::span<std::byte> out) {
  const auto columns = static_cast<std::size_t>(tensor.columns());
  const std::size_t to_bytes = skald::row_bytes(type, columns);
  const std::size_t from_bytes = skald::row_bytes(tensor.type, columns);
  std::vector<std::byte> stored(from_bytes);
  std::vector<float> values(columns);
  for (std::size_t done = 0; done < out.size(); done += to_bytes) {
    file.read(tensor, (offset + done) / to_bytes * from_bytes, stored);
    skald::decode_row(tensor.type, stored, values);
    skald::encode_row(type, values, out.subspan(done, to_bytes));
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: skald_quantize_dev IN.gguf OUT.gguf TYPE\n";
    return 2;
  }
  const auto type = skald::dtype_from_name(argv[3]);
  if (!type || !skald::can_encode(*type))
    throw skald::UsageError("quantize", "cannot encode type '" + std::string(argv[3]) + "'");

  const auto file = skald::open_gguf(argv[1]);
  skald::GgufWriter writer;
  writer.set_all(file.metadata());
  writer.set("general.file_type", file_type(*type));
  writer.set("general.quantization_version", std::uint32_t{2});

  std::size_t encoded = 0;
  for (const auto& tensor : file.tensors()) {
    std::vector<std::int64_t> dims(tensor.dims.begin(), tensor.dims.begin() + static_cast<std::ptrdiff_t>(tensor.rank));
    const bool matrix = tensor.rank >= 2 && tensor.columns() % skald::format_ops(*type).block_elements == 0;
    if (matrix) {
      ++encoded;
      writer.add_tensor(tensor.name, *type, dims,
                        [&file, &tensor, type](std::uint64_t offset, std::span<std::byte> out) {
                          encode_rows(file, tensor, *type, offset, out);
                        });
    } else {
      writer.add_tensor(
          tensor.name, tensor.type, dims,
          [&file, &tensor](std::uint64_t offset, std::span<std::byte> out) { file.read(tensor, offset, out); });
    }
  }
  writer.write_file(argv[2]);
  std::cout << encoded << " of " << file.tensors().size() << " tensors are now " << skald::to_string(*type) << ", "
            << writer.file_bytes() << " bytes\n";
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
