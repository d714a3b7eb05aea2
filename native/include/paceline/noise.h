// Gumbel noise that is a pure function of (seed, position, token id): src/paceline/noise.py.
//
// The uniform has the same bits as there; the logarithms are the C library's.
// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

namespace paceline {

// Philox4x32-10: what its two words are multiplied by in each round, and what is added to its keys.
inline constexpr int kNoiseRounds = 10;
inline constexpr std::uint32_t kNoiseFactors[] = {0xD2511F53, 0xCD9E8D57};
inline constexpr std::uint32_t kNoiseSteps[] = {0x9E3779B9, 0xBB67AE85};

// n of the uniform n / 2^53: odd, so that it is neither 0 nor 1.
std::uint64_t noise_bits(std::uint64_t seed, std::uint64_t position, std::uint32_t token_id);

// The noise of a uniform, -3.6 to 36.7.
double gumbel(std::uint64_t bits);

// No less than gumbel(bits), and at most 0.75 more where that is above 3. Takes no logarithm.
double gumbel_bound(std::uint64_t bits);

// What gumbel is at least and at most.
inline constexpr double kMinGumbel = -3.6038;
inline constexpr double kMaxGumbel = 36.7369;

}  // namespace paceline
