// Passes over the scores of a row (include/paceline/score_row.h).
//
// Doubles and 64-bit words in the compiler's own vectors: only the product of two words needs help.
#include "paceline/noise.h"
#include "paceline/score_row.h"

#include "simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace paceline::PACELINE_ISA_NAME {
namespace {

#if defined(PACELINE_ISA_avx512)
constexpr int kVectorBytes = 64;
#elif defined(PACELINE_ISA_avx2) || defined(PACELINE_ISA_avxvnni)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kWide = kVectorBytes / 8;  // lanes of 64 bits

using Doubles [[gnu::vector_size(kVectorBytes)]] = double;
using Words [[gnu::vector_size(kVectorBytes)]] = std::uint64_t;

// 1 / 11!, 1 / 10!, ..., 1: exp as a power series, but for the highest term.
constexpr double kTerms[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                             1.0 / 5040,     1.0 / 720,     1.0 / 120,    1.0 / 24,
                             1.0 / 6,        1.0 / 2,       1.0,          1.0};

static_assert(kScoreBlock % kLanes == 0 && kScoreBlock % kWide == 0);

float highest_of(const float* logits) {
  F32x16 best = load(logits);
  std::uint32_t numbers = lanes_at_least(best, best);  // NaN is not even at least itself
  for (int at = kLanes; at < kScoreBlock; at += kLanes) {
    const F32x16 values = load(logits + at);
    numbers &= lanes_at_least(values, values);
    best = max(values, best);
  }
  return numbers == 0xffff ? highest(best) : __builtin_nanf("");
}

PACELINE_INLINE Doubles splat_wide(double x) { return Doubles{} + x; }

// exp(x) for x <= 0: 2^n times the Taylor series of exp(r), x = n ln(2) + r, |r| <= ln(2) / 2,
// whose first term left out is below 2e-16.
PACELINE_INLINE Doubles exp_wide(Doubles x) {
  const Doubles lowest = splat_wide(-708.0);  // 2^n stays a normal number
  x = x > lowest ? x : lowest;
  const Doubles rounding = splat_wide(0x1.8p52);  // a sum this large ends at the units
  const Doubles shifted = x * 0x1.71547652b82fep+0 + rounding;
  const Doubles n = shifted - rounding;
  const Doubles r = (x - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
  Doubles p = splat_wide(1.0 / 479001600.0);
  PACELINE_UNROLL
  for (const double term : kTerms) p = p * r + term;
  // The low bits of `shifted` are n: as an exponent it multiplies by 2^n.
  const Words power = (reinterpret_cast<Words>(shifted) + std::uint64_t{1023}) << 52;
  return p * reinterpret_cast<Doubles>(power);
}

void weigh(double peak, double inverse_temperature, double* scores) {
  for (int at = 0; at < kScoreBlock; at += kWide) {
    Doubles x;
    __builtin_memcpy(&x, scores + at, sizeof x);
    x = exp_wide((x - peak) * inverse_temperature);
    __builtin_memcpy(scores + at, &x, sizeof x);
  }
}

// The products of the lower halves; the upper ones may hold anything.
PACELINE_INLINE Words multiply_words(Words a, std::uint32_t b) {
  const Words factor = Words{} + b;
#if defined(PACELINE_ISA_avx512)
  return reinterpret_cast<Words>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(factor)));
#elif defined(PACELINE_ISA_avx2) || defined(PACELINE_ISA_avxvnni)
  return reinterpret_cast<Words>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(factor)));
#elif defined(__SSE2__)
  return reinterpret_cast<Words>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(factor)));
#else
  return (a & 0xffffffff) * factor;
#endif
}

// noise_bits() of several tokens. Words are the lower halves of lanes.
PACELINE_INLINE Words first_words(std::uint64_t seed, std::uint64_t position, Words ids) {
  std::uint32_t key_0 = static_cast<std::uint32_t>(seed);
  std::uint32_t key_1 = static_cast<std::uint32_t>(seed >> 32);
  Words word_0 = Words{} + (position & 0xffffffff), word_1 = Words{} + (position >> 32);
  Words word_2 = ids, word_3 = {};
  PACELINE_UNROLL
  for (int round = 0; round < kNoiseRounds; ++round) {
    const Words first = multiply_words(word_0, kNoiseFactors[0]);
    const Words second = multiply_words(word_2, kNoiseFactors[1]);
    word_0 = (second >> 32) ^ word_1 ^ (Words{} + key_0);
    word_1 = second;
    word_2 = (first >> 32) ^ word_3 ^ (Words{} + key_1);
    word_3 = first;
    key_0 += kNoiseSteps[0];
    key_1 += kNoiseSteps[1];
  }
  return word_0;
}

void noise_words(std::uint64_t seed, std::uint64_t position, std::uint32_t first_id,
                 std::uint32_t* words) {
  Words ids;
  for (int lane = 0; lane < kWide; ++lane) ids[lane] = first_id + static_cast<std::uint32_t>(lane);
  for (int at = 0; at < kScoreBlock; at += kWide) {
    std::uint64_t lanes[kWide];
    const Words found = first_words(seed, position, ids);
    __builtin_memcpy(lanes, &found, sizeof lanes);
    for (int lane = 0; lane < kWide; ++lane) {
      words[at + lane] = static_cast<std::uint32_t>(lanes[lane]);
    }
    ids += kWide;
  }
}

}  // namespace

extern const ScoreKernels score_kernels;
const ScoreKernels score_kernels = {highest_of, weigh, noise_words};

}  // namespace paceline::PACELINE_ISA_NAME
