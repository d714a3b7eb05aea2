// What acceptance is learned from, and how long drafts follow from it, against their definitions.
// All of it is compared with its twin in tests/test_acceptance.py.
#include "paceline/acceptance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "paceline/draft_length.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

bool close(double a, double b) { return std::abs(a - b) <= 1e-9 * std::abs(b); }

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

AcceptanceModel new_model() { return AcceptanceModel(std::make_shared<Profile>()); }

void live(AcceptanceModel& model, std::int64_t accepted, std::int64_t judged, int rounds) {
  for (int i = 0; i < rounds; ++i) model.observe(model.survivals(), {{accepted, judged, {}}}, {});
}

// Of tokens whose margins are drawn and whose chance is that of a line.
MarginCurve taught_curve(double slope, double intercept, int count) {
  std::mt19937 bits(1);
  std::exponential_distribution<double> margins(0.5);
  MarginCurve curve;
  for (int i = 0; i < count; ++i) {
    const double margin = margins(bits);
    const double chance = sigmoid(slope * margin + intercept);
    curve.observe(&margin, 1, std::bernoulli_distribution(chance)(bits) ? 1 : 0);
  }
  return curve;
}

}  // namespace

TEST(survivals_are_expectations_over_levels_and_follow_the_text) {
  AcceptanceModel model = new_model();
  Levels weights{};
  weights[7] = 1.0;  // a text as easy as usual
  model.set_weights(weights);
  const Survivals usual = model.survivals();
  CHECK(usual[0] == 1.0 && close(usual[1], 0.72) && close(usual[2], 0.72 * 0.68));
  const double between = (std::log(0.65 / 0.35) + std::log(0.65 / 0.35)) / 2;  // positions 2 and 4
  CHECK(close(usual[4] / usual[3], sigmoid(between)));
  CHECK(close(usual[15] / usual[14], 0.65));
  live(model, 3, 3, 60);
  CHECK(model.survivals()[3] > 0.85);
  live(model, 0, 1, 6);
  CHECK(model.survivals()[1] < 0.3);
}

TEST(no_number_of_drafts_leaves_nothing) {
  for (const std::int64_t accepted : {0, 7, 15}) {
    AcceptanceModel model = new_model();
    const std::int64_t judged = std::min<std::int64_t>(accepted + 1, 15);
    const std::vector<Judgement> judgements(5000, {accepted, judged, {}});
    for (int i = 0; i < 3; ++i) model.observe(model.survivals(), judgements, {});
    for (const double survival : model.survivals()) CHECK(survival > 0.0 && survival < 1.0001);
  }
}

TEST(a_draft_ends_before_the_first_token_that_would_be_held_back) {
  const Judgement judgement{2, 3, {5.0, 1.0, 3.0, 0.0}};
  const auto is = [](const Judgement& found, std::int64_t accepted, std::int64_t judged) {
    return found.num_accepted == accepted && found.num_judged == judged;
  };
  CHECK(is(judgement.before({}), 2, 3));
  CHECK(is(judgement.before({0.0, 0.0, 0.0, 9.0}), 2, 3));  // that one was not judged
  CHECK(is(judgement.before({1.0, 2.0}), 1, 1));
  CHECK(is(judgement.before({1.0, 1.0, 4.0, 4.0, 4.0}), 2, 2));
  CHECK(is(judgement.before({9.0}), 0, 0));
}

TEST(a_curve_is_found_and_a_falling_one_is_no_knowledge) {
  const MarginCurve curve = taught_curve(1.0, 0.5, 64 * 60);
  CHECK(std::abs(curve.slope() - 1.0) < 0.25 && std::abs(curve.intercept() - 0.5) < 0.25);
  const double margin = curve.margin_at(0.9);
  CHECK(std::abs(sigmoid(curve.slope() * margin + curve.intercept()) - 0.9) < 1e-6);
  for (const double chance : {-1.0, 0.0, 1.0, 2.0, kNaN}) {
    CHECK(curve.margin_at(chance) >= 0.0 && curve.margin_at(chance) < 40.0);
  }
  CHECK(taught_curve(-1.0, 0.5, 64 * 30).slope() == 0.0);
  CHECK(taught_curve(3.0, -3.0, 64).slope() == 0.0);  // too few
  const MarginCurve again(curve.seen(), curve.accepted(), curve.margins());
  CHECK(std::abs(again.slope() - curve.slope()) < 0.2);
}

TEST(no_margin_breaks_a_curve) {
  MarginCurve curve;
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> margins{kNaN, infinity, -infinity, -1.0, 1e308, 0.0};
  for (int i = 0; i < 200; ++i) curve.observe(margins.data(), margins.size(), i % 7);
  CHECK(std::isfinite(curve.slope()) && std::isfinite(curve.intercept()));
  for (const double sum : curve.margins()) CHECK(std::isfinite(sum));
}

