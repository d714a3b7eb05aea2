#include "paceline/acceptance.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "paceline/errors.h"

namespace paceline {
namespace {

template <class Numbers>
double sum(const Numbers& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// How much of each knot there is in the offset of each position.
constexpr auto kShares = [] {
  std::array<Knots, kMaxTokens> shares{};
  for (std::size_t position = 0; position < kMaxTokens; ++position) {
    std::size_t next = 0;
    while (next < kNumKnots && kKnots[next] <= position) ++next;
    if (next == kNumKnots) {
      shares[position].back() = 1.0;
      continue;
    }
    const double left = kKnots[next - 1], right = kKnots[next];
    shares[position][next] = (position - left) / (right - left);
    shares[position][next - 1] = 1.0 - shares[position][next];
  }
  return shares;
}();

const Levels kGeneralPrior = [] {
  Levels prior;
  for (std::size_t l = 0; l < kNumLevels; ++l) {
    const double x = kLevels[l] / kPriorWidth;
    prior[l] = std::exp(-0.5 * x * x) + kPriorFloor;
  }
  const double total = sum(prior);
  for (double& weight : prior) weight /= total;
  return prior;
}();

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double log_odds(double chance) { return std::log(chance / (1.0 - chance)); }
double clamp(double value, double limit) { return std::clamp(value, -limit, limit); }

// NaN is in no range.
template <class Numbers>
void check(const char* name, const Numbers& values, double low, double high) {
  for (const double value : values) {
    if (value >= low && value <= high) continue;
    throw std::invalid_argument(std::string(name) + "=" + std::to_string(value) +
                                " is out of range: expected " + std::to_string(low) + " to " +
                                std::to_string(high) + ".");
  }
}

void check_weights(const Levels& weights) {
  check("a weight", weights, 0.0, 1.0);
  if (std::abs(sum(weights) - 1.0) < 0.01) return;
  throw std::invalid_argument("the weights of the levels do not add up to 1.");
}

void check_all(const std::vector<Judgement>& judgements) {
  for (const Judgement& judgement : judgements) {
    check_range("num_judged", judgement.num_judged, 0, kMaxTokens);
    check_range("num_accepted", judgement.num_accepted, 0, judgement.num_judged);
  }
}

double centre_of(const Levels& weights) {
  double centre = 0.0;
  for (std::size_t l = 0; l < kNumLevels; ++l) centre += weights[l] * kLevels[l];
  return centre;
}

// Each weight goes to the two levels nearest to where it belongs, so that the centre moves by
// `offset` but for what would lie outside.
Levels shifted(const Levels& weights, double offset) {
  Levels moved{};
  for (std::size_t l = 0; l < kNumLevels; ++l) {
    const double level = std::clamp(kLevels[l] + offset, kLevels.front(), kLevels.back());
    std::size_t next = 1;
    while (next + 1 < kNumLevels && kLevels[next] < level) ++next;
    const double share = (level - kLevels[next - 1]) / (kLevels[next] - kLevels[next - 1]);
    moved[next] += weights[l] * share;
    moved[next - 1] += weights[l] * (1.0 - share);
  }
  return moved;
}

// Of the level itself, and so much of another one.
void mix(Levels& levels, const Levels& other, double share) {
  for (std::size_t l = 0; l < kNumLevels; ++l) levels[l] += share * (other[l] - levels[l]);
}

}  // namespace

Judgement Judgement::before(const std::vector<double>& bounds) const {
  const std::size_t count = std::min(margins.size(), bounds.size());
  std::int64_t judged = 0;
  while (judged < num_judged) {
    const auto position = static_cast<std::size_t>(judged);
    if (position < count && margins[position] < bounds[position]) break;
    ++judged;
  }
  return {std::min(num_accepted, judged), judged, {}};
}

// ---- Margins ----

MarginCurve::MarginCurve(const Bins& seen, const Bins& accepted, const Bins& margins)
    : seen_(seen), accepted_(accepted), margins_(margins) {
  for (const Bins* counts : {&seen, &accepted, &margins}) check("a count", *counts, 0.0, kMostSeen);
  for (std::size_t bin = 0; bin < kNumBins; ++bin) {
    if (accepted[bin] <= seen[bin]) continue;
    throw std::invalid_argument("a margin curve has accepted more than it has seen.");
  }
  fit();
}

void MarginCurve::observe(const double* margins, std::size_t count, std::int64_t num_accepted) {
  for (std::size_t i = 0; i < count; ++i) {
    this->count(margins[i], static_cast<std::int64_t>(i) < num_accepted);
  }
  num_new_ += static_cast<std::int64_t>(count);
  if (num_new_ < kRefitAfter) return;
  num_new_ = 0;
  fit();
  forget();
}

void MarginCurve::count(double margin, bool accepted) {
  margin = margin > 0.0 ? std::min(margin, kMaxMargin) : 0.0;  // NaN tells nothing either
  const auto bin = static_cast<std::size_t>(
      std::lower_bound(kMarginBins.begin(), kMarginBins.end(), margin) - kMarginBins.begin());
  seen_[bin] += 1.0;
  margins_[bin] += margin;
  if (accepted) accepted_[bin] += 1.0;
}

void MarginCurve::forget() {
  for (Bins* counts : {&seen_, &accepted_, &margins_}) {
    for (double& count : *counts) count *= kMarginMemory;
  }
}

double MarginCurve::margin_at(double chance) const {
  if (slope_ == 0.0) throw std::invalid_argument("margins tell nothing yet: the slope is 0.");
  chance = std::min(chance, kSurest);
  const double margin = (std::log(chance / (1.0 - chance) + 1e-9) - intercept_) / slope_;
  return margin > 0.0 ? margin : 0.0;
}

// Newton's method from no slope at all; a slope that is not positive is no knowledge.
void MarginCurve::fit() {
  const double seen = sum(seen_);
  double slope = 0.0, intercept = log_odds((sum(accepted_) + 0.5) / (seen + 1.0));
  for (int step = 0; step < kNewtonSteps && seen >= kLeastObservations; ++step) {
    improve(slope, intercept);
  }
  const bool known = slope >= kLeastSlope && std::isfinite(intercept);
  slope_ = known ? slope : 0.0;
  intercept_ = known ? intercept : 0.0;
}

void MarginCurve::improve(double& slope, double& intercept) const {
  double g_slope = -kRidge * slope, g_intercept = 0.0;
  double h_slope = kRidge, h_both = 0.0, h_intercept = 1e-6;
  for (std::size_t bin = 0; bin < kNumBins; ++bin) {
    const double seen = seen_[bin];
    if (seen < 1e-3) continue;
    const double margin = margins_[bin] / seen;
    const double chance = sigmoid(slope * margin + intercept);
    const double error = accepted_[bin] - seen * chance, weight = seen * chance * (1.0 - chance);
    g_slope += error * margin;
    g_intercept += error;
    h_slope += weight * margin * margin;
    h_both += weight * margin;
    h_intercept += weight;
  }
  const double determinant = h_slope * h_intercept - h_both * h_both;
  if (determinant <= 1e-12) return;
  slope += clamp((g_slope * h_intercept - g_intercept * h_both) / determinant, 1.0);
  intercept += clamp((g_intercept * h_slope - g_slope * h_both) / determinant, 2.0);
}

// ---- Profile ----

Profile::Profile() : learned_(kGeneralPrior) {
  for (std::size_t knot = 0; knot < kNumKnots; ++knot) {
    knots_[knot] = log_odds(kStartingAcceptance[knot]);
  }
  tabulate();
}

Profile::Profile(const Knots& knots, const Knots& counts, const Levels& levels,
                 const MarginCurve& curve)
    : knots_(knots), counts_(counts), learned_(levels), curve_(curve) {
  check("an offset", knots, -kLargestOffset, kLargestOffset);
  check("a count", counts, 0.0, kMostSeen);
  check_weights(levels);
  tabulate();
}

Survivals Profile::survivals(const Levels& weights) const {
  Survivals survivals{};
  for (std::size_t n = 0; n <= kMaxTokens; ++n) {
    for (std::size_t l = 0; l < kNumLevels; ++l) survivals[n] += survivals_[n][l] * weights[l];
  }
  return survivals;
}

const Levels& Profile::likelihood(const Judgement& judgement) const {
  const auto accepted = static_cast<std::size_t>(judgement.num_accepted);
  return judgement.num_accepted < judgement.num_judged ? rejections_[accepted]
                                                       : survivals_[accepted];
}

void Profile::learn(const Survivals& survivals, const std::vector<Judgement>& judgements,
                    const Levels& weights) {
  for (const Judgement& judgement : judgements) {
    for (std::int64_t i = 0; i < judgement.num_judged; ++i) {
      const auto position = static_cast<std::size_t>(i);
      const double expected = survivals[position + 1] / survivals[position];
      errors_[position] += (i < judgement.num_accepted ? 1.0 : 0.0) - expected;
      seen_[position] += 1.0;
    }
  }
  num_new_ += static_cast<double>(judgements.size());
  until_prior_ -= static_cast<std::int64_t>(judgements.size());
  if (until_prior_ <= 0) {
    until_prior_ = kPriorEvery;
    mix(learned_, weights, kPriorRate);
  }
  if (num_new_ < std::min(kTabulateAfter, 4.0 + counts_[0] / 8.0)) return;
  move_knots();
  recentre();
  tabulate();
}

// Easier text and larger offsets explain the same drafts. So that the two do not drift apart, the
// average text is of level 0; sequences that are being written follow within a few drafts.
void Profile::recentre() {
  const double centre = centre_of(learned_);
  if (std::abs(centre) <= kMostOffCentre) return;
  learned_ = shifted(learned_, -centre);
  for (double& knot : knots_) knot = clamp(knot + centre, kLargestOffset);
}

// Follow the errors since the last time.
void Profile::move_knots() {
  for (std::size_t knot = 0; knot < kNumKnots; ++knot) {
    double error = 0.0, seen = 0.0;
    for (std::size_t position = 0; position < kMaxTokens; ++position) {
      error += kShares[position][knot] * errors_[position];
      seen += kShares[position][knot] * seen_[position];
    }
    counts_[knot] += seen;
    const double rate = kOffsetRate + (1.0 - kOffsetRate) / (1.0 + counts_[knot] / kOffsetWarmup);
    knots_[knot] = clamp(knots_[knot] + clamp(rate * error, kLargestMove), kLargestOffset);
  }
}

void Profile::tabulate() {
  num_new_ = 0.0;
  errors_.fill(0.0);
  seen_.fill(0.0);
  prior_ = learned_;
  mix(prior_, kGeneralPrior, kGeneralShare);
  survivals_[0].fill(1.0);
  for (std::size_t position = 0; position < kMaxTokens; ++position) {
    double offset = 0.0;
    for (std::size_t k = 0; k < kNumKnots; ++k) offset += kShares[position][k] * knots_[k];
    for (std::size_t l = 0; l < kNumLevels; ++l) {
      const double chance = sigmoid(offset + kLevels[l]);
      survivals_[position + 1][l] = survivals_[position][l] * chance;
      rejections_[position][l] = survivals_[position][l] * (1.0 - chance);
    }
  }
}

// ---- Model ----

AcceptanceModel::AcceptanceModel(std::shared_ptr<Profile> profile) : profile_(std::move(profile)) {
  if (!profile_) throw std::invalid_argument("a model needs a profile.");
  weights_ = profile_->prior();
  kept_.fill(1.0);
}

void AcceptanceModel::observe(const Survivals& survivals, const std::vector<Judgement>& judgements,
                              const std::vector<double>& bounds) {
  check("a survival", survivals, 1e-300, 1.01);
  check_all(judgements);
  for (const Judgement& judgement : judgements) {
    const auto judged = static_cast<std::size_t>(judgement.num_judged);
    const std::size_t count = std::min(judged, judgement.margins.size());
    profile_->curve().observe(judgement.margins.data(), count, judgement.num_accepted);
  }
  if (bounds.empty()) return learn(survivals, judgements);
  std::vector<Judgement> kept;  // of what is held back nothing is expected
  for (const Judgement& judgement : judgements) kept.push_back(judgement.before(bounds));
  learn(survivals, kept);
}

// By Bayes' rule; each step is normalised, so that no number of drafts leaves nothing.
void AcceptanceModel::learn(const Survivals& survivals, const std::vector<Judgement>& judgements) {
  for (const Judgement& judgement : judgements) {
    const Levels& likelihood = profile_->likelihood(judgement);
    for (std::size_t l = 0; l < kNumLevels; ++l) weights_[l] *= likelihood[l];
    const double total = sum(weights_);
    for (double& weight : weights_) weight /= total;
  }
  const double stays = std::pow(1.0 - kHazard, static_cast<double>(judgements.size()));
  mix(weights_, profile_->prior(), 1.0 - stays);
  profile_->learn(survivals, judgements, weights_);
}

void AcceptanceModel::observe_kept(std::int64_t num_kept, bool held_back) {
  check_range("num_kept", num_kept, 0, kMaxTokens);
  const auto count = static_cast<std::size_t>(num_kept);
  for (std::size_t n = 0; n < count; ++n) kept_[n] += kKeepRate * (1.0 - kept_[n]);
  if (held_back && count < kMaxTokens) kept_[count] -= kKeepRate * kept_[count];
}

void AcceptanceModel::doubt(double share) {
  check("share", std::array{share}, 0.0, 1.0);
  mix(weights_, profile_->prior(), share);
}

void AcceptanceModel::set_weights(const Levels& weights) {
  check_weights(weights);
  weights_ = weights;
}

}  // namespace paceline
