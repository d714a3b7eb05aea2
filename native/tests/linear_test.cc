// Linear layers: bits for every number of rows and instruction set, values against double
// arithmetic, and the two packed layouts' corners.
#include "paceline/linear.h"

#include <cmath>
#include <limits>

#include "activations.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr WeightType kTypes[] = {WeightType::q4_0, WeightType::q8_0, WeightType::bf16,
                                 WeightType::f16, WeightType::f32};
const char* kTypeNames[] = {"q4_0", "q8_0", "bf16", "f16", "f32"};
constexpr double kHalfUlp = 0x1p-24;  // of float32, relative

std::string name(WeightType type) { return kTypeNames[static_cast<int>(type)]; }

std::vector<float> multiply_all(const Kernels& k, const Matrix& w, const std::vector<float>& x,
                                int rows, int panels_per_call = 1 << 20) {
  OwnedActivations activations(x, rows, w.inner);
  if (is_quantized(w.type)) activations.quantize(k);
  std::vector<float> out(static_cast<std::size_t>(rows * w.outputs), -1.0f);
  for (int p = 0; p < num_panels(w.outputs); p += panels_per_call) {
    const int end = std::min(p + panels_per_call, num_panels(w.outputs));
    k.linear.multiply(w, activations.view, p, end, out.data(), w.outputs);
  }
  return out;
}

struct Shape {
  int outputs, inner;
};
// Outputs that fill no panel, half of one, one with a rest, and several with a rest.
constexpr Shape kShapes[] = {{1, 32}, {16, 64}, {35, 96}, {200, 288}};

}  // namespace

TEST(rows_do_not_depend_on_how_many_share_the_call) {
  for (const WeightType type : kTypes) {
    for (const Shape shape : kShapes) {
      const auto weights = random_values(static_cast<std::size_t>(shape.outputs * shape.inner), 1);
      const PackedMatrix w(type, weights.data(), shape.outputs, shape.inner);
      const auto x = random_values(static_cast<std::size_t>(37 * shape.inner), 2);
      std::vector<float> expected;  // row by row, on the portable kernels
      for (int row = 0; row < 37; ++row) {
        const std::vector<float> one(x.begin() + row * shape.inner,
                                     x.begin() + (row + 1) * shape.inner);
        const auto y = multiply_all(*all_kernels().front(), w.view(), one, 1);
        expected.insert(expected.end(), y.begin(), y.end());
      }
      for (const Kernels* k : all_kernels()) {
        for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 37}) {
          const std::vector<float> some(x.begin(), x.begin() + rows * shape.inner);
          for (const int panels_per_call : {1, 3, 1 << 20}) {
            const auto y = multiply_all(*k, w.view(), some, rows, panels_per_call);
            CHECK(same_bits(y.data(), expected.data(), y.size()),
                  std::string(k->isa) + " " + name(type) + " M=" + std::to_string(rows) +
                      " outputs " + std::to_string(shape.outputs));
          }
        }
      }
    }
  }
}

TEST(products_are_near_exact_arithmetic) {
  constexpr int kRows = 5, kOutputs = 40, kInner = 320;
  const auto weights = random_values(kOutputs * kInner, 3);
  const auto x = random_values(kRows * kInner, 4);
  for (const WeightType type : kTypes) {
    const PackedMatrix w(type, weights.data(), kOutputs, kInner);
    for (const Kernels* k : all_kernels()) {
      OwnedActivations activations(x, kRows, kInner);
      activations.quantize(*k);
      const auto y = multiply_all(*k, w.view(), x, kRows);
      for (int m = 0; m < kRows; ++m) {
        const auto seen = is_quantized(type) ? activations.dequantized(m) : activations.row(m);
        for (int o = 0; o < kOutputs; ++o) {
          const auto row = quantize_row(type, weights.data() + o * kInner, kInner);
          const auto used = dequantize_row(type, row.data(), kInner);
          double exact = 0, magnitude = 0;
          for (int i = 0; i < kInner; ++i) {
            const double term =
                double(used[static_cast<std::size_t>(i)]) * seen[static_cast<std::size_t>(i)];
            exact += term;
            magnitude += std::fabs(term);
          }
          // One rounding per step of the chain, and three to get a block's scale and term.
          const double steps = is_quantized(type) ? kInner / 32 + 3 : kInner;
          const double error = std::fabs(y[static_cast<std::size_t>(m * kOutputs + o)] - exact);
          CHECK(error <= steps * kHalfUlp * magnitude, std::string(k->isa) + " " + name(type));
        }
      }
    }
  }
}

