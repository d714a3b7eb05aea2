// How a draft token is drawn from scores that several workers hold: sampling.draw of the Python
// side, bit for bit but for the logarithms.
//
//   token = argmax_v((value_v - highest value) / temperature + noise(seed, position, v))
//   value_v = score_v + bias_v, in double
//
// Each worker notes the leaders of its own values, all see the merged leaders, and each then puts
// noise on those of its values that can still come first or second.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace paceline {

struct Drawn {
  std::int32_t token = 0;
  double confidence = 0.0;  // how far ahead of the runner-up; infinity without one
};

// The first by (value descending, id ascending) and the second value of all that was offered, in
// whatever order.
struct Leaders {
  static constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();

  double first = -std::numeric_limits<double>::infinity();
  double second = -std::numeric_limits<double>::infinity();
  std::int32_t id = kNone;
  std::int32_t broken_id = kNone;  // the lowest whose value was NaN

  void offer(double value, std::int32_t candidate) {
    if (!(value < second)) place(value, candidate);
  }
  void merge(const Leaders& other);
  bool finite() const;
  // Values that leave nothing to choose from give confidence 0: a broken drafter costs its drafts,
  // never the text.
  Drawn drawn() const;

 private:
  void place(double value, std::int32_t candidate);
};

// Biases by the place of their token in the order in which tokens are scored. -infinity suppresses.
struct PlacedBiases {
  std::vector<int> places;  // ascending, each once
  std::vector<double> biases;

  // values[i] += the bias of place first + i
  void add(int first, int count, double* values) const;
};

struct Noise {
  double temperature = 0.0;  // above 0
  std::uint64_t seed = 0;
  std::uint64_t position = 0;  // absolute, that the token would take
};

// Offers to `noised` those of `count` values that can still come first or second after the noise.
// `all`: the leaders of all values of this draw, finite().
void offer_noised(const double* values, const std::int32_t* ids, int count, const Leaders& all,
                  const Noise& noise, Leaders& noised);

}  // namespace paceline
