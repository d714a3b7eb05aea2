// One row of scores over the vocabulary.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "paceline/score_row.h"

namespace paceline {
namespace {

using Ids = nb::ndarray<std::int64_t, nb::numpy, nb::ndim<1>, nb::c_contig>;
using Scores = nb::ndarray<double, nb::numpy, nb::ndim<1>, nb::c_contig>;

template <class Array, class T>
Array give(std::vector<T> values) {
  auto* kept = new std::vector<T>(std::move(values));
  return Array(kept->data(), {kept->size()}, owner_of(kept));
}

// A row of scores, and the logits that it reads. What needs a peak that is a number refuses others.
class HeldScoreRow {
 public:
  HeldScoreRow(const Vector<float>& logits, const Vector<std::int64_t>& changed_ids,
               const Vector<double>& changed_scores)
      : logits_(logits),
        inner_(logits_.data(), logits_.size(), to_vector(changed_ids), to_vector(changed_scores)) {}

  double peak() const { return inner_.peak(); }
  Scores scores(const Vector<std::int64_t>& ids) const {
    std::vector<double> found;
    for (std::size_t i = 0; i < ids.size(); ++i) found.push_back(inner_.score(ids.data()[i]));
    return give<Scores>(std::move(found));
  }
  Ids at_least(double floor) const { return give<Ids>(inner_.at_least(floor)); }
  Ids highest(std::int64_t count) const {
    check_finite();
    return give<Ids>(inner_.highest(count));
  }
  double weight_sum(double temperature) const {
    check_drawable(temperature);
    nb::gil_scoped_release unlocked;
    return inner_.weight_sum(temperature);
  }
  Ids contenders(double temperature, std::uint64_t seed, std::uint64_t position) const {
    check_drawable(temperature);
    std::vector<std::int64_t> ids;
    {
      nb::gil_scoped_release unlocked;
      ids = inner_.contenders(temperature, seed, position);
    }
    return give<Ids>(std::move(ids));
  }

 private:
  void check_finite() const {
    if (!std::isfinite(peak())) refuse("the highest score of the row is no finite number.");
  }
  void check_drawable(double temperature) const {
    check_finite();
    if (!(temperature > 0.0 && std::isfinite(temperature))) {
      refuse("temperature=" + std::to_string(temperature) +
             " is out of range: expected more than 0.");
    }
  }

  Vector<float> logits_;
  ScoreRow inner_;
};

}  // namespace

void bind_scores(nb::module_& module) {
  nb::class_<HeldScoreRow>(module, "ScoreRow",
                           "One row of scores over the vocabulary: see paceline.score_row.")
      .def(nb::init<const Vector<float>&, const Vector<std::int64_t>&, const Vector<double>&>(),
           "logits"_a.noconvert(), "changed_ids"_a.noconvert(), "changed_scores"_a.noconvert())
      .def_prop_ro("peak", &HeldScoreRow::peak)
      .def("scores", &HeldScoreRow::scores, "ids"_a.noconvert())
      .def("at_least", &HeldScoreRow::at_least, "floor"_a)
      .def("highest", &HeldScoreRow::highest, "count"_a)
      .def("weight_sum", &HeldScoreRow::weight_sum, "temperature"_a)
      .def("contenders", &HeldScoreRow::contenders, "temperature"_a, "seed"_a, "position"_a);
}

}  // namespace paceline
