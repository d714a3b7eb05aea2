// The small operations between linear layers, one row at a time.
//
// Bits are equal on every instruction set: each is a fixed sequence of float32 roundings. Sums run
// in 64 chains, position i in chain i mod 64, added in one fixed tree. `size` is any number from 1
// on; memory needs no alignment and nothing past the end is read or written.
#pragma once

#include <cstdint>

#include "paceline/weights.h"

namespace paceline {

struct OpsKernels {
  // out = x / sqrt(mean(x^2) + eps) * weight, or without weight where that is nullptr. `out` may be
  // x. (Multiplies by the rounded inverse of the root, then by the weight.)
  void (*rms_norm)(const float* x, const float* weight, float eps, int size, float* out);

  // residual = (residual + rms_norm(x)) * scale. With scale 1 a plain residual connection, with a
  // layer's scalar its end.
  void (*add_rms_norm)(const float* x, const float* weight, float eps, float scale, int size,
                       float* residual);

  // Turns one head in place: pairs (i, i + size / 2) by the angles whose cosines and sines are
  // given, [size / 2]. `size` is even. x_i = x_i cos - x_j sin, x_j = x_j cos + x_i sin, products
  // and sums each rounded.
  void (*rope)(float* head, const float* cosines, const float* sines, int size);

  // out = gelu_tanh(gate) * up. `out` may be gate or up. gelu_tanh(x) is computed as
  // x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3), which equals x (1 + tanh(u)) / 2;
  // zero instead of results below 1e-36.
  void (*gelu_gate)(const float* gate, const float* up, int size, float* out);

  // x = cap * tanh(x / cap), in place. Relative error of tanh at most 2e-7; NaN stays.
  void (*soft_cap)(float* x, int size, float cap);

  // x = exp(x) in place, subnormal results included. Relative error at most 1.2e-7.
  void (*exp)(float* x, int size);

  // In place. NaN or infinity makes the whole row NaN.
  void (*softmax)(float* x, int size);

  // One row of a table as it lies in a file (see source_row_bytes), times `scale`.
  void (*embed)(WeightType type, const std::uint8_t* row, float scale, int size, float* out);

  // to = (to + x) * scale, the sum rounded before the product.
  void (*add)(const float* x, float scale, int size, float* to);

  // to = to + x * factor, the product rounded before the sum: how experts are added.
  void (*add_multiple)(const float* x, float factor, int size, float* to);

  // x = x * factor
  void (*scale)(float* x, float factor, int size);
};

}  // namespace paceline
