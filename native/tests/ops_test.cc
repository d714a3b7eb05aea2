// Row operations: values against long double arithmetic, bits across instruction sets, tails, and
// what becomes of infinities and NaN.
#include "paceline/ops.h"

#include <cmath>
#include <functional>
#include <limits>

#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

using Wide = long double;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Wide kUlp = 0x1p-23L;  // of float32, relative; a rounding errs by half of it
constexpr int kSizes[] = {1, 2, 15, 16, 17, 63, 64, 65, 80, 256, 1000, 1536};
constexpr float kGuard = -77.0f;

std::string at(const Kernels& k, int size) {
  return std::string(k.isa) + " size " + std::to_string(size);
}

std::size_t index(int i) { return static_cast<std::size_t>(i); }

// What an operation makes of a row, checked to be the same on every instruction set and to leave
// what follows the row alone.
std::vector<float> on_all(int size, const std::vector<float>& row,
                          const std::function<void(const OpsKernels&, float*)>& operation) {
  std::vector<float> expected;
  for (const Kernels* k : all_kernels()) {
    std::vector<float> got(row.begin(), row.begin() + size);
    got.push_back(kGuard);
    operation(k->ops, got.data());
    CHECK(got.back() == kGuard, at(*k, size));
    got.pop_back();
    if (expected.empty()) expected = got;
    CHECK(same_bits(got, expected), at(*k, size));
  }
  return expected;
}

// Every float pattern that is a multiple of `step`, both signs, in rows of 4096.
template <class Body>
void for_floats(std::uint32_t step, Body&& body) {
  std::vector<float> row;
  for (std::uint64_t bits = 0; bits < 0x100000000u; bits += step) {
    const auto pattern = static_cast<std::uint32_t>(bits);
    float x;
    std::memcpy(&x, &pattern, sizeof x);
    if (std::isfinite(x)) row.push_back(x);
    if (row.size() == 4096) {
      body(row);
      row.clear();
    }
  }
  body(row);
}

Wide relative_error(float got, Wide exact) {
  return std::fabs(static_cast<Wide>(got) - exact) / std::fabs(exact);
}

Wide exact_norm(const std::vector<float>& x, int size, Wide eps) {
  Wide squares = 0;
  for (int i = 0; i < size; ++i) squares += Wide(x[index(i)]) * x[index(i)];
  return 1 / std::sqrt(squares / size + eps);
}

// n positive terms in 64 chains, a tree of 6 levels, then the mean, eps, root, inverse and up to
// three products. The root halves what was before it.
Wide norm_tolerance(int size) { return kUlp * ((size / 64 + 9) / 2.0L + 5) / 2; }

}  // namespace

TEST(exp_is_within_its_error_everywhere) {
  Wide worst = 0;
  for_floats(1999, [&](const std::vector<float>& row) {
    const int size = static_cast<int>(row.size());
    const auto y = on_all(size, row, [&](const OpsKernels& ops, float* x) { ops.exp(x, size); });
    for (std::size_t i = 0; i < row.size(); ++i) {
      const Wide exact = std::exp(Wide(row[i]));
      if (exact >= 0x1.ffffffp127L) {
        CHECK(y[i] == kInfinity);
      } else if (exact < 0x1p-126L) {
        // One more rounding to a multiple of 2^-149.
        CHECK(std::fabs(y[i] - exact) <= 0x1p-150L + 1.2e-7L * exact, std::to_string(row[i]));
      } else {
        worst = std::max(worst, relative_error(y[i], exact));
      }
    }
  });
  std::printf("exp: largest relative error %.3Lg\n", worst);
  CHECK(worst <= 1.2e-7L);
  // The floats between -104 and 89, where exp is neither 0 nor infinite, seen closely.
  std::vector<float> close;
  for (int i = 0; i < 400000; ++i) close.push_back(-87.0f + static_cast<float>(i) * 4.38e-4f);
  const int size = static_cast<int>(close.size());
  const auto y = on_all(size, close, [&](const OpsKernels& ops, float* x) { ops.exp(x, size); });
  worst = 0;
  for (std::size_t i = 0; i < close.size(); ++i) {
    worst = std::max(worst, relative_error(y[i], std::exp(Wide(close[i]))));
  }
  std::printf("exp, close: largest relative error %.3Lg\n", worst);
  CHECK(worst <= 1.2e-7L);
}

TEST(exp_of_what_is_no_finite_number) {
  const std::vector<float> row = {0.0f, -0.0f, kInfinity, -kInfinity, std::nanf(""), 3e38f, -3e38f};
  const auto y = on_all(7, row, [](const OpsKernels& ops, float* x) { ops.exp(x, 7); });
  CHECK(y[0] == 1.0f && y[1] == 1.0f && y[2] == kInfinity && y[3] == 0.0f);
  CHECK(std::isnan(y[4]) && y[5] == kInfinity && y[6] == 0.0f);
}

