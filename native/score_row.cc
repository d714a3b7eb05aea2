#include "paceline/score_row.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "paceline/kernels.h"
#include "paceline/noise.h"

namespace paceline {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kChains = 8;
// Two libraries' logarithms, and sums of numbers up to 40, differ by far less.
constexpr double kSlack = 1e-9;

struct Scored {
  double score;
  std::int64_t id;
};

bool better(const Scored& a, const Scored& b) {
  return a.score != b.score ? a.score > b.score : a.id < b.id;
}

double higher(double a, double b) { return a > b || std::isnan(a) ? a : b; }

void check_changes(const std::vector<std::int64_t>& ids, std::size_t num_scores, int size) {
  if (ids.size() != num_scores) {
    throw std::invalid_argument("there are " + std::to_string(ids.size()) +
                                " changed tokens but " + std::to_string(num_scores) + " scores");
  }
  std::int64_t last = -1;
  for (const std::int64_t id : ids) {
    if (id <= last || id >= size) {
      throw std::invalid_argument("changed token " + std::to_string(id) + " comes after " +
                                  std::to_string(last) + ": expected ascending ids below " +
                                  std::to_string(size));
    }
    last = id;
  }
}

int checked_size(std::size_t size) {
  if (size >= 1 && size <= std::size_t{1} << 30) return static_cast<int>(size);
  throw std::invalid_argument("a row of " + std::to_string(size) +
                              " scores: expected 1 to 2**30 of them");
}

// The least word whose token's noise can be `noise` or more: gumbel_bound, the other way round.
std::uint32_t least_word(double noise) {
  constexpr double kHalvings = 1.4426950408889634;  // 1 / log 2
  const double halvings = std::floor(noise * kHalvings) - 1.0;
  if (halvings < 1.0) return 0;
  if (halvings >= 32.0) return 0xffffffffu;
  return 0u - (std::uint32_t{1} << (32 - static_cast<int>(halvings)));
}

// Tokens whose noised score is the highest so far or next to it.
class Front {
 public:
  double limit() const { return best_ - kSlack; }
  void offer(double noised, std::int64_t id) {
    if (noised < limit()) return;
    best_ = std::max(best_, noised);
    kept_.push_back({noised, id});
  }
  std::vector<std::int64_t> ids() const {
    std::vector<std::int64_t> ids;
    for (const Scored& one : kept_) {
      if (one.score >= limit()) ids.push_back(one.id);
    }
    return ids;
  }

 private:
  double best_ = kMinGumbel;  // what the token at the peak has at least
  std::vector<Scored> kept_;
};

}  // namespace

ScoreRow::ScoreRow(const float* logits, std::size_t size, std::vector<std::int64_t> changed_ids,
                   std::vector<double> changed_scores)
    : logits_(logits),
      size_(checked_size(size)),
      changed_ids_(std::move(changed_ids)),
      changed_scores_(std::move(changed_scores)) {
  check_changes(changed_ids_, changed_scores_.size(), size_);
  const int blocks = (size_ + kScoreBlock - 1) / kScoreBlock;
  const int whole = size_ / kScoreBlock;
  peaks_.resize(static_cast<std::size_t>(blocks));
  const ScoreKernels& scores = kernels().scores;
  for (int b = 0; b < whole; ++b) {
    peaks_[static_cast<std::size_t>(b)] = scores.highest(logits_ + first_of(b));
  }
  const auto look = [&](int block) {
    double values[kScoreBlock];
    read(block, values);
    double& peak = peaks_[static_cast<std::size_t>(block)];
    peak = -kInfinity;
    for (const double value : values) peak = higher(value, peak);
  };
  if (whole < blocks) look(whole);
  int last = -1;
  for (const std::int64_t id : changed_ids_) {
    const int block = static_cast<int>(id) / kScoreBlock;
    if (block != last) look(block);
    last = block;
  }
  peak_ = -kInfinity;
  for (const double peak : peaks_) peak_ = higher(peak, peak_);
}

double ScoreRow::score(std::int64_t id) const {
  if (id < 0 || id >= size_) {
    throw std::invalid_argument("token " + std::to_string(id) + " is not in a row of " +
                                std::to_string(size_));
  }
  const auto found = std::lower_bound(changed_ids_.begin(), changed_ids_.end(), id);
  if (found == changed_ids_.end() || *found != id) return logits_[id];
  return changed_scores_[static_cast<std::size_t>(found - changed_ids_.begin())];
}

int ScoreRow::count_of(int block) const { return std::min(kScoreBlock, size_ - first_of(block)); }

