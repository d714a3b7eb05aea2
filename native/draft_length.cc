#include "paceline/draft_length.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace paceline {
namespace {

// As an index, once all that is read for a draft of this length is there.
std::size_t checked(const DraftTerms& terms, std::int64_t length) {
  const std::size_t most =
      std::min({terms.survivals.size(), terms.passes.size(), terms.kept.size() + 1});
  if (length >= 0 && static_cast<std::size_t>(length) < most) {
    return static_cast<std::size_t>(length);
  }
  throw std::invalid_argument("a draft of " + std::to_string(length) +
                              " tokens is not covered by " +
                              std::to_string(terms.survivals.size()) + " survivals, " +
                              std::to_string(terms.kept.size()) + " kept shares and " +
                              std::to_string(terms.passes.size()) + " passes.");
}

}  // namespace

Forecast best_length(const DraftTerms& terms, double plain, double draft_fixed, std::int64_t room,
                     double others) {
  const std::size_t longest = checked(terms, room);
  if (!(plain > 0.0)) throw std::invalid_argument("a round without a draft must take some time.");
  std::size_t best = 0;
  double best_tokens = kLeastGain * (1.0 + others), best_seconds = plain;
  double tokens = 1.0 + others, seconds = plain + draft_fixed, reached = 1.0;
  for (std::size_t k = 1; k <= longest; ++k) {
    const double share = terms.kept[k - 1], row = terms.passes[k] - terms.passes[k - 1];
    seconds += reached * (terms.draft_step + share * row);
    reached *= share;
    tokens += reached * terms.survivals[k];
    if (!(tokens * best_seconds > best_tokens * seconds)) continue;
    best = k;
    best_tokens = tokens;
    best_seconds = seconds;
  }
  if (best == 0) best_tokens = 1.0 + others;
  return {static_cast<std::int64_t>(best), best_tokens - others, best_seconds,
          best_tokens / best_seconds};
}

std::vector<double> margin_bounds(const DraftTerms& terms, std::int64_t length, double rate,
                                  const MarginCurve& margins) {
  const std::size_t longest = checked(terms, length);
  if (margins.slope() == 0.0) return {};
  std::vector<double> bounds(longest);
  double follow = 0.0, cost = 0.0;
  for (std::size_t k = longest; k > 0; --k) {
    const double row = terms.passes[k] - terms.passes[k - 1] + cost;
    const double survival = terms.survivals[k - 1], share = terms.kept[k - 1];
    bounds[k - 1] = margins.margin_at(rate * row / (survival * (1.0 + follow)));
    follow = share * terms.survivals[k] / survival * (1.0 + follow);
    cost = terms.draft_step + share * row;
  }
  return bounds;
}

}  // namespace paceline
