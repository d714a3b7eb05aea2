// Vectors of 16 floats, 16 integers and 64 bytes, in the instruction set of this compilation.
//
// Every kernel is written once against these. An operation gives the same bits in every
// instruction set: each lane does the same roundings in the same order, and a sum over lanes is one
// fixed tree. Kernel files use no standard templates: the linker might keep the copy that was
// compiled for an instruction set the processor lacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(PACELINE_ISA_avx512)
#include "simd_avx512.h"
#elif defined(PACELINE_ISA_avx2) || defined(PACELINE_ISA_avxvnni)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

// Before a loop with a small constant number of turns whose variables must stay in registers. Under
// the sanitizers unrolling would only make compiling take an hour.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PACELINE_UNROLL
#else
#define PACELINE_UNROLL _Pragma("GCC unroll 32")
#endif

namespace paceline::PACELINE_ISA_NAME {

inline constexpr int kLanes = 16;

PACELINE_INLINE int smaller(int a, int b) { return a < b ? a : b; }
PACELINE_INLINE int larger(int a, int b) { return a > b ? a : b; }

// The first `count` lanes from memory, the others zero.
PACELINE_INLINE F32x16 load_first(const float* from, int count) {
  if (count >= kLanes) return load(from);
  float lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(float));
  return load(lanes);
}

// The first `count` lanes to memory; none where `count` is negative.
PACELINE_INLINE void store_first(F32x16 x, float* to, int count) {
  if (count >= kLanes) return store(x, to);
  if (count <= 0) return;
  float lanes[kLanes];
  store(x, lanes);
  std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(float));
}

}  // namespace paceline::PACELINE_ISA_NAME
