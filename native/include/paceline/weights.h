// Weight matrices as the kernels read them: 32 output rows interleaved into one panel.
//
// A panel holds, for outputs 32 p to 32 p + 31 in two halves of 16 (rows past the end are zero):
//   q4_0  per block of 32 columns 256 bytes of each half [2][4][16][4]: byte (h, l, r, c) has
//         column 4 l + c of row 16 h + r in its low and column 16 + 4 l + c in its high nibble, each
//         plus 8; then the scales of that block as half floats [32]
//   q8_0  the same with 512 bytes [2][8][16][4]: column 4 l + c of row 16 h + r plus 128
//   bf16, f16, f32  [2][inner][16], each half padded to a multiple of 64 bytes
// One load of 64 bytes so meets four columns, or one column, of 16 outputs, and every sum over
// columns stays in its own lane. A panel of blocks is read from its first byte to its last in one
// stream. Panels begin at multiples of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace paceline {

enum class WeightType : std::uint8_t { q4_0, q8_0, bf16, f16, f32 };

inline constexpr int kPanelRows = 32;
inline constexpr int kHalfRows = 16;  // outputs that one vector holds
inline constexpr int kBlockColumns = 32;
inline constexpr std::size_t kAlignment = 64;

inline bool is_quantized(WeightType type) {
  return type == WeightType::q4_0 || type == WeightType::q8_0;
}

// A packed matrix [outputs, inner] that somebody else owns.
struct Matrix {
  WeightType type = WeightType::f32;
  int outputs = 0;
  int inner = 0;
  const std::uint8_t* panels = nullptr;
};

inline int num_panels(int outputs) { return (outputs + kPanelRows - 1) / kPanelRows; }

// Bytes of one row as it lies in a file (GGUF blocks, or plain numbers). Quantised rows hold a
// multiple of 32 columns.
std::size_t source_row_bytes(WeightType type, int inner);
std::size_t panel_bytes(WeightType type, int inner);

// Interleave rows of a file into panels `first` to `end` - 1 of `panels`, which has room for
// num_panels(outputs) x panel_bytes(type, inner).
void pack_panels(WeightType type, const std::uint8_t* rows, int outputs, int inner, int first,
                 int end, std::uint8_t* panels);

// Blocks as llama.cpp writes them: a half-float scale, then 32 weights. `count` is a multiple of
// 32. Equals ggml's reference quantisation, except that ties round to even.
std::vector<std::uint8_t> quantize_row(WeightType type, const float* values, int count);

// Numbers of a row in a file, whatever its type. The slow twin of every kernel.
std::vector<float> dequantize_row(WeightType type, const std::uint8_t* row, int count);

std::uint16_t to_bf16(float x);
std::uint16_t to_f16(float x);
float from_bf16(std::uint16_t bits);
float from_f16(std::uint16_t bits);

// Memory for panels and activations, zeroed, aligned to 64 bytes; from 2 MiB on to huge pages.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t size);
  std::uint8_t* data() const { return bytes_.get(); }
  std::size_t size() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(bytes_.get());
  }

 private:
  struct Free {
    std::size_t mapped;  // bytes of a mapping of its own; 0: from the heap
    Free() : mapped(0) {}
    explicit Free(std::size_t size) : mapped(size) {}
    void operator()(std::uint8_t* bytes) const;
  };
  std::unique_ptr<std::uint8_t, Free> bytes_;
  std::size_t size_ = 0;
};

// A packed matrix with its memory.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // Packs rows of a file. To pack in parallel, use pack_panels.
  PackedMatrix(WeightType type, const std::uint8_t* rows, int outputs, int inner);
  // Converts numbers [outputs, inner] to `type` first.
  PackedMatrix(WeightType type, const float* values, int outputs, int inner);
  const Matrix& view() const { return view_; }

 private:
  void pack(WeightType type, const std::uint8_t* rows, int outputs, int inner);
  AlignedBytes bytes_;
  Matrix view_;
};

}  // namespace paceline
