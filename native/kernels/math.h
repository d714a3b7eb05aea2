// exp and tanh of 16 lanes, alike on every instruction set.
//
// Relative errors are at most 1.2e-7 (exp) and 2e-7 (tanh); tests/ops_test.cc holds them to that.
#pragma once

#include "simd.h"

namespace paceline::PACELINE_ISA_NAME {

// exp(r) for |r| <= ln(2) / 2 times 2^n, x = n ln(2) + r. `bounded` is x, or any number where x is
// not one, so that n is an integer; NaN in x goes through r.
PACELINE_INLINE F32x16 reduce(F32x16 x, F32x16 bounded, F32x16& n) {
  n = to_float(to_nearest(bounded * splat(0x1.715476p+0f)));
  const F32x16 r = fma(n, splat(-0x1.62e430p-1f), x);
  return fma(n, splat(0x1.05c610p-29f), r);
}

// exp(r) = 1 + r + r^2 p(r); coefficients of Cephes' expf.
PACELINE_INLINE F32x16 exp_reduced(F32x16 r) {
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  return fma(p, r * r, r) + splat(1.0f);
}

// Subnormal results are rounded once; 0 and infinity beyond the range, NaN for NaN.
PACELINE_INLINE F32x16 exp(F32x16 x) {
  const F32x16 lowest = splat(-110.0f);
  const F32x16 in_range = min(splat(90.0f), max(lowest, x));  // NaN stays
  F32x16 n;
  const F32x16 r = reduce(in_range, max(in_range, lowest), n);
  const I32x16 half = to_nearest(n * splat(0.5f));  // 2^n itself may be out of range
  const I32x16 rest = to_nearest(n - to_float(half));
  return exp_reduced(r) * power_of_two(half) * power_of_two(rest);
}

constexpr float kLowestWeight = -64.0f;

// exp(x) for x <= 0, but 0 below exp(-64); exactly 1 at 0. The weights of attention.
PACELINE_INLINE F32x16 weight_exp(F32x16 x) {
  const F32x16 lowest = splat(kLowestWeight);
  F32x16 n;
  const F32x16 r = reduce(x, max(x, lowest), n);
  return select_less(x, lowest, splat(0.0f), exp_reduced(r) * power_of_two(to_nearest(n)));
}

// x + x^3 p(x^2) near 0 (Cephes' tanhf), 1 - 2 / (exp(2 |x|) + 1) with the sign of x elsewhere.
PACELINE_INLINE F32x16 tanh(F32x16 x) {
  const F32x16 square = x * x, magnitude = abs(x), one = splat(1.0f);
  F32x16 p = splat(-5.70498872745e-3f);
  p = fma(p, square, splat(2.06390887954e-2f));
  p = fma(p, square, splat(-5.37397155531e-2f));
  p = fma(p, square, splat(1.33314422036e-1f));
  p = fma(p, square, splat(-3.33332819422e-1f));
  const F32x16 near = fma(p * square, x, x);
  const F32x16 far = one - splat(2.0f) / (exp(magnitude + magnitude) + one);
  const F32x16 signed_far = select_less(x, splat(0.0f), splat(0.0f) - far, far);
  return select_less(magnitude, splat(0.625f), near, signed_far);
}

}  // namespace paceline::PACELINE_ISA_NAME
