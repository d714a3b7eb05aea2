// How likely the target is to take each token of a draft: see paceline.speculative.acceptance,
// which keeps what is learned here. Knows no tokens, seconds or draft lengths.
//
// All this runs for each decision, between two passes of the target that have emptied the
// processor's caches: a few hundred numbers in a row.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace paceline {

// Of a draft: MAX_DRAFT_TOKENS of paceline.runtime.protocols.
constexpr std::size_t kMaxTokens = 15;

// Positions, from 0, whose offsets are learned. Between them offsets are interpolated and after the
// last they are constant: deep tokens are seen too rarely to be told apart.
constexpr std::array<std::size_t, 5> kKnots{0, 1, 2, 4, 7};
constexpr std::size_t kNumKnots = kKnots.size();
// At the knots: published figures for chat, between prose and code.
constexpr std::array<double, kNumKnots> kStartingAcceptance{0.72, 0.68, 0.65, 0.65, 0.65};
// Offsets follow the average error of about the last hundred observations, faster at first.
constexpr double kOffsetRate = 0.05;
constexpr double kOffsetWarmup = 8.0;
constexpr double kLargestOffset = 5.0;
constexpr double kLargestMove = 1.0;

// How much easier than usual for its kind a text may be, in log-odds: from a drafter that is always
// wrong to a text that is copied.
constexpr std::array kLevels{-6.0, -4.0, -3.0, -2.2, -1.5, -1.0, -0.5,
                             0.0,  0.5,  1.0,  1.5,  2.2,  3.0,  4.0};
constexpr std::size_t kNumLevels = kLevels.size();
// Before anything was seen: a bell of this width upon a floor. Acceptances from 0.4 to 0.9 are
// usual, none is excluded.
constexpr double kPriorWidth = 1.3;
constexpr double kPriorFloor = 0.05;
// What all sequences have taught counts for the rest: a kind of text may hold surprises.
constexpr double kGeneralShare = 0.2;
// The levels of a kind of text are an average over its last 200 rounds: several answers.
constexpr double kPriorRate = 0.02;
constexpr std::int64_t kPriorEvery = 4;
// Once their centre is farther from 0 than this, they are moved back, and the offsets with them.
constexpr double kMostOffCentre = 0.5;
// Chance that the text changes between two drafts. Higher values find a change sooner and are less
// sure of a text that stays; an expected acceptance can never fall below this, and where rows are
// nearly free, so little acceptance pays.
constexpr double kHazard = 0.01;
// Offsets move slowly: the tables that follow from them are renewed after so many drafts.
constexpr double kTabulateAfter = 32.0;
// Shares of kept tokens are an average of the last ten drafts: they follow the text too.
constexpr double kKeepRate = 0.1;

constexpr double kMaxMargin = 30.0;
constexpr double kSurest = 0.999;
constexpr std::array kMarginBins{0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 13.0};
constexpr std::size_t kNumBins = kMarginBins.size() + 1;
constexpr std::int64_t kRefitAfter = 64;
// At each fit: about the last 1,300 observations count.
constexpr double kMarginMemory = 0.95;
// A curve of fewer would hold back good tokens as often as bad ones.
constexpr double kLeastObservations = 100.0;
constexpr double kRidge = 0.5;
constexpr double kLeastSlope = 0.02;
constexpr int kNewtonSteps = 4;

// More than anybody will ever see: what is kept, and claims more, is refused.
constexpr double kMostSeen = 1e15;

using Knots = std::array<double, kNumKnots>;
using Levels = std::array<double, kNumLevels>;
using Bins = std::array<double, kNumBins>;
// Entry n is the chance that the first n tokens of a draft are all taken.
using Survivals = std::array<double, kMaxTokens + 1>;

// What came of a draft: how many of its tokens were accepted, and how many were observed.
struct Judgement {
  std::int64_t num_accepted;
  std::int64_t num_judged;
  std::vector<double> margins;

  // As if the draft had ended where a margin is below its bound; without margins.
  Judgement before(const std::vector<double>& bounds) const;
};

