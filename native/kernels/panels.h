// Products of panels of 16 plain numbers [inner][16] with a few rows. Serves linear layers and the
// scores of attention, whose keys lie in such panels too.
#pragma once

#include "simd.h"

namespace paceline::PACELINE_ISA_NAME {

struct Bf16 {
  using Stored = std::uint16_t;
  PACELINE_INLINE static F32x16 load(const Stored* from) { return load_bf16(from); }
};
struct F16 {
  using Stored = std::uint16_t;
  PACELINE_INLINE static F32x16 load(const Stored* from) { return load_f16(from); }
};
struct F32 {
  using Stored = float;
  PACELINE_INLINE static F32x16 load(const Stored* from) { return PACELINE_ISA_NAME::load(from); }
};

inline constexpr int kMaxFloatRows = kMaxFloatAccumulators < 8 ? kMaxFloatAccumulators : 8;

// Adds M rows times P panels to `out`. Several panels at once hide the latency of the one chain per
// output.
template <class Number, int M, int P>
PACELINE_INLINE void add_tile(const typename Number::Stored* panel, std::ptrdiff_t panel_step,
                              int inner, const float* x, std::ptrdiff_t x_stride,
                              F32x16 (&out)[M][P]) {
  for (std::ptrdiff_t k = 0; k < inner; ++k) {
    F32x16 w[P];
    PACELINE_UNROLL
    for (int p = 0; p < P; ++p) w[p] = Number::load(panel + p * panel_step + k * kLanes);
    PACELINE_UNROLL
    for (int m = 0; m < M; ++m) {
      const F32x16 broadcast = splat(x[m * x_stride + k]);
      PACELINE_UNROLL
      for (int p = 0; p < P; ++p) out[m][p] = fma(w[p], broadcast, out[m][p]);
    }
  }
}

template <int M, int P>
PACELINE_INLINE void clear_tile(F32x16 (&out)[M][P]) {
  PACELINE_UNROLL
  for (int m = 0; m < M; ++m) {
    PACELINE_UNROLL
    for (int p = 0; p < P; ++p) out[m][p] = splat(0.0f);
  }
}

template <class Number, int M, int P>
PACELINE_INLINE void multiply_tile(const typename Number::Stored* panel, std::ptrdiff_t panel_step,
                                   int inner, const float* x, std::ptrdiff_t x_stride,
                                   F32x16 (&out)[M][P]) {
  clear_tile(out);
  add_tile<Number, M, P>(panel, panel_step, inner, x, x_stride, out);
}

// How many panels M rows take at once without running out of registers.
template <int M>
inline constexpr int kPanelsAtOnce = kMaxFloatAccumulators >= 4 * M   ? 4
                                     : kMaxFloatAccumulators >= 2 * M ? 2
                                                                      : 1;

}  // namespace paceline::PACELINE_ISA_NAME
