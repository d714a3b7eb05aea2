#include "paceline/draw.h"

#include <algorithm>
#include <cmath>

#include "paceline/noise.h"

namespace paceline {

void Leaders::place(double value, std::int32_t candidate) {
  if (std::isnan(value)) {
    broken_id = std::min(broken_id, candidate);
  } else if (value > first) {
    second = first;
    first = value;
    id = candidate;
  } else if (value == first) {
    second = first;
    id = std::min(id, candidate);
  } else {
    second = std::max(second, value);
  }
}

void Leaders::merge(const Leaders& other) {
  if (other.id != kNone) offer(other.first, other.id);
  second = std::max(second, other.second);
  broken_id = std::min(broken_id, other.broken_id);
}

bool Leaders::finite() const { return broken_id == kNone && std::isfinite(first); }

Drawn Leaders::drawn() const {
  if (finite()) return {id, first - second};
  if (broken_id != kNone) return {broken_id, 0.0};
  return {id != kNone ? id : 0, 0.0};
}

void PlacedBiases::add(int first, int count, double* values) const {
  const auto begin = std::lower_bound(places.begin(), places.end(), first);
  for (auto place = begin; place != places.end() && *place < first + count; ++place) {
    values[*place - first] += biases[static_cast<std::size_t>(place - places.begin())];
  }
}

// Rounding preserves order, so a bound on the noise bounds the rounded sum too.
void offer_noised(const double* values, const std::int32_t* ids, int count, const Leaders& all,
                  const Noise& noise, Leaders& noised) {
  const double runner_up = (all.second - all.first) / noise.temperature + kMinGumbel;
  for (int i = 0; i < count; ++i) {
    const double bound = std::max(runner_up, noised.second);
    const double tempered = (values[i] - all.first) / noise.temperature;
    if (!(tempered + kMaxGumbel >= bound) || std::isinf(tempered)) continue;
    const auto token = static_cast<std::uint32_t>(ids[i]);
    const std::uint64_t bits = noise_bits(noise.seed, noise.position, token);
    if (tempered + gumbel_bound(bits) < bound) continue;
    noised.offer(tempered + gumbel(bits), ids[i]);
  }
}

}  // namespace paceline