TEST(tanh_is_within_its_error_everywhere) {
  Wide worst = 0;
  for_floats(1997, [&](const std::vector<float>& row) {
    const int size = static_cast<int>(row.size());
    const auto y =
        on_all(size, row, [&](const OpsKernels& ops, float* x) { ops.soft_cap(x, size, 1.0f); });
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (row[i] == 0.0f) {
        CHECK(y[i] == 0.0f);
      } else {
        worst = std::max(worst, relative_error(y[i], std::tanh(Wide(row[i]))));
      }
    }
  });
  std::printf("tanh: largest relative error %.3Lg\n", worst);
  CHECK(worst <= 2e-7L);
}

TEST(soft_cap_bounds_and_keeps_nan) {
  const std::vector<float> row = {0.0f,   1.0f,      -15.0f,     29.5f,        400.0f,
                                  -1e38f, kInfinity, -kInfinity, std::nanf("")};
  const auto y = on_all(9, row, [](const OpsKernels& ops, float* x) { ops.soft_cap(x, 9, 30.0f); });
  for (std::size_t i = 1; i < 8; ++i) {
    CHECK(relative_error(y[i], 30 * std::tanh(Wide(row[i]) / 30)) <= 2e-7L + 2 * kUlp);
  }
  CHECK(std::isnan(y[8]));
}

TEST(rms_norm_is_near_exact) {
  for (const int size : kSizes) {
    for (const bool weighted : {false, true}) {
      const auto x = random_values(index(size), 11, 3.0f);
      const auto weight = random_values(index(size), 12);
      const auto y = on_all(size, x, [&](const OpsKernels& ops, float* row) {
        ops.rms_norm(x.data(), weighted ? weight.data() : nullptr, 1e-6f, size, row);
      });
      const auto in_place = on_all(size, x, [&](const OpsKernels& ops, float* row) {
        ops.rms_norm(row, weighted ? weight.data() : nullptr, 1e-6f, size, row);
      });
      CHECK(same_bits(y, in_place));
      const Wide inverse = exact_norm(x, size, 1e-6f);
      for (int i = 0; i < size; ++i) {
        const Wide exact = x[index(i)] * inverse * (weighted ? weight[index(i)] : 1.0f);
        CHECK(relative_error(y[index(i)], exact) <= norm_tolerance(size), std::to_string(size));
      }
    }
  }
}

TEST(rms_norm_of_zeros_and_of_nan) {
  const auto zeros = on_all(40, std::vector<float>(40, 0.0f), [](const OpsKernels& ops, float* x) {
    ops.rms_norm(x, nullptr, 1e-6f, 40, x);
  });
  for (const float y : zeros) CHECK(y == 0.0f);
  for (const Kernels* k : all_kernels()) {
    auto x = random_values(40, 13);
    x[37] = std::nanf("");
    k->ops.rms_norm(x.data(), nullptr, 1e-6f, 40, x.data());
    for (const float y : x) CHECK(std::isnan(y), k->isa);
  }
}

TEST(normed_rows_are_added_to_the_residual_and_scaled) {
  for (const int size : kSizes) {
    const auto x = random_values(index(size), 14), weight = random_values(index(size), 15);
    const auto residual = random_values(index(size), 16);
    for (const float scale : {1.0f, 0.37f}) {
      const auto y = on_all(size, residual, [&](const OpsKernels& ops, float* row) {
        ops.add_rms_norm(x.data(), weight.data(), 1e-6f, scale, size, row);
      });
      const auto normed = on_all(size, x, [&](const OpsKernels& ops, float* row) {
        ops.rms_norm(x.data(), weight.data(), 1e-6f, size, row);
      });
      for (std::size_t i = 0; i < x.size(); ++i) {
        const float sum = residual[i] + normed[i];
        CHECK(y[i] == sum * scale, std::to_string(size));
      }
    }
  }
}

TEST(rope_turns_pairs) {
  for (const int size : {2, 6, 16, 64, 256, 512}) {
    const auto x = random_values(index(size), 17);
    std::vector<float> cosines, sines;
    for (int i = 0; i < size / 2; ++i) {
      cosines.push_back(static_cast<float>(std::cos(0.1 * i)));
      sines.push_back(static_cast<float>(std::sin(0.1 * i)));
    }
    const auto y = on_all(size, x, [&](const OpsKernels& ops, float* head) {
      ops.rope(head, cosines.data(), sines.data(), size);
    });
    for (int i = 0; i < size / 2; ++i) {
      const Wide a = x[index(i)], b = x[index(i + size / 2)];
      const Wide c = cosines[index(i)], s = sines[index(i)];
      const Wide tolerance = kUlp * (std::fabs(a) + std::fabs(b));  // two products and a sum
      CHECK(std::fabs(y[index(i)] - (a * c - b * s)) <= tolerance);
      CHECK(std::fabs(y[index(i + size / 2)] - (b * c + a * s)) <= tolerance);
    }
    CHECK(y[0] == x[0] && y[index(size / 2)] == x[index(size / 2)]);  // an angle of 0 turns nothing
  }
}

