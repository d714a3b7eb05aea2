// Candidates of the output head (include/paceline/head.h).
#include "paceline/head.h"

#include "simd.h"

namespace paceline::PACELINE_ISA_NAME {
namespace {

constexpr std::uint32_t kAllLanes = 0xffff;

// Once a list is full, almost every vector is turned down by one compare.
void collect(const float* logits, int count, std::int32_t first_id, CandidateList& list) {
  const F32x16 zero = splat(0.0f);
  F32x16 check = zero;  // 0 x infinity and 0 x NaN are NaN, and stay it
  for (int at = 0; at < count; at += kLanes) {
    const int lanes = smaller(kLanes, count - at);
    const F32x16 values = load_first(logits + at, lanes);
    check = check + values * zero;
    std::uint32_t mask =
        lanes_at_least(values, splat(list.bound)) & (kAllLanes >> (kLanes - lanes));
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      offer(list, {logits[at + lane], first_id + at + lane});
    }
  }
  if (lanes_at_least(check, zero) != kAllLanes) list.all_finite = false;
}

}  // namespace

extern const HeadKernels head_kernels;
const HeadKernels head_kernels = {collect};

}  // namespace paceline::PACELINE_ISA_NAME
