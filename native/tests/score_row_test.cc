// A row of scores against loops over it, on every instruction set.
#include "paceline/score_row.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <stdexcept>

#include "paceline/noise.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Ids = std::vector<std::int64_t>;

struct Case {
  std::vector<float> logits;
  Ids changed_ids;
  std::vector<double> changed_scores;

  ScoreRow row() const { return {logits.data(), logits.size(), changed_ids, changed_scores}; }
  std::vector<double> scores() const {
    std::vector<double> all(logits.begin(), logits.end());
    for (std::size_t i = 0; i < changed_ids.size(); ++i) {
      all[static_cast<std::size_t>(changed_ids[i])] = changed_scores[i];
    }
    return all;
  }
};

// Sizes on both sides of a block, values with ties, changes at both ends.
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int size : {1, 2, 127, 128, 129, 1000, 5000}) {
    for (const float spread : {0.0f, 1.0f, 30.0f}) {
      Case one{random_values(static_cast<std::size_t>(size), 5, spread), {}, {}};
      for (float& logit : one.logits) logit = std::round(logit * 8.0f) / 8.0f;
      all.push_back(one);
      if (size == 1) continue;
      one.changed_ids = {0, size - 1};
      one.changed_scores = {-kInfinity, 3.5};
      all.push_back(one);
    }
  }
  return all;
}

}  // namespace

TEST(the_answers_are_those_of_loops_over_the_scores) {
  for (const Case& one : cases()) {
    const ScoreRow row = one.row();
    const std::vector<double> scores = one.scores();
    const double peak = *std::max_element(scores.begin(), scores.end());
    CHECK(row.peak() == peak);
    Ids ranked;
    for (std::size_t id = 0; id < scores.size(); ++id) {
      CHECK(row.score(static_cast<std::int64_t>(id)) == scores[id]);
      ranked.push_back(static_cast<std::int64_t>(id));
    }
    const auto score = [&](std::int64_t id) { return scores[static_cast<std::size_t>(id)]; };
    Ids above;
    std::copy_if(ranked.begin(), ranked.end(), std::back_inserter(above),
                 [&](std::int64_t id) { return score(id) >= peak - 1.0; });
    CHECK(row.at_least(peak - 1.0) == above);
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](std::int64_t a, std::int64_t b) { return score(a) > score(b); });
    for (const std::size_t count : {0, 1, 2, 39, 1000, 9000}) {
      const Ids expected(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(
                                                              std::min(count, ranked.size())));
      CHECK(row.highest(static_cast<std::int64_t>(count)) == expected, std::to_string(count));
    }
  }
}

TEST(the_sum_of_weights_is_right_to_the_last_digits) {
  for (const Case& one : cases()) {
    const ScoreRow row = one.row();
    for (const double temperature : {5e-324, 1e-9, 0.3, 1.0, 2.0}) {
      long double expected = 0.0L;
      for (const double score : one.scores()) {
        expected += std::exp(static_cast<long double>(score - row.peak()) / temperature);
      }
      const long double ratio = row.weight_sum(temperature) / expected;
      const double error = std::fabs(static_cast<double>(ratio - 1.0L));
      CHECK(error <= 1e-13, std::to_string(error));
    }
  }
}

TEST(the_highest_noised_score_is_among_few_contenders) {
  for (const Case& one : cases()) {
    const ScoreRow row = one.row();
    const std::vector<double> scores = one.scores();
    for (const double temperature : {5e-324, 0.3, 1.0, 2.0}) {
      for (std::uint64_t position = 0; position < 20; ++position) {
        std::int64_t best = 0;
        double highest = -kInfinity;
        for (std::size_t id = 0; id < scores.size(); ++id) {
          const double noise = gumbel(noise_bits(7, position, static_cast<std::uint32_t>(id)));
          const double noised = (scores[id] - row.peak()) / temperature + noise;
          if (noised > highest) best = static_cast<std::int64_t>(id);
          highest = std::max(highest, noised);
        }
        CHECK(row.contenders(temperature, 7, position) == Ids{best}, std::to_string(position));
      }
    }
  }
}

TEST(kernels_give_the_same_bits_on_every_instruction_set) {
  const std::vector<float> logits = random_values(kScoreBlock, 3, 40.0f);
  const double peak = *std::max_element(logits.begin(), logits.end());
  std::vector<double> expected(logits.begin(), logits.end());
  expected[5] = -kInfinity;
  all_kernels().front()->scores.weigh(peak, 0.7, expected.data());
  for (const Kernels* k : all_kernels()) {
    std::vector<double> weights(logits.begin(), logits.end());
    weights[5] = -kInfinity;
    k->scores.weigh(peak, 0.7, weights.data());
    CHECK(weights == expected, k->isa);
    CHECK(k->scores.highest(logits.data()) == static_cast<float>(peak), k->isa);
    for (const std::size_t at : {0, 17, kScoreBlock - 1}) {
      std::vector<float> spoiled = logits;
      spoiled[at] = std::nanf("");
      CHECK(std::isnan(k->scores.highest(spoiled.data())), k->isa);
    }
    constexpr std::uint64_t kMost = ~std::uint64_t{0};
    for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{77} << 30, kMost}) {
      std::uint32_t words[kScoreBlock];
      k->scores.noise_words(seed, seed + 3, 262016, words);
      for (std::uint32_t i = 0; i < kScoreBlock; ++i) {
        CHECK(words[i] == noise_bits(seed, seed + 3, 262016 + i) >> 21, k->isa);
      }
    }
  }
}

TEST(changes_that_are_no_tokens_in_order_are_refused) {
  const std::vector<float> logits(10);
  for (const Ids& ids : {Ids{-1, 2}, Ids{2, 2}, Ids{3, 2}, Ids{2, 10}, Ids{1}, Ids{1, 2, 3}}) {
    CHECK(refuses([&] { ScoreRow(logits.data(), logits.size(), ids, {1.0, 2.0}); }));
  }
}