void ScoreRow::read(int block, double* scores) const {
  const int first = first_of(block), count = count_of(block);
  const float* logits = logits_ + first;
  if (count == kScoreBlock) {
    for (int i = 0; i < kScoreBlock; ++i) scores[i] = logits[i];
  } else {
    std::copy_n(logits, count, scores);
    std::fill(scores + count, scores + kScoreBlock, -kInfinity);
  }
  auto changed = std::lower_bound(changed_ids_.begin(), changed_ids_.end(), first);
  for (; changed != changed_ids_.end() && *changed < first + count; ++changed) {
    scores[*changed - first] =
        changed_scores_[static_cast<std::size_t>(changed - changed_ids_.begin())];
  }
}

std::vector<std::int64_t> ScoreRow::at_least(double floor) const {
  std::vector<std::int64_t> ids;
  double scores[kScoreBlock];
  for (std::size_t b = 0; b < peaks_.size(); ++b) {
    if (!(peaks_[b] >= floor)) continue;
    const int block = static_cast<int>(b), count = count_of(block);
    read(block, scores);
    for (int i = 0; i < count; ++i) {
      if (scores[i] >= floor) ids.push_back(first_of(block) + i);
    }
  }
  return ids;
}

// As many blocks as tokens are wanted have a peak at or above the floor, so that no token below it
// is wanted.
std::vector<std::int64_t> ScoreRow::highest(std::int64_t count) const {
  const auto wanted = static_cast<std::ptrdiff_t>(std::clamp<std::int64_t>(count, 0, size_));
  if (wanted == 0) return {};
  double floor = -kInfinity;
  if (wanted <= std::ssize(peaks_)) {
    std::vector<double> peaks = peaks_;
    std::nth_element(peaks.begin(), peaks.begin() + (wanted - 1), peaks.end(), std::greater<>());
    floor = peaks[static_cast<std::size_t>(wanted - 1)];
  }
  std::vector<std::int64_t> ids = at_least(floor);
  std::vector<Scored> scored;
  scored.reserve(ids.size());
  for (const std::int64_t id : ids) scored.push_back({score(id), id});
  const std::ptrdiff_t kept = std::min(wanted, std::ssize(scored));
  std::nth_element(scored.begin(), scored.begin() + (kept - 1), scored.end(), better);
  std::sort(scored.begin(), scored.begin() + kept, better);
  ids.resize(static_cast<std::size_t>(kept));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = scored[i].id;
  return ids;
}

double ScoreRow::weight_sum(double temperature) const {
  // Finite, so that a vanishing temperature leaves the peak its weight of 1.
  const double inverse = std::min(1.0 / temperature, std::numeric_limits<double>::max());
  const ScoreKernels& kernel = kernels().scores;
  double chains[kChains] = {};
  double weights[kScoreBlock];
  for (int b = 0; b < static_cast<int>(peaks_.size()); ++b) {
    read(b, weights);
    kernel.weigh(peak_, inverse, weights);
    for (int i = 0; i < kScoreBlock; i += kChains) {
      for (int c = 0; c < kChains; ++c) chains[c] += weights[i + c];
    }
  }
  for (int half = kChains / 2; half; half /= 2) {
    for (int c = 0; c < half; ++c) chains[c] += chains[c + half];
  }
  return chains[0];
}

// A block is hashed unless even the most noise could not bring its peak to the front, and of its
// tokens only those with a hash that could.
std::vector<std::int64_t> ScoreRow::contenders(double temperature, std::uint64_t seed,
                                               std::uint64_t position) const {
  const ScoreKernels& kernel = kernels().scores;
  Front front;
  std::uint32_t words[kScoreBlock];
  for (std::size_t b = 0; b < peaks_.size(); ++b) {
    const double lead = (peaks_[b] - peak_) / temperature;
    if (!(lead + kMaxGumbel >= front.limit())) continue;
    const int first = first_of(static_cast<int>(b)), count = count_of(static_cast<int>(b));
    kernel.noise_words(seed, position, static_cast<std::uint32_t>(first), words);
    const std::uint32_t least = least_word(front.limit() - lead);
    for (int i = 0; i < count; ++i) {
      if (words[i] < least) continue;
      const double tempered = (score(first + i) - peak_) / temperature;
      const std::uint64_t bits =
          noise_bits(seed, position, static_cast<std::uint32_t>(first + i));
      if (tempered + gumbel_bound(bits) >= front.limit()) {
        front.offer(tempered + gumbel(bits), first + i);
      }
    }
  }
  return front.ids();
}

}  // namespace paceline
