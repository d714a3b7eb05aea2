// The draw against noise on every value and a full scan.
#include "paceline/draw.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "paceline/noise.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Scored {
  std::vector<double> values;
  std::vector<std::int32_t> ids;
};

// sampling.draw as a scan. Of equals the lowest id comes first.
Drawn slow_draw(const Scored& all, const Noise& noise) {
  std::vector<double> values = all.values;
  std::int32_t broken = Leaders::kNone;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) broken = std::min(broken, all.ids[i]);
  }
  if (broken != Leaders::kNone) return {broken, 0.0};
  const double highest = *std::max_element(values.begin(), values.end());
  const bool finite = std::isfinite(highest);
  if (finite && noise.temperature > 0.0) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto id = static_cast<std::uint32_t>(all.ids[i]);
      values[i] = (values[i] - highest) / noise.temperature +
                  gumbel(noise_bits(noise.seed, noise.position, id));
    }
  }
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return values[a] != values[b] ? values[a] > values[b] : all.ids[a] < all.ids[b];
  });
  const double second = order.size() > 1 ? values[order[1]] : -kInfinity;
  return {all.ids[order[0]], finite ? values[order[0]] - second : 0.0};
}

Leaders merged(const std::vector<Leaders>& parts) {
  Leaders all;
  for (const Leaders& part : parts) all.merge(part);
  return all;
}

// In `num_parts` parts of interleaved values, in the order of the parts or against it.
Drawn draw_in_parts(const Scored& all, const Noise& noise, std::size_t num_parts, bool backwards) {
  std::vector<Leaders> raw(num_parts), noised(num_parts);
  for (std::size_t i = 0; i < all.values.size(); ++i) {
    raw[i % num_parts].offer(all.values[i], all.ids[i]);
  }
  if (backwards) std::reverse(raw.begin(), raw.end());
  const Leaders leaders = merged(raw);
  if (noise.temperature == 0.0 || !leaders.finite()) return leaders.drawn();
  for (std::size_t i = 0; i < all.values.size(); ++i) {
    offer_noised(&all.values[i], &all.ids[i], 1, leaders, noise, noised[i % num_parts]);
  }
  if (backwards) std::reverse(noised.begin(), noised.end());
  return merged(noised).drawn();
}

void check(const Scored& all, const Noise& noise, const std::string& what) {
  const Drawn expected = slow_draw(all, noise);
  for (const std::size_t num_parts : {1, 2, 7}) {
    for (const bool backwards : {false, true}) {
      const Drawn got = draw_in_parts(all, noise, num_parts, backwards);
      CHECK(got.token == expected.token && got.confidence == expected.confidence,
            what + " T=" + std::to_string(noise.temperature) + " token " +
                std::to_string(got.token) + " for " + std::to_string(expected.token));
    }
  }
}

// `spread` 0 makes all values equal, small ones give ties.
Scored random_scores(std::size_t count, unsigned seed, float spread) {
  Scored all;
  for (const float value : random_values(count, seed)) {
    all.values.push_back(std::nearbyint(value * spread) / 4.0);
    all.ids.push_back(static_cast<std::int32_t>(all.ids.size()));
  }
  std::shuffle(all.ids.begin(), all.ids.end(), std::mt19937(seed));
  return all;
}

constexpr double kTemperatures[] = {0.0, 1e-300, 0.01, 0.7, 1.0, 2.0};

}  // namespace

TEST(draws_are_those_of_a_full_scan) {
  for (const std::size_t count : {1, 2, 3, 100, 1000}) {
    for (const float spread : {0.0f, 2.0f, 8.0f, 100.0f}) {
      for (unsigned seed = 0; seed < 20; ++seed) {
        const Scored all = random_scores(count, seed, spread);
        for (const double temperature : kTemperatures) {
          check(all, {temperature, seed, 100 + seed}, std::to_string(count) + " values");
        }
      }
    }
  }
}

TEST(a_lone_token_has_no_runner_up) {
  for (const double temperature : kTemperatures) {
    const Scored one{{3.0, -kInfinity, -kInfinity}, {9, 4, 5}};
    check(one, {temperature, 1, 2}, "one");
    const Drawn got = draw_in_parts(one, {temperature, 1, 2}, 2, false);
    CHECK(got.token == 9 && got.confidence == kInfinity);
  }
}

TEST(equal_tokens_leave_no_margin) {
  const Drawn got = draw_in_parts({{1.0, 2.0, 2.0, 2.0}, {3, 8, 5, 7}}, {}, 2, false);
  CHECK(got.token == 5 && got.confidence == 0.0);
}

TEST(values_that_are_not_finite_give_no_confidence) {
  const double nan = std::nan("");
  const std::vector<std::vector<double>> cases = {{1.0, nan, 2.0},
                                                  {nan, nan, nan},
                                                  {kInfinity, 1.0, kInfinity},
                                                  {nan, kInfinity, 0.0},
                                                  {-kInfinity, -kInfinity, -kInfinity}};
  for (const auto& values : cases) {
    for (const double temperature : kTemperatures) {
      const Scored all{values, {6, 4, 2}};
      check(all, {temperature, 1, 2}, "broken");
      CHECK(draw_in_parts(all, {temperature, 1, 2}, 1, false).confidence == 0.0);
    }
  }
  const Drawn none = Leaders().drawn();
  CHECK(none.token == 0 && none.confidence == 0.0);
}

TEST(biases_meet_their_places) {
  const PlacedBiases biases{{2, 5, 6, 9}, {1.0, -kInfinity, 2.0, 4.0}};
  std::vector<double> values(4, 0.5);
  biases.add(3, 4, values.data());  // places 3 to 6
  CHECK(values[0] == 0.5 && values[1] == 0.5 && values[2] == -kInfinity && values[3] == 2.5);
  biases.add(10, 4, values.data());
  CHECK(values[0] == 0.5 && values[3] == 2.5);
}
