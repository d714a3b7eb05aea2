// Activations with their memory, for tests.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "paceline/kernels.h"

namespace paceline::testing {

class OwnedActivations {
 public:
  OwnedActivations(const std::vector<float>& x, int rows, int inner)
      : values_(x),
        quants_(x.size() + 64),
        scales_(x.size() / 32 + 1),
        minus_8_sums_(x.size() / 32 + 1),
        view{rows, inner, values_.data(), quants_.data(), scales_.data(), minus_8_sums_.data()} {}

  void quantize(const Kernels& k) {
    for (int row = 0; row < view.num_rows; ++row) {
      k.linear.quantize(view, row, 0, view.inner / kBlockColumns);
    }
  }

  std::vector<float> row(int m) const {
    return {values_.begin() + m * view.inner, values_.begin() + (m + 1) * view.inner};
  }

  // What the integer kernels see of a row.
  std::vector<float> dequantized(int m) const {
    std::vector<float> seen;
    for (int i = 0; i < view.inner; ++i) {
      const int at = i / kBlockColumns * view.num_rows + m;
      seen.push_back(
          static_cast<float>(
              quants_[static_cast<std::size_t>(at * kBlockColumns + i % kBlockColumns)]) *
          scales_[static_cast<std::size_t>(at)]);
    }
    return seen;
  }

  bool same_quants(const OwnedActivations& other) const {
    return quants_ == other.quants_ && minus_8_sums_ == other.minus_8_sums_ &&
           std::memcmp(scales_.data(), other.scales_.data(), scales_.size() * sizeof(float)) == 0;
  }

 private:
  std::vector<float> values_;
  std::vector<std::int8_t> quants_;
  std::vector<float> scales_;
  std::vector<std::int32_t> minus_8_sums_;

 public:
  Activations view;
};

}  // namespace paceline::testing
