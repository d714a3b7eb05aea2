// Linear layers (include/paceline/linear.h).
#include "paceline/linear.h"

#include "panels.h"

namespace paceline::PACELINE_ISA_NAME {
namespace {

// ---- Quantised activations ----

// Below this, 127 / max would overflow; so small a block counts as zero.
constexpr float kSmallestMagnitude = 1e-30f;

void quantize_block(const float* from, std::int8_t* quants, float* scale,
                    std::int32_t* minus_8_sum) {
  const F32x16 low = load(from), high = load(from + kLanes);
  const std::uint32_t bits = highest_magnitude_bits(low, high);
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof bits);
  if (bits >= 0x7f800000u || magnitude < kSmallestMagnitude) {
    std::memset(quants, 0, kBlockColumns);
    *scale = bits >= 0x7f800000u ? __builtin_nanf("") : 0.0f;
    *minus_8_sum = 0;
    return;
  }
  const F32x16 inverse = splat(127.0f / magnitude);
  const I32x16 first = to_nearest(low * inverse), second = to_nearest(high * inverse);
  store_int8(first, quants);
  store_int8(second, quants + kLanes);
  *scale = magnitude / 127.0f;
  *minus_8_sum = -8 * sum(first + second);
}

void quantize(const Activations& x, int row, int first, int end) {
  const float* values = x.values + static_cast<std::ptrdiff_t>(row) * x.inner;
  for (std::ptrdiff_t b = first; b < end; ++b) {
    const std::ptrdiff_t at = b * x.num_rows + row;
    quantize_block(values + b * kBlockColumns, x.quants + at * kBlockColumns, x.scales + at,
                   x.minus_8_sums + at);
  }
}

// ---- Quantised weights ----

struct Q4_0 {
  static constexpr int kBytes = 256;  // of a block of 16 outputs
  PACELINE_INLINE static void unpack(const std::uint8_t* block, U8x64 (&columns)[8]) {
    PACELINE_UNROLL
    for (int l = 0; l < 4; ++l) {
      const U8x64 packed = load_bytes(block + 64 * l);
      columns[l] = low_nibbles(packed);
      columns[l + 4] = high_nibbles(packed);
    }
  }
  // Takes the 8 that every nibble has too much off again.
  PACELINE_INLINE static I32x16 start(std::int32_t minus_8_sum) { return splat(minus_8_sum); }
  PACELINE_INLINE static I32x16 dot(I32x16 to, U8x64 weights, const std::int8_t* four) {
    return dot_nibbles(to, weights, four);
  }
};

struct Q8_0 {
  static constexpr int kBytes = 512;  // of a block of 16 outputs
  PACELINE_INLINE static void unpack(const std::uint8_t* block, U8x64 (&columns)[8]) {
    PACELINE_UNROLL
    for (int l = 0; l < 8; ++l) columns[l] = load_bytes(block + 64 * l);
  }
  PACELINE_INLINE static I32x16 start(std::int32_t minus_8_sum) { return start_bytes(minus_8_sum); }
  PACELINE_INLINE static I32x16 dot(I32x16 to, U8x64 weights, const std::int8_t* four) {
    return dot_bytes(to, weights, four);
  }
};

template <class Format>
inline constexpr std::ptrdiff_t kBlockBytes = 2 * Format::kBytes + kPanelRows * 2;

// How far ahead of its use a weight is asked for. The processor's own prefetcher stops at pages.
constexpr std::ptrdiff_t kPrefetchBytes = 12288;

// Asks for blocks to come, far ahead into the second cache and from there, two blocks before their
// use, into the first one. That can wait for few lines at a time, and had none left for products:
// asked for all, memory and products took turns, and 5 rows of E2B 75 ms instead of 60 (Zen 4).
template <class Format>
PACELINE_INLINE void prefetch_blocks(const std::uint8_t* block) {
  PACELINE_UNROLL
  for (int line = 0; line < kBlockBytes<Format>; line += 64) {
    __builtin_prefetch(block + kPrefetchBytes + line, 0, 2);
    __builtin_prefetch(block + 2 * kBlockBytes<Format> + line);
  }
}

// The outputs of half a panel, or of a whole one, for M rows.
//
// Weights are unpacked once for all rows, and four activations that were loaded meet all H halves:
// loads are as scarce as products.
template <class Format, int M, int H>
void multiply_quantized(const std::uint8_t* panel, int half, const Activations& x, int first_row,
                        float* out, std::ptrdiff_t stride, int outputs) {
  const std::ptrdiff_t blocks = x.inner / kBlockColumns;
  F32x16 totals[M][H];
  PACELINE_UNROLL
  for (int m = 0; m < M; ++m) {
    PACELINE_UNROLL
    for (int h = 0; h < H; ++h) totals[m][h] = splat(0.0f);
  }
  for (std::ptrdiff_t b = 0; b < blocks; ++b) {
    const std::uint8_t* block = panel + b * kBlockBytes<Format>;
    const auto* scales = reinterpret_cast<const std::uint16_t*>(block + 2 * Format::kBytes);
    if (H == 2 || half == 0) prefetch_blocks<Format>(block);
    U8x64 columns[H][8];
    F32x16 weight_scales[H];
    PACELINE_UNROLL
    for (int h = 0; h < H; ++h) {
      Format::unpack(block + (half + h) * Format::kBytes, columns[h]);
      weight_scales[h] = load_f16(scales + (half + h) * kLanes);
    }
    const std::ptrdiff_t at = b * x.num_rows + first_row;
    PACELINE_UNROLL
    for (int m = 0; m < M; ++m) {
      const std::int8_t* quants = x.quants + (at + m) * kBlockColumns;
      I32x16 sums[H];
      PACELINE_UNROLL
      for (int h = 0; h < H; ++h) sums[h] = Format::start(x.minus_8_sums[at + m]);
      PACELINE_UNROLL
      for (int c = 0; c < 8; ++c) {
        PACELINE_UNROLL
        for (int h = 0; h < H; ++h) {
          sums[h] = Format::dot(sums[h], columns[h][c], quants + 4 * c);
        }
      }
      const F32x16 scale = splat(x.scales[at + m]);
      PACELINE_UNROLL
      for (int h = 0; h < H; ++h) {
        totals[m][h] = fma(to_float(sums[h]), weight_scales[h] * scale, totals[m][h]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int h = 0; h < H; ++h) {
      const int first = (half + h) * kLanes;
      store_first(totals[m][h], out + m * stride + first, outputs - first);
    }
  }
}

// All rows for one panel, in tiles of as many rows as the registers allow.
template <class Format, int H, int... M>
void multiply_rows(const std::uint8_t* panel, const Activations& x, float* out,
                   std::ptrdiff_t stride, int outputs) {
  using Tile = void (*)(const std::uint8_t*, int, const Activations&, int, float*, std::ptrdiff_t,
                        int);
  static constexpr Tile kTiles[] = {multiply_quantized<Format, M, H>...};
  for (int row = 0; row < x.num_rows; row += kMaxQuantizedRows) {
    const int rows = smaller(kMaxQuantizedRows, x.num_rows - row);
    for (int half = 0; half < 2; half += H) {
      kTiles[rows - 1](panel, half, x, row, out + row * stride, stride, outputs);
    }
  }
}

template <class Format>
void multiply_panels(const Matrix& weights, const Activations& x, int first, int end, float* out,
                     std::ptrdiff_t stride) {
  const std::ptrdiff_t bytes = weights.inner / kBlockColumns * kBlockBytes<Format>;
  for (std::ptrdiff_t p = first; p < end; ++p) {
    const std::uint8_t* panel = weights.panels + p * bytes;
    float* to = out + p * kPanelRows;
    const int outputs = weights.outputs - static_cast<int>(p) * kPanelRows;
    if constexpr (kMaxQuantizedRows == 16) {
      multiply_rows<Format, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>(
          panel, x, to, stride, outputs);
    } else {
      multiply_rows<Format, 1, 1, 2, 3, 4>(panel, x, to, stride, outputs);
    }
  }
}

// ---- Plain weights ----

constexpr int kGroup = 4;  // halves of panels that stay in the cache while all rows pass over them

template <class Number, int M, int P>
void multiply_and_store(const typename Number::Stored* panel, std::ptrdiff_t panel_step,
                        const Activations& x, int row, float* out, std::ptrdiff_t stride,
                        int outputs) {
  F32x16 totals[M][P];
  multiply_tile<Number, M, P>(panel, panel_step, x.inner,
                              x.values + static_cast<std::ptrdiff_t>(row) * x.inner, x.inner,
                              totals);
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) {
      store_first(totals[m][p], out + (row + m) * stride + p * kLanes, outputs - p * kLanes);
    }
  }
}

// Up to kGroup halves of panels for M rows, as many at once as registers allow.
template <class Number, int M>
void multiply_group(const typename Number::Stored* panel, std::ptrdiff_t panel_step,
                    const Activations& x, int row, float* out, std::ptrdiff_t stride, int outputs) {
  constexpr int P = kPanelsAtOnce<M>;
  int done = 0;
  for (; done + (P - 1) * kLanes < outputs; done += P * kLanes) {
    multiply_and_store<Number, M, P>(panel, panel_step, x, row, out + done, stride, outputs - done);
    panel += P * panel_step;
  }
  for (; done < outputs; done += kLanes) {
    multiply_and_store<Number, M, 1>(panel, panel_step, x, row, out + done, stride, outputs - done);
    panel += panel_step;
  }
}

template <class Number, int M>
void multiply_group_rows(int rows, const typename Number::Stored* panel, std::ptrdiff_t panel_step,
                         const Activations& x, int row, float* out, std::ptrdiff_t stride,
                         int outputs) {
  if constexpr (M > 1) {
    if (rows < M) {
      return multiply_group_rows<Number, M - 1>(rows, panel, panel_step, x, row, out, stride,
                                                outputs);
    }
  }
  multiply_group<Number, M>(panel, panel_step, x, row, out, stride, outputs);
}

template <class Number>
void multiply_numbers(const Matrix& weights, const Activations& x, int first, int end, float* out,
                      std::ptrdiff_t stride) {
  const auto* halves = reinterpret_cast<const typename Number::Stored*>(weights.panels);
  const std::ptrdiff_t unaligned = static_cast<std::ptrdiff_t>(weights.inner) * kLanes;
  constexpr std::ptrdiff_t kAligned = 64 / sizeof(typename Number::Stored);
  const std::ptrdiff_t step = (unaligned + kAligned - 1) / kAligned * kAligned;
  constexpr int kGroupOutputs = kGroup * kLanes;
  const int until = smaller(weights.outputs, end * kPanelRows);
  for (int from = first * kPanelRows; from < until; from += kGroupOutputs) {
    const int outputs = smaller(until - from, kGroupOutputs);
    for (int row = 0; row < x.num_rows; row += kMaxFloatRows) {
      const int rows = smaller(kMaxFloatRows, x.num_rows - row);
      multiply_group_rows<Number, kMaxFloatRows>(rows, halves + from / kLanes * step, step, x, row,
                                                 out + from, stride, outputs);
    }
  }
}

void multiply(const Matrix& weights, const Activations& x, int first, int end, float* out,
              std::ptrdiff_t stride) {
  switch (weights.type) {
    case WeightType::q4_0:
      return multiply_panels<Q4_0>(weights, x, first, end, out, stride);
    case WeightType::q8_0:
      return multiply_panels<Q8_0>(weights, x, first, end, out, stride);
    case WeightType::bf16:
      return multiply_numbers<Bf16>(weights, x, first, end, out, stride);
    case WeightType::f16:
      return multiply_numbers<F16>(weights, x, first, end, out, stride);
    case WeightType::f32:
      return multiply_numbers<F32>(weights, x, first, end, out, stride);
  }
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {quantize, multiply};

}  // namespace paceline::PACELINE_ISA_NAME