TEST(gelu_gate_is_near_exact) {
  std::vector<float> gate;
  for (int i = -4000; i < 4000; ++i) gate.push_back((static_cast<float>(i) + 0.5f) * 0.01f);
  for (const float extreme : {-1e5f, 1e5f, -1e30f, 1e30f, 1e-30f, -1e-40f}) {
    gate.push_back(extreme);
  }
  const int size = static_cast<int>(gate.size());
  const auto up = random_values(gate.size(), 18);
  const auto y = on_all(
      size, gate, [&](const OpsKernels& ops, float* x) { ops.gelu_gate(x, up.data(), size, x); });
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const Wide x = gate[i], u = 0.797884560802865355879892L * (x + 0.044715L * x * x * x);
    const Wide open = x / (1 + std::exp(-2 * u));
    // u errs by 4 roundings, which exp turns into |2 u| as many; further ones of exp, sum,
    // quotient and product. Where exp(-2 u) overflows, |open| is below 11 x 2^-128.
    const Wide roundings = 4 * std::fabs(2 * u) * std::fabs(1 - open / x) + 6;
    const Wide relative = open == 0 ? 0 : kUlp * roundings / 2;
    const Wide tolerance = std::fabs(open * up[i]) * relative + (std::fabs(up[i]) + 1) * 0x1p-124L;
    CHECK(std::fabs(y[i] - open * up[i]) <= tolerance, std::to_string(gate[i]));
  }
}

TEST(gelu_gate_may_write_over_either_input) {
  const auto gate = random_values(100, 19), up = random_values(100, 20);
  const auto over_gate = on_all(
      100, gate, [&](const OpsKernels& ops, float* x) { ops.gelu_gate(x, up.data(), 100, x); });
  const auto over_up = on_all(
      100, up, [&](const OpsKernels& ops, float* x) { ops.gelu_gate(gate.data(), x, 100, x); });
  CHECK(same_bits(over_gate, over_up));
  const std::vector<float> bad = {kInfinity, std::nanf("")};
  const auto y =
      on_all(2, bad, [&](const OpsKernels& ops, float* x) { ops.gelu_gate(x, up.data(), 2, x); });
  CHECK(std::isinf(y[0]) && std::isnan(y[1]));
}

TEST(softmax_is_near_exact) {
  for (const int size : kSizes) {
    const auto x = random_values(index(size), 21, 4.0f);
    const auto y =
        on_all(size, x, [&](const OpsKernels& ops, float* row) { ops.softmax(row, size); });
    Wide highest = x[0], sum = 0;
    for (const float v : x) highest = std::max(highest, Wide(v));
    for (const float v : x) sum += std::exp(v - highest);
    for (std::size_t i = 0; i < x.size(); ++i) {
      // The difference errs by half an ulp of itself; exp twice; the sum's roundings; the quotient.
      const Wide tolerance =
          std::fabs(x[i] - highest) * kUlp / 2 + 16 * kUlp + kUlp * (size / 64 + 8) / 2 + kUlp;
      CHECK(relative_error(y[i], std::exp(x[i] - highest) / sum) <= tolerance,
            std::to_string(size));
    }
  }
  for (const Kernels* k : all_kernels()) {
    std::vector<float> x = {1.0f, std::nanf(""), 2.0f}, far = {-200.0f, 0.0f, -kInfinity};
    k->ops.softmax(x.data(), 3);
    k->ops.softmax(far.data(), 3);
    for (const float y : x) CHECK(std::isnan(y), k->isa);
    CHECK(far[0] == 0.0f && far[1] == 1.0f && far[2] == 0.0f, k->isa);
  }
}

TEST(embedding_rows_equal_the_slow_twin) {
  constexpr int kSize = 160;
  const auto values = random_values(kSize, 22);
  for (const WeightType type :
       {WeightType::q4_0, WeightType::q8_0, WeightType::bf16, WeightType::f16, WeightType::f32}) {
    for (const int size : {32, 160, 40, 3}) {
      if (is_quantized(type) && size % kBlockColumns) continue;
      const auto row = quantize_row(type, values.data(), kSize);
      std::vector<std::uint8_t> odd(1 + source_row_bytes(type, size));  // no alignment, no slack
      std::memcpy(odd.data() + 1, row.data(), odd.size() - 1);
      const auto exact = dequantize_row(type, row.data(), kSize);
      const auto y = on_all(size, values, [&](const OpsKernels& ops, float* out) {
        ops.embed(type, odd.data() + 1, 39.25f, size, out);
      });
      for (int i = 0; i < size; ++i) CHECK(y[index(i)] == exact[index(i)] * 39.25f);
    }
  }
}

TEST(sums_round_where_they_say) {
  for (const int size : kSizes) {
    const auto x = random_values(index(size), 23), to = random_values(index(size), 24);
    const auto added = on_all(
        size, to, [&](const OpsKernels& ops, float* y) { ops.add(x.data(), 0.7f, size, y); });
    const auto multiple = on_all(size, to, [&](const OpsKernels& ops, float* y) {
      ops.add_multiple(x.data(), 0.7f, size, y);
    });
    const auto scaled =
        on_all(size, to, [&](const OpsKernels& ops, float* y) { ops.scale(y, 0.7f, size); });
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float sum = to[i] + x[i], product = x[i] * 0.7f;
      CHECK(added[i] == sum * 0.7f && multiple[i] == to[i] + product && scaled[i] == to[i] * 0.7f);
    }
  }
}