// The chance of a token by the drafter's margin: sigmoid(slope * margin + intercept).
//
// Its sufficient statistics are counts by bins of the margin, which forget at each fit.
class MarginCurve {
 public:
  MarginCurve() = default;
  // From counts that were kept. Throws std::invalid_argument where they cannot be counts.
  MarginCurve(const Bins& seen, const Bins& accepted, const Bins& margins);

  // Tokens that were judged, of which the first were accepted.
  void observe(const double* margins, std::size_t count, std::int64_t num_accepted);
  // The margin from which a token has this chance. Throws std::invalid_argument without a slope.
  double margin_at(double chance) const;

  // 0 as long as margins tell nothing.
  double slope() const { return slope_; }
  double intercept() const { return intercept_; }
  const Bins& seen() const { return seen_; }
  const Bins& accepted() const { return accepted_; }
  const Bins& margins() const { return margins_; }

 private:
  void count(double margin, bool accepted);
  void fit();
  void improve(double& slope, double& intercept) const;
  void forget();

  Bins seen_{}, accepted_{}, margins_{};
  double slope_ = 0.0, intercept_ = 0.0;
  std::int64_t num_new_ = 0;
};

// What is known of text of one kind before a sequence writes any, and what margins tell.
class Profile {
 public:
  Profile();
  // From what was kept. Throws std::invalid_argument where it cannot have been learned.
  Profile(const Knots& knots, const Knots& counts, const Levels& levels, const MarginCurve& curve);

  // Takes what came of drafts, of which `survivals` was expected, and the weights of the levels in
  // their text after them.
  void learn(const Survivals& survivals, const std::vector<Judgement>& judgements,
             const Levels& weights);

  MarginCurve& curve() { return curve_; }
  // Offsets, in log-odds, and how many tokens taught them.
  const Knots& knots() const { return knots_; }
  const Knots& counts() const { return counts_; }
  // Weights of the levels: what sequences have taught, and what a new one starts from.
  const Levels& levels() const { return learned_; }
  const Levels& prior() const { return prior_; }
  // What is to be expected of a draft in a text of these weights.
  Survivals survivals(const Levels& weights) const;
  // How likely this is in a text of each level.
  const Levels& likelihood(const Judgement& judgement) const;

 private:
  void move_knots();
  void recentre();
  void tabulate();

  std::array<Levels, kMaxTokens + 1> survivals_;
  std::array<Levels, kMaxTokens> rejections_;
  Knots knots_, counts_{};
  Levels prior_, learned_;
  std::array<double, kMaxTokens> errors_{}, seen_{};
  std::int64_t until_prior_ = kPriorEvery;
  double num_new_ = 0.0;
  MarginCurve curve_;
};

// What to expect of the next draft of one sequence, in text of one kind.
class AcceptanceModel {
 public:
  // Throws std::invalid_argument without a profile.
  explicit AcceptanceModel(std::shared_ptr<Profile> profile);

  Survivals survivals() const { return profile_->survivals(weights_); }

  // One or more drafts of a text that did not change between them. `survivals` is what this model
  // expected of each; `bounds` are margins below which a token would have been held back, even if
  // it was not. Throws std::invalid_argument before anything is learned.
  void observe(const Survivals& survivals, const std::vector<Judgement>& judgements,
               const std::vector<double>& bounds);
  // How many tokens of a draft were kept, and whether the next was held back.
  void observe_kept(std::int64_t num_kept, bool held_back);
  // The text may have changed: believe so much less of what was learned of it.
  void doubt(double share);

  const std::shared_ptr<Profile>& profile() const { return profile_; }
  const Levels& weights() const { return weights_; }
  // Throws std::invalid_argument where they cannot be weights.
  void set_weights(const Levels& weights);
  // Entry n is the share of drafts that reached token n and then kept it, its margin not being
  // below its bound. Survivals are those of kept tokens.
  const std::array<double, kMaxTokens>& kept() const { return kept_; }

 private:
  void learn(const Survivals& survivals, const std::vector<Judgement>& judgements);

  std::shared_ptr<Profile> profile_;
  Levels weights_;
  std::array<double, kMaxTokens> kept_;
};

}  // namespace paceline
