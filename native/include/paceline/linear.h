// Linear layers: y = W x for M rows at once, W packed as in weights.h.
//
// Order of accumulation, the same for every M, thread count and instruction set (C1): an output is
// one chain of fused multiply-adds. For bf16, f16 and f32 weights it runs over the columns from the
// first to the last. For q4_0 and q8_0 it runs over blocks of 32 columns: each adds
// (integer dot product) x (weight scale x activation scale), and the integers are exact.
#pragma once

#include <cstddef>
#include <cstdint>

#include "paceline/weights.h"

namespace paceline {

// The rows that a linear layer reads, as numbers and for quantised weights also as signed bytes.
// Somebody else owns the memory.
struct Activations {
  int num_rows = 0;
  int inner = 0;
  float* values = nullptr;               // [num_rows][inner]
  std::int8_t* quants = nullptr;         // [inner / 32][num_rows][32]
  float* scales = nullptr;               // [inner / 32][num_rows]
  std::int32_t* minus_8_sums = nullptr;  // [inner / 32][num_rows] -8 x the sum of a block's bytes
};

struct LinearKernels {
  // Quantise blocks `first` to `end` - 1 of one row of x.values: scale = max |v| / 127, bytes
  // rounded to nearest, ties to even. A block that holds an infinity or NaN gets scale NaN.
  void (*quantize)(const Activations& x, int row, int first, int end);
  // Outputs 32 first to 32 end - 1 of every row: out[row * stride + output]. Outputs past the
  // matrix's end are not written.
  void (*multiply)(const Matrix& weights, const Activations& x, int first, int end, float* out,
                   std::ptrdiff_t stride);
};

}  // namespace paceline
