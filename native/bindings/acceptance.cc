// What to expect of a draft, and how long it is worth its time.
#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "paceline/acceptance.h"
#include "paceline/draft_length.h"

namespace paceline {
namespace {

using Numbers = std::vector<double>;

template <std::size_t count>
std::array<double, count> exactly(const char* name, const Numbers& values) {
  if (values.size() != count) {
    refuse(std::string(name) + " has " + std::to_string(values.size()) + " numbers, expected " +
           std::to_string(count) + ".");
  }
  std::array<double, count> found;
  std::copy(values.begin(), values.end(), found.begin());
  return found;
}

void make_curve(MarginCurve* curve, const Numbers& seen, const Numbers& accepted,
                const Numbers& margins) {
  new (curve)
      MarginCurve(exactly<kNumBins>("seen", seen), exactly<kNumBins>("accepted", accepted),
                  exactly<kNumBins>("margins", margins));
}

void make_profile(Profile* profile, const Numbers& knots, const Numbers& counts,
                  const Numbers& levels, const MarginCurve& curve) {
  new (profile) Profile(exactly<kNumKnots>("knots", knots), exactly<kNumKnots>("counts", counts),
                        exactly<kNumLevels>("levels", levels), curve);
}

void observe_margins(MarginCurve& curve, const Numbers& margins, std::int64_t num_accepted) {
  curve.observe(margins.data(), margins.size(), num_accepted);
}

using JudgementFields = std::tuple<std::int64_t, std::int64_t, Numbers>;

void observe_drafts(AcceptanceModel& model, const Numbers& survivals,
                    std::vector<JudgementFields> drafts, const Numbers& bounds) {
  std::vector<Judgement> judgements;
  judgements.reserve(drafts.size());
  for (auto& [num_accepted, num_judged, margins] : drafts) {
    judgements.push_back({num_accepted, num_judged, std::move(margins)});
  }
  model.observe(exactly<kMaxTokens + 1>("survivals", survivals), judgements, bounds);
}

std::tuple<std::int64_t, double, double, double> find_best_length(
    const Numbers& survivals, const Numbers& kept, const Numbers& passes, double draft_step,
    double plain, double draft_fixed, std::int64_t room, double others) {
  const Forecast best =
      best_length({survivals, kept, passes, draft_step}, plain, draft_fixed, room, others);
  return {best.length, best.tokens, best.seconds, best.rate};
}

nb::tuple find_margin_bounds(const Numbers& survivals, const Numbers& kept, const Numbers& passes,
                             double draft_step, std::int64_t length, double rate,
                             const MarginCurve& margins) {
  return nb::tuple(
      nb::cast(margin_bounds({survivals, kept, passes, draft_step}, length, rate, margins)));
}

// Copies know no more of each other: `copy.deepcopy`, for simulations.
template <class Class>
Class copied(const Class& original, nb::handle) {
  return original;
}

void bind_draft_length(nb::module_& module) {
  module.attr("LEAST_GAIN") = kLeastGain;
  module.def("best_length", &find_best_length, "survivals"_a, "kept"_a, "passes"_a, "draft_step"_a,
             "plain"_a, "draft_fixed"_a, "room"_a, "others"_a,
             "The draft length with most expected tokens a second, its tokens, seconds and rate:\n"
             "see `paceline.speculative.adaptive.best_length`.");
  module.def("margin_bounds", &find_margin_bounds, "survivals"_a, "kept"_a, "passes"_a,
             "draft_step"_a, "length"_a, "rate"_a, "margins"_a,
             nb::sig("def margin_bounds(survivals: Sequence[float], kept: Sequence[float], passes: "
                     "Sequence[float], draft_step: float, length: int, rate: float, margins: "
                     "MarginCurve) -> tuple[float, ...]"),
             "See `paceline.speculative.adaptive.margin_bounds`.");
}

}  // namespace

void bind_acceptance(nb::module_& module) {
  module.attr("LARGEST_OFFSET") = kLargestOffset;
  nb::class_<MarginCurve>(module, "MarginCurve",
                          "The chance of a token by the drafter's margin: "
                          "sigmoid(slope * margin + intercept).")
      .def(nb::init<>())
      .def("__init__", &make_curve, "seen"_a, "accepted"_a, "margins"_a, "From kept counts.")
      .def("__deepcopy__", &copied<MarginCurve>, "memo"_a)
      .def("observe", &observe_margins, "margins"_a, "num_accepted"_a,
           "Learn from tokens that were judged, of which the first were accepted.")
      .def("margin_at", &MarginCurve::margin_at, "chance"_a,
           "The margin from which a token has this chance; there must be a slope.")
      .def_prop_ro("slope", &MarginCurve::slope, "0 as long as margins tell nothing.")
      .def_prop_ro("intercept", &MarginCurve::intercept)
      .def_prop_ro("seen", &MarginCurve::seen, "Tokens, by bins of their margin.")
      .def_prop_ro("accepted", &MarginCurve::accepted, "Of these.")
      .def_prop_ro("margins", &MarginCurve::margins, "Their sums.");
  nb::class_<Profile>(module, "Profile",
                      "What is known of text of one kind before a sequence writes any, and what "
                      "margins tell.")
      .def(nb::init<>())
      .def("__init__", &make_profile, "knots"_a, "counts"_a, "levels"_a, "curve"_a,
           "From what was kept.")
      .def("__deepcopy__", &copied<Profile>, "memo"_a)
      .def_prop_ro("knots", &Profile::knots, "Offsets of some positions, in log-odds.")
      .def_prop_ro("counts", &Profile::counts, "How many tokens taught each.")
      .def_prop_ro("levels", &Profile::levels, "Weights of the levels that sequences had.")
      .def_prop_ro("prior", &Profile::prior, "Weights that a new sequence starts from.")
      .def_prop_ro("curve", &Profile::curve, nb::rv_policy::reference_internal);
  nb::class_<AcceptanceModel>(module, "AcceptanceModel",
                              "What to expect of the next draft of one sequence, in text of one "
                              "kind.")
      .def(nb::init<std::shared_ptr<Profile>>(), "profile"_a)
      .def_prop_ro("profile", &AcceptanceModel::profile)
      .def_prop_rw("weights", &AcceptanceModel::weights,
                   [](AcceptanceModel& model, const Numbers& weights) {
                     model.set_weights(exactly<kNumLevels>("weights", weights));
                   },
                   "Of the levels, 1 in all: how likely the text is as easy as each of them.")
      .def_prop_ro("kept", &AcceptanceModel::kept,
                   "Entry n is the share of drafts that reached token n and then kept it, its\n"
                   "margin not being below its bound. Survivals are those of kept tokens.")
      .def("survivals", &AcceptanceModel::survivals,
           "Entry n is the chance that the first n tokens of a draft are all taken.")
      .def("observe", &observe_drafts, "survivals"_a, "judgements"_a, "bounds"_a = Numbers(),
           "Learn from one or more drafts of a text that did not change between them.\n\n"
           "Args:\n"
           "    survivals: what this model expected of each.\n"
           "    judgements: see `paceline.speculative.acceptance.Judgement`.\n"
           "    bounds: margins below which a token would have been held back, even if it was not.")
      .def("observe_kept", &AcceptanceModel::observe_kept, "num_kept"_a, "held_back"_a,
           "Learn how many tokens of a draft were kept, and whether the next was held back.")
      .def("doubt", &AcceptanceModel::doubt, "share"_a,
           "The text may have changed: believe so much less of what was learned of it.");
  bind_draft_length(module);
}

}  // namespace paceline