TEST(extreme_weights_and_activations_do_not_overflow_the_integers) {
  constexpr int kInner = 64;
  for (const WeightType type : {WeightType::q4_0, WeightType::q8_0}) {
    std::vector<std::uint8_t> row(source_row_bytes(type, kInner), 0x80);  // -128, or nibbles -8, 0
    const std::uint16_t one = to_f16(1.0f);
    for (std::size_t b = 0; b < row.size(); b += row.size() / 2) std::memcpy(&row[b], &one, 2);
    const auto used = dequantize_row(type, row.data(), kInner);
    const PackedMatrix w(type, row.data(), 1, kInner);
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(kInner, sign * 127.0f);
      double exact = 0;
      for (const float value : used) exact += double(value) * sign * 127.0;
      for (const Kernels* k : all_kernels()) {
        CHECK(multiply_all(*k, w.view(), x, 1)[0] == static_cast<float>(exact), k->isa);
      }
    }
  }
}

TEST(activations_are_quantized_alike_everywhere) {
  auto x = random_values(8 * 32, 5, 3.0f);
  const float tie = 0.5f / 127.0f;  // lands between two bytes where the block's maximum is 1
  for (int i = 0; i < 32; ++i) x[static_cast<std::size_t>(i)] = static_cast<float>(i - 16) * tie;
  x[0] = 1.0f;
  for (int i = 32; i < 64; ++i) x[static_cast<std::size_t>(i)] = 0.0f;
  for (int i = 64; i < 96; ++i) x[static_cast<std::size_t>(i)] = 1e-40f;
  OwnedActivations expected(x, 1, 256);
  expected.quantize(*all_kernels().front());
  for (const Kernels* k : all_kernels()) {
    OwnedActivations got(x, 1, 256);
    got.quantize(*k);
    CHECK(got.same_quants(expected), k->isa);
  }
  for (int b = 0; b < 8; ++b) {
    const float* block = x.data() + 32 * b;
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(block[i]));
    int total = 0;
    for (int i = 0; i < 32; ++i) {
      const int quant = expected.view.quants[32 * b + i];
      total += quant;
      // Half a step, and 127 steps' share of the rounding of the inverse.
      CHECK(std::fabs(block[i] - static_cast<float>(quant) * expected.view.scales[b]) <=
            0.5001f * largest / 127.0f + 1e-39f);
    }
    CHECK(expected.view.minus_8_sums[b] == -8 * total);
  }
}

TEST(what_is_not_a_number_reaches_the_output) {
  constexpr int kInner = 64;
  const auto weights = random_values(16 * kInner, 6);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    for (const WeightType type : kTypes) {
      const PackedMatrix w(type, weights.data(), 16, kInner);
      for (const Kernels* k : all_kernels()) {
        auto x = random_values(2 * kInner, 7);
        x[40] = bad;
        const auto y = multiply_all(*k, w.view(), x, 2);
        for (std::size_t o = 0; o < 16; ++o) {
          CHECK(!std::isfinite(y[o]), std::string(k->isa) + " " + name(type));
          CHECK(std::isfinite(y[16 + o]), std::string(k->isa) + " " + name(type));
        }
      }
    }
  }
}

TEST(half_floats_survive_the_round_trip) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    if ((half & 0x7c00) != 0x7c00 || (half & 0x3ff) == 0) CHECK(to_f16(from_f16(half)) == half);
    if ((half & 0x7f80) != 0x7f80 || (half & 0x7f) == 0) CHECK(to_bf16(from_bf16(half)) == half);
  }
  CHECK(std::isnan(from_f16(to_f16(std::nanf("")))) &&
        std::isnan(from_bf16(to_bf16(std::nanf("")))));
  CHECK(from_f16(to_f16(65519.0f)) == 65504.0f && std::isinf(from_f16(to_f16(65520.0f))));
}

TEST(unknown_instruction_sets_are_refused_by_name) {
  try {
    kernels_for("mmx");
    CHECK(false);
  } catch (const std::exception& error) {
    CHECK(std::strstr(error.what(), "'mmx'") && std::strstr(error.what(), "portable"));
  }
  for (const Kernels* k : all_kernels()) CHECK(&kernels_for(k->isa) == k);
}
