#include "paceline/noise.h"

#include <bit>
#include <cmath>

namespace paceline {
namespace {

constexpr int kUniformBits = 53;

std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }
std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }

}  // namespace

std::uint64_t noise_bits(std::uint64_t seed, std::uint64_t position, std::uint32_t token_id) {
  std::uint32_t key_0 = low(seed), key_1 = high(seed);
  std::uint32_t word_0 = low(position), word_1 = high(position), word_2 = token_id, word_3 = 0;
  for (int round = 0; round < kNoiseRounds; ++round) {
    const std::uint64_t first = std::uint64_t{kNoiseFactors[0]} * word_0;
    const std::uint64_t second = std::uint64_t{kNoiseFactors[1]} * word_2;
    word_0 = high(second) ^ word_1 ^ key_0;
    word_1 = low(second);
    word_2 = high(first) ^ word_3 ^ key_1;
    word_3 = low(first);
    key_0 += kNoiseSteps[0];
    key_1 += kNoiseSteps[1];
  }
  const std::uint64_t words = std::uint64_t{word_0} << 32 | word_1;
  return words >> (64 - kUniformBits) | 1;
}

double gumbel(std::uint64_t bits) {
  return -std::log(-std::log(static_cast<double>(bits) * 0x1p-53));
}

// -log(u) >= 1 - u, so the noise is at most -log(1 - u), which lies below this many halvings.
double gumbel_bound(std::uint64_t bits) {
  constexpr double kHalving = 0.693147180559946;  // log 2, rounded up
  const std::uint64_t rest = (std::uint64_t{1} << kUniformBits) - bits;
  return kHalving * (kUniformBits + 1 - std::bit_width(rest));
}

}  // namespace paceline
