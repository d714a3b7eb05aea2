// AVX-512 with VNNI. The interface is described in simd_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define PACELINE_INLINE [[gnu::always_inline]] inline

namespace paceline::avx512 {

inline constexpr int kMaxQuantizedRows = 16;
inline constexpr int kMaxFloatAccumulators = 24;

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct U8x64 {
  __m512i v;
};

PACELINE_INLINE F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
PACELINE_INLINE F32x16 load(const float* from) { return {_mm512_loadu_ps(from)}; }
PACELINE_INLINE void store(F32x16 x, float* to) { _mm512_storeu_ps(to, x.v); }
PACELINE_INLINE F32x16 load_f16(const std::uint16_t* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
PACELINE_INLINE void store_f16(F32x16 x, std::uint16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
PACELINE_INLINE F32x16 load_bf16(const std::uint16_t* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}

PACELINE_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
PACELINE_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
PACELINE_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
PACELINE_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
PACELINE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
PACELINE_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
PACELINE_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
PACELINE_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
PACELINE_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 yes, F32x16 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
PACELINE_INLINE F32x16 select_range(int first, int end, F32x16 inside, F32x16 outside) {
  const __mmask16 mask = static_cast<__mmask16>(((1u << end) - 1u) & ~((1u << first) - 1u));
  return {_mm512_mask_blend_ps(mask, outside.v, inside.v)};
}
PACELINE_INLINE std::uint32_t lanes_at_least(F32x16 a, F32x16 bound) {
  return _mm512_cmp_ps_mask(a.v, bound.v, _CMP_GE_OQ);
}
PACELINE_INLINE float sum(F32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
PACELINE_INLINE float highest(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
PACELINE_INLINE std::uint32_t highest_magnitude_bits(F32x16 a, F32x16 b) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  return _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_and_epi32(_mm512_castps_si512(a.v), mask),
                       _mm512_and_epi32(_mm512_castps_si512(b.v), mask)));
}

PACELINE_INLINE I32x16 splat(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
PACELINE_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
PACELINE_INLINE F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
PACELINE_INLINE I32x16 to_nearest(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
PACELINE_INLINE F32x16 power_of_two(I32x16 n) {
  const __m512i biased = _mm512_add_epi32(n.v, _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
PACELINE_INLINE void store_int8(I32x16 a, std::int8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.v));
}
PACELINE_INLINE std::int32_t sum(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }

PACELINE_INLINE U8x64 load_bytes(const std::uint8_t* from) { return {_mm512_loadu_si512(from)}; }
PACELINE_INLINE U8x64 low_nibbles(U8x64 a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(0x0f))};
}
PACELINE_INLINE U8x64 high_nibbles(U8x64 a) { return low_nibbles({_mm512_srli_epi16(a.v, 4)}); }
PACELINE_INLINE I32x16 dot_nibbles(I32x16 to, U8x64 weights, const std::int8_t* four) {
  std::int32_t packed;
  __builtin_memcpy(&packed, four, 4);
  return {_mm512_dpbusd_epi32(to.v, weights.v, _mm512_set1_epi32(packed))};
}
PACELINE_INLINE I32x16 start_bytes(std::int32_t minus_8_sums) {
  return {_mm512_slli_epi32(_mm512_set1_epi32(minus_8_sums), 4)};
}
PACELINE_INLINE I32x16 dot_bytes(I32x16 to, U8x64 weights, const std::int8_t* four) {
  return dot_nibbles(to, weights, four);
}

}  // namespace paceline::avx512
