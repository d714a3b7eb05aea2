// One row of scores over the vocabulary, and what the sampler asks of it: the native side of
// src/paceline/score_row.py.
//
// A score is a logit of the target, but for a few tokens whose scores penalties and biases have
// changed. Nothing here decides: sums and noise are exact up to rounding, and the sampler looks
// itself at whatever rounding could turn. Bits are equal on every instruction set: kernels work
// element by element, and sums run in 8 chains, token i in chain i mod 8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace paceline {

inline constexpr int kScoreBlock = 128;  // tokens that a kernel takes at once

struct ScoreKernels {
  // The highest of kScoreBlock logits; NaN if one is.
  float (*highest)(const float* logits);

  // scores[i] = exp((scores[i] - peak) * inverse_temperature), kScoreBlock of them, none above the
  // peak. Relative error at most 1e-15, and that of the product; results below 1e-307 may be it.
  void (*weigh)(double peak, double inverse_temperature, double* scores);

  // The upper 32 bits of the words that noise_bits() makes of tokens first_id, + 1, ...,
  // kScoreBlock of them.
  void (*noise_words)(std::uint64_t seed, std::uint64_t position, std::uint32_t first_id,
                      std::uint32_t* words);
};

class ScoreRow {
 public:
  // logits: [size], which must outlive this. changed_ids: ascending, each once, with the scores
  // that they have instead. Throws std::invalid_argument where these are no tokens in order.
  ScoreRow(const float* logits, std::size_t size, std::vector<std::int64_t> changed_ids,
           std::vector<double> changed_scores);

  // The highest score; NaN if one is. Unless it is finite the sums and contenders mean nothing.
  double peak() const { return peak_; }
  // Throws std::invalid_argument where the id is none of the row's.
  double score(std::int64_t id) const;
  // Ids whose score is no less, ascending.
  std::vector<std::int64_t> at_least(double floor) const;
  // Ids of the `count` highest scores, highest first, of equals the lowest id first.
  std::vector<std::int64_t> highest(std::int64_t count) const;
  // The sum over all tokens of exp((score - peak) / temperature).
  double weight_sum(double temperature) const;
  // Ids, ascending, among which is every token whose (score - peak) / temperature + noise is the
  // highest, whoever takes the noise's logarithms.
  std::vector<std::int64_t> contenders(double temperature, std::uint64_t seed,
                                       std::uint64_t position) const;

 private:
  int first_of(int block) const { return block * kScoreBlock; }
  int count_of(int block) const;
  // The block's scores; -infinity after the row's end.
  void read(int block, double* scores) const;

  const float* logits_;
  int size_;
  std::vector<std::int64_t> changed_ids_;
  std::vector<double> changed_scores_;
  std::vector<double> peaks_;  // of each block
  double peak_;
};

}  // namespace paceline
