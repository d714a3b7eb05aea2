// The vectors in plain C++: for any processor, and the definition of what each operation means.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define PACELINE_INLINE [[gnu::always_inline]] inline

namespace paceline::portable {

// How many rows of a quantised product, and accumulators of a float one, are kept in registers.
inline constexpr int kMaxQuantizedRows = 4;
inline constexpr int kMaxFloatAccumulators = 4;

struct F32x16 {
  float v[16];
};
struct I32x16 {
  std::int32_t v[16];
};
struct U8x64 {
  std::uint8_t v[64];
};

template <class Lane>
PACELINE_INLINE F32x16 each(Lane lane) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) out.v[i] = lane(i);
  return out;
}

PACELINE_INLINE float as_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
PACELINE_INLINE std::uint32_t as_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
PACELINE_INLINE float from_f16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
  if (exponent == 31) return as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return as_float(sign | as_bits(magnitude));
  }
  return as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

PACELINE_INLINE std::uint16_t to_f16(float x) {
  const std::uint32_t bits = as_bits(x), magnitude = bits & 0x7fffffffu,
                      sign = bits >> 16 & 0x8000u;
  if (magnitude < 0x38800000u) {  // below 2^-14 a half counts steps of 2^-24
    const float steps = ::nearbyintf(as_float(magnitude) * 0x1p24f);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(steps));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

PACELINE_INLINE F32x16 splat(float x) {
  return each([=](int) { return x; });
}
PACELINE_INLINE F32x16 load(const float* from) {
  return each([=](int i) { return from[i]; });
}
PACELINE_INLINE void store(F32x16 x, float* to) { std::memcpy(to, x.v, sizeof x.v); }
PACELINE_INLINE F32x16 load_f16(const std::uint16_t* from) {
  return each([=](int i) { return from_f16(from[i]); });
}
// Rounds to nearest, ties to even; the lanes must be within the finite halves.
PACELINE_INLINE void store_f16(F32x16 x, std::uint16_t* to) {
  for (int i = 0; i < 16; ++i) to[i] = to_f16(x.v[i]);
}
PACELINE_INLINE F32x16 load_bf16(const std::uint16_t* from) {
  return each([=](int i) { return as_float(static_cast<std::uint32_t>(from[i]) << 16); });
}

PACELINE_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
PACELINE_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
PACELINE_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
PACELINE_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
// a * b + c, rounded once.
PACELINE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each([&](int i) { return ::fmaf(a.v[i], b.v[i], c.v[i]); });
}
// b where either is NaN, as on x86.
PACELINE_INLINE F32x16 max(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
// The same with the lower one.
PACELINE_INLINE F32x16 min(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
PACELINE_INLINE F32x16 abs(F32x16 a) {
  return each([&](int i) { return as_float(as_bits(a.v[i]) & 0x7fffffffu); });
}
// yes where a < b, no elsewhere, also where either is NaN.
PACELINE_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 yes, F32x16 no) {
  return each([&](int i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; });
}
// inside in lanes first to end - 1.
PACELINE_INLINE F32x16 select_range(int first, int end, F32x16 inside, F32x16 outside) {
  return each([&](int i) { return first <= i && i < end ? inside.v[i] : outside.v[i]; });
}
// Bit i: lane i is at least its bound.
PACELINE_INLINE std::uint32_t lanes_at_least(F32x16 a, F32x16 bound) {
  std::uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<std::uint32_t>(a.v[i] >= bound.v[i]) << i;
  return mask;
}
// Lane i meets lane i + 8, then i + 4, i + 2, i + 1.
PACELINE_INLINE float sum(F32x16 a) {
  for (int half = 8; half; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
PACELINE_INLINE float highest(F32x16 a) {
  float best = a.v[0];
  for (int i = 1; i < 16; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}
// The highest |lane| as bits, in which infinity and NaN stand above all numbers.
PACELINE_INLINE std::uint32_t highest_magnitude_bits(F32x16 a, F32x16 b) {
  std::uint32_t best = 0;
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t x = as_bits(a.v[i]) & 0x7fffffffu, y = as_bits(b.v[i]) & 0x7fffffffu;
    best = x > best ? x : best;
    best = y > best ? y : best;
  }
  return best;
}

PACELINE_INLINE I32x16 splat(std::int32_t x) {
  I32x16 out;
  for (int i = 0; i < 16; ++i) out.v[i] = x;
  return out;
}
PACELINE_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
}
PACELINE_INLINE F32x16 to_float(I32x16 a) {
  return each([&](int i) { return static_cast<float>(a.v[i]); });
}
// Ties to even; the lanes must be within the integers.
PACELINE_INLINE I32x16 to_nearest(F32x16 a) {
  I32x16 out;
  for (int i = 0; i < 16; ++i) out.v[i] = static_cast<std::int32_t>(::nearbyintf(a.v[i]));
  return out;
}
// 2^n for -127 < n < 128; 0 for n = -127.
PACELINE_INLINE F32x16 power_of_two(I32x16 n) {
  return each([&](int i) { return as_float(static_cast<std::uint32_t>(n.v[i] + 127) << 23); });
}
PACELINE_INLINE void store_int8(I32x16 a, std::int8_t* to) {
  for (int i = 0; i < 16; ++i) to[i] = static_cast<std::int8_t>(a.v[i]);
}
PACELINE_INLINE std::int32_t sum(I32x16 a) {
  std::int32_t total = 0;
  for (int i = 0; i < 16; ++i) total += a.v[i];
  return total;
}

PACELINE_INLINE U8x64 load_bytes(const std::uint8_t* from) {
  U8x64 out;
  std::memcpy(out.v, from, sizeof out.v);
  return out;
}
PACELINE_INLINE U8x64 low_nibbles(U8x64 a) {
  for (int i = 0; i < 64; ++i) a.v[i] &= 0x0f;
  return a;
}
PACELINE_INLINE U8x64 high_nibbles(U8x64 a) {
  for (int i = 0; i < 64; ++i) a.v[i] = static_cast<std::uint8_t>(a.v[i] >> 4);
  return a;
}
// Lane i of `to` gains the dot product of bytes 4 i to 4 i + 3 of the weights with `four`.
PACELINE_INLINE I32x16 dot_nibbles(I32x16 to, U8x64 weights, const std::int8_t* four) {
  for (int i = 0; i < 16; ++i) {
    for (int c = 0; c < 4; ++c) to.v[i] += weights.v[4 * i + c] * four[c];
  }
  return to;
}
// Bytes hold weight + 128. Where dot_bytes multiplies them as they stand, the start takes
// 128 x the sum of the activations off again; its argument is -8 x that sum.
PACELINE_INLINE I32x16 start_bytes(std::int32_t minus_8_sums) { return splat(16 * minus_8_sums); }
PACELINE_INLINE I32x16 dot_bytes(I32x16 to, U8x64 weights, const std::int8_t* four) {
  return dot_nibbles(to, weights, four);
}

}  // namespace paceline::portable
