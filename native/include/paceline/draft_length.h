// How long a draft is worth its time, and below which margin one of its tokens is not: the
// arithmetic of paceline.speculative.adaptive, whose policy stays there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "paceline/acceptance.h"

namespace paceline {

// Drafting for less than this is not worth being wrong about it: an always wrong drafter keeps an
// expected acceptance of a few percent, which would pay where rows are nearly free.
constexpr double kLeastGain = 1.015;

// A draft, by what is expected of each of its tokens and of the passes that verify it.
struct DraftTerms {
  const std::vector<double>& survivals;  // entry n: the chance that the first n tokens are taken
  const std::vector<double>& kept;       // entry n: that the token after n is not held back
  const std::vector<double>& passes;     // entry n: seconds of a pass with n draft tokens
  double draft_step;                     // seconds of each token drafted
};

// A draft length, and what to expect of a round with it.
struct Forecast {
  std::int64_t length;
  double tokens;   // that its sequence emits
  double seconds;  // of the round
  double rate;     // tokens a second, by all sequences together
};

// The draft length up to `room` with most expected tokens a second, 0 included. A round takes
// `plain` seconds without a draft, and a draft `draft_fixed` however short; `others` are tokens
// that other sequences emit in the round. Throws std::invalid_argument where something is too short
// for the room.
//
// Equals: the largest (1 + S_1 + ... + S_k) / T_k over all k.
Forecast best_length(const DraftTerms& terms, double plain, double draft_fixed, std::int64_t room,
                     double others);

// Margins below which a token and those after it are not worth their time at this rate; none as
// long as margins tell nothing. Throws std::invalid_argument where something is too short.
//
// A token with chance p, reached with survival q, adds q p (1 + a) tokens, a being what is expected
// to follow it; that must exceed `rate` times what its row and all that follows cost.
std::vector<double> margin_bounds(const DraftTerms& terms, std::int64_t length, double rate,
                                  const MarginCurve& margins);

}  // namespace paceline
