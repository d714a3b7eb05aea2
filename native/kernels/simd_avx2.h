// AVX2 with FMA and F16C, and AVX-VNNI where the compilation has it: pairs of 8-lane registers.
// The interface is described in simd_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define PACELINE_INLINE [[gnu::always_inline]] inline

namespace paceline::PACELINE_ISA_NAME {

inline constexpr int kMaxQuantizedRows = 4;
inline constexpr int kMaxFloatAccumulators = 6;

struct F32x16 {
  __m256 low, high;
};
struct I32x16 {
  __m256i low, high;
};
struct U8x64 {
  __m256i low, high;
};

PACELINE_INLINE __m256i load_256(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
PACELINE_INLINE __m128i load_128(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}

PACELINE_INLINE F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PACELINE_INLINE F32x16 load(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
PACELINE_INLINE void store(F32x16 x, float* to) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
PACELINE_INLINE F32x16 load_f16(const std::uint16_t* from) {
  return {_mm256_cvtph_ps(load_128(from)), _mm256_cvtph_ps(load_128(from + 8))};
}
PACELINE_INLINE void store_f16(F32x16 x, std::uint16_t* to) {
  const __m128i low = _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8), high);
}
PACELINE_INLINE __m256 widen_bf16(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
PACELINE_INLINE F32x16 load_bf16(const std::uint16_t* from) {
  return {widen_bf16(load_128(from)), widen_bf16(load_128(from + 8))};
}

PACELINE_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
PACELINE_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
PACELINE_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
PACELINE_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
PACELINE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
PACELINE_INLINE F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
PACELINE_INLINE F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
PACELINE_INLINE __m256i magnitude_bits(__m256 a) {
  return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff));
}
PACELINE_INLINE F32x16 abs(F32x16 a) {
  return {_mm256_castsi256_ps(magnitude_bits(a.low)), _mm256_castsi256_ps(magnitude_bits(a.high))};
}
PACELINE_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 yes, F32x16 no) {
  return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
PACELINE_INLINE __m256 inside_range(__m256i lanes, int first, int end) {
  const __m256i from = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(first - 1));
  return _mm256_castsi256_ps(
      _mm256_and_si256(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lanes)));
}
PACELINE_INLINE F32x16 select_range(int first, int end, F32x16 inside, F32x16 outside) {
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  return {_mm256_blendv_ps(outside.low, inside.low, inside_range(low, first, end)),
          _mm256_blendv_ps(outside.high, inside.high, inside_range(high, first, end))};
}
PACELINE_INLINE std::uint32_t lanes_at_least(F32x16 a, F32x16 bound) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, bound.low, _CMP_GE_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, bound.high, _CMP_GE_OQ));
  return static_cast<std::uint32_t>(low | high << 8);
}
PACELINE_INLINE float sum(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
PACELINE_INLINE float highest(F32x16 a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
PACELINE_INLINE std::uint32_t highest_magnitude_bits(F32x16 a, F32x16 b) {
  const __m256i eight =
      _mm256_max_epu32(_mm256_max_epu32(magnitude_bits(a.low), magnitude_bits(a.high)),
                       _mm256_max_epu32(magnitude_bits(b.low), magnitude_bits(b.high)));
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(four));
}

PACELINE_INLINE I32x16 splat(std::int32_t x) {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
PACELINE_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
PACELINE_INLINE F32x16 to_float(I32x16 a) {
  return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}
PACELINE_INLINE I32x16 to_nearest(F32x16 a) {
  return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)};
}
PACELINE_INLINE __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
PACELINE_INLINE F32x16 power_of_two(I32x16 n) {
  return {power_of_two(n.low), power_of_two(n.high)};
}
PACELINE_INLINE void store_int8(I32x16 a, std::int8_t* to) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
PACELINE_INLINE std::int32_t sum(I32x16 a) {
  const __m256i eight = _mm256_add_epi32(a.low, a.high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

PACELINE_INLINE U8x64 load_bytes(const std::uint8_t* from) {
  return {load_256(from), load_256(from + 32)};
}
PACELINE_INLINE U8x64 low_nibbles(U8x64 a) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
}
PACELINE_INLINE U8x64 high_nibbles(U8x64 a) {
  return low_nibbles({_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)});
}
PACELINE_INLINE __m256i splat_four(const std::int8_t* four) {
  std::int32_t packed;
  __builtin_memcpy(&packed, four, 4);
  return _mm256_set1_epi32(packed);
}

#if defined(__AVXVNNI__)

PACELINE_INLINE I32x16 dot_nibbles(I32x16 to, U8x64 weights, const std::int8_t* four) {
  const __m256i x = splat_four(four);
  return {_mm256_dpbusd_avx_epi32(to.low, weights.low, x),
          _mm256_dpbusd_avx_epi32(to.high, weights.high, x)};
}
PACELINE_INLINE I32x16 start_bytes(std::int32_t minus_8_sums) { return splat(16 * minus_8_sums); }
PACELINE_INLINE I32x16 dot_bytes(I32x16 to, U8x64 weights, const std::int8_t* four) {
  return dot_nibbles(to, weights, four);
}

#else

// Pairs of products must stay below 2^15: 2 x 15 x 127 does.
PACELINE_INLINE __m256i dot_256(__m256i to, __m256i weights, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(weights, x);
  return _mm256_add_epi32(to, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
PACELINE_INLINE I32x16 dot_nibbles(I32x16 to, U8x64 weights, const std::int8_t* four) {
  const __m256i x = splat_four(four);
  return {dot_256(to.low, weights.low, x), dot_256(to.high, weights.high, x)};
}
// Unsigned bytes would overflow the pairs. |weight| <= 128 times the activation with the weight's
// sign does not, and needs no correction.
PACELINE_INLINE I32x16 start_bytes(std::int32_t) { return splat(std::int32_t{0}); }
PACELINE_INLINE __m256i dot_signed_256(__m256i to, __m256i offset_weights, __m256i x) {
  const __m256i w = _mm256_xor_si256(offset_weights, _mm256_set1_epi8(-128));
  return dot_256(to, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
PACELINE_INLINE I32x16 dot_bytes(I32x16 to, U8x64 weights, const std::int8_t* four) {
  const __m256i x = splat_four(four);
  return {dot_signed_256(to.low, weights.low, x), dot_signed_256(to.high, weights.high, x)};
}

#endif

}  // namespace paceline::PACELINE_ISA_NAME