TEST(the_best_length_has_the_highest_rate) {
  std::mt19937 bits(3);
  std::uniform_real_distribution<double> unit(0.01, 1.0);
  for (int trial = 0; trial < 500; ++trial) {
    std::vector<double> survivals{1.0}, passes{1.0}, kept;
    for (int k = 0; k < 8; ++k) {
      survivals.push_back(survivals.back() * unit(bits));
      passes.push_back(passes.back() + 0.5 * unit(bits));
      kept.push_back(unit(bits));
    }
    const double step = 0.1 * unit(bits), fixed = 0.1 * unit(bits), others = 3.0 * unit(bits);
    const Forecast found = best_length({survivals, kept, passes, step}, 1.1, fixed, 8, others);
    double best = kLeastGain * (1.0 + others) / 1.1, reached = 1.0;
    double tokens = 1.0 + others, seconds = 1.1 + fixed;
    std::int64_t length = 0;
    for (std::size_t k = 1; k <= 8; ++k) {
      seconds += reached * (step + kept[k - 1] * (passes[k] - passes[k - 1]));
      reached *= kept[k - 1];
      tokens += reached * survivals[k];
      if (tokens / seconds <= best) continue;
      best = tokens / seconds;
      length = static_cast<std::int64_t>(k);
    }
    CHECK(found.length == length);
    CHECK(close(found.rate, length ? best : (1.0 + others) / 1.1));
    CHECK(close(found.rate * found.seconds, found.tokens + others));
  }
}

TEST(a_bound_is_where_the_chance_pays_for_the_row) {
  const MarginCurve curve = taught_curve(1.5, -1.0, 64 * 60);
  const std::vector<double> survivals{1.0, 0.5}, kept{1.0}, passes{1.0, 1.3};
  const std::vector<double> bounds = margin_bounds({survivals, kept, passes, 0.1}, 1, 2.0, curve);
  CHECK(bounds.size() == 1);
  CHECK(std::abs(sigmoid(curve.slope() * bounds[0] + curve.intercept()) - 2.0 * 0.3) < 1e-6);
  CHECK(margin_bounds({survivals, kept, passes, 0.1}, 1, 2.0, MarginCurve()).empty());
}

TEST(what_is_wrong_is_refused_and_nothing_changes) {
  AcceptanceModel model = new_model();
  const Survivals before = model.survivals();
  for (const double wrong : {0.0, -1.0, 2.0, kNaN}) {
    Survivals survivals = before;
    survivals[3] = wrong;
    CHECK(refuses([&] { model.observe(survivals, {{1, 2, {1.0}}}, {}); }));
    CHECK(wrong == 0.0 || refuses([&] { model.doubt(wrong); }));
  }
  CHECK(refuses([&] { model.observe(before, {{1, 2, {1.0}}, {-1, 2, {1.0}}}, {}); }));
  CHECK(refuses([&] { model.observe(before, {{1, 2, {1.0}}, {3, 2, {1.0}}}, {}); }));
  CHECK(refuses([&] { model.observe(before, {{1, 2, {1.0}}, {1, 16, {1.0}}}, {}); }));
  CHECK(refuses([&] { model.observe_kept(-1, false); }));
  CHECK(refuses([&] { model.observe_kept(16, false); }));
  CHECK(refuses([&] { model.set_weights({}); }));
  CHECK(refuses([&] { AcceptanceModel(nullptr); }));
  CHECK(model.survivals() == before && model.profile()->curve().seen() == Bins{});
  const Profile& profile = *model.profile();
  const MarginCurve curve;
  Knots knots = profile.knots();
  knots[0] = kNaN;
  CHECK(refuses([&] { Profile(knots, profile.counts(), profile.levels(), curve); }));
  CHECK(refuses([&] { Profile(profile.knots(), knots, profile.levels(), curve); }));
  CHECK(refuses([&] { Profile(profile.knots(), profile.counts(), {}, curve); }));
  CHECK(refuses([&] { MarginCurve({}, Bins{1.0}, {}); }));
  CHECK(refuses([&] { MarginCurve(Bins{kNaN}, {}, {}); }));
  CHECK(refuses([&] { curve.margin_at(0.5); }));
}

TEST(a_draft_longer_than_what_is_known_is_refused) {
  const std::vector<double> three{1.0, 0.9, 0.8}, two{1.0, 1.0};
  const MarginCurve curve = taught_curve(1.0, 0.0, 64 * 10);
  CHECK(best_length({three, two, three, 0.1}, 1.0, 0.0, 2, 0.0).length >= 0);
  for (const std::int64_t length : {std::int64_t{-1}, std::int64_t{3}, std::int64_t{1} << 62}) {
    CHECK(refuses([&] { best_length({three, two, three, 0.1}, 1.0, 0.0, length, 0.0); }));
    CHECK(refuses([&] { margin_bounds({three, two, three, 0.1}, length, 1.0, curve); }));
  }
  const std::vector<double> none, one{1.0};
  CHECK(refuses([&] { best_length({none, two, three, 0.1}, 1.0, 0.0, 0, 0.0); }));
  CHECK(refuses([&] { best_length({three, one, three, 0.1}, 1.0, 0.0, 2, 0.0); }));
  CHECK(refuses([&] { best_length({three, two, two, 0.1}, 1.0, 0.0, 2, 0.0); }));
  CHECK(refuses([&] { best_length({three, two, three, 0.1}, 0.0, 0.0, 2, 0.0); }));
}
