// The output head against a sort of the whole row.
#include "paceline/head.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "activations.h"
#include "paceline/thread_pool.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  std::vector<float> logits;
  std::vector<std::int32_t> ids;
  std::vector<float> best;
};

Result run_head(const Kernels& k, int threads, const Matrix& w, const std::vector<float>& x,
                const std::vector<int>& counts, float softcap) {
  const int rows = static_cast<int>(counts.size());
  const int stride = *std::max_element(counts.begin(), counts.end());
  OwnedActivations activations(x, rows, w.inner);
  if (is_quantized(w.type)) activations.quantize(k);
  Result result;
  result.logits.resize(static_cast<std::size_t>(rows * w.outputs), -1.0f);
  result.ids.resize(static_cast<std::size_t>(rows * stride), -7);
  result.best.resize(result.ids.size(), -7.0f);
  HeadScratch scratch;
  scratch.reserve(threads, rows, stride);
  HeadCall call;
  call.weights = &w;
  call.x = &activations.view;
  call.softcap = softcap;
  call.logits = result.logits.data();
  call.logits_stride = w.outputs;
  call.num_candidates = stride > 0 ? counts.data() : nullptr;
  call.candidates_stride = stride;
  call.candidate_ids = result.ids.data();
  call.candidate_logits = result.best.data();
  call.scratch = &scratch;
  ThreadPool pool(threads, false);
  for (int turn = 0; turn < 2; ++turn) {  // the scratch is used again
    pool.run([&](Worker& worker) { output_head(worker, k, call); });
  }
  return result;
}

// What the lists should hold, from the logits themselves.
Result sorted(const Result& got, int vocabulary, const std::vector<int>& counts) {
  const int stride = *std::max_element(counts.begin(), counts.end());
  Result expected{got.logits, {}, {}};
  for (std::size_t row = 0; row < counts.size(); ++row) {
    const float* logits = got.logits.data() + row * static_cast<std::size_t>(vocabulary);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(vocabulary));
    std::iota(ids.begin(), ids.end(), 0);
    const bool finite =
        std::all_of(logits, logits + vocabulary, [](float x) { return std::isfinite(x); });
    if (finite) {
      std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    }
    for (int place = 0; place < stride; ++place) {
      const bool filled = finite && place < counts[row] && place < vocabulary;
      const std::int32_t id = filled ? ids[static_cast<std::size_t>(place)] : -1;
      expected.ids.push_back(id);
      expected.best.push_back(filled ? logits[id] : -kInfinity);
    }
  }
  return expected;
}

void check(const Result& got, const Result& expected, const std::string& what) {
  CHECK(same_bits(got.logits, expected.logits), what);
  CHECK(got.ids == expected.ids, what);
  CHECK(same_bits(got.best, expected.best), what);
}

PackedMatrix random_matrix(WeightType type, int outputs, int inner) {
  const auto weights = random_values(static_cast<std::size_t>(outputs * inner), 11);
  return PackedMatrix(type, weights.data(), outputs, inner);
}

}  // namespace

TEST(candidates_are_the_best_of_the_row_however_it_is_split) {
  constexpr int kInner = 32;
  for (const int vocabulary : {1, 16, 500, 3001}) {
    const PackedMatrix w = random_matrix(WeightType::q8_0, vocabulary, kInner);
    const auto x = random_values(4 * kInner, 12);
    for (const std::vector<int>& counts :
         {std::vector<int>{0, 0, 0, 0}, {1, 1, 1, 1}, {0, 1, 7, 64}, {256, 256, 0, 3}}) {
      for (const float softcap : {0.0f, 30.0f}) {
        const Result first = run_head(*all_kernels().front(), 1, w.view(), x, counts, softcap);
        const Result expected = sorted(first, vocabulary, counts);
        for (const Kernels* k : all_kernels()) {
          for (const int threads : {1, 2, 5}) {
            check(run_head(*k, threads, w.view(), x, counts, softcap), expected,
                  std::string(k->isa) + " " + std::to_string(vocabulary));
          }
        }
      }
    }
  }
}

TEST(of_equals_the_lowest_ids_are_kept) {
  constexpr int kVocabulary = 700, kInner = 1;
  std::vector<float> weights(kVocabulary);
  for (int i = 0; i < kVocabulary; ++i) {
    weights[static_cast<std::size_t>(i)] = static_cast<float>(i * 7 % 5);  // five levels
  }
  const PackedMatrix w(WeightType::f32, weights.data(), kVocabulary, kInner);
  for (const Kernels* k : all_kernels()) {
    for (const int threads : {1, 3}) {
      const Result got = run_head(*k, threads, w.view(), {1.0f, 0.0f}, {200, 3}, 0.0f);
      check(got, sorted(got, kVocabulary, {200, 3}), k->isa);
      CHECK(got.ids[200] == 0 && got.ids[201] == 1 && got.ids[202] == 2, k->isa);
    }
  }
}

TEST(lists_keep_the_same_candidates_in_whatever_order_they_come) {
  Candidate kept[3];
  for (const bool backwards : {false, true}) {
    CandidateList list{.kept = kept, .capacity = 3};
    for (int i = 0; i < 50; ++i) {
      const std::int32_t id = backwards ? 49 - i : i;
      offer(list, {static_cast<float>(id % 10 / 5), id});
    }
    std::int32_t ids[4];
    float logits[4];
    merge_candidates(&list, 1, 4, ids, logits);
    CHECK(ids[0] == 5 && ids[1] == 6 && ids[2] == 7 && ids[3] == -1);
    CHECK(logits[2] == 1.0f && logits[3] == -kInfinity);
  }
}

TEST(a_row_that_is_not_finite_has_no_candidates) {
  constexpr int kVocabulary = 613, kInner = 4;
  auto weights = random_values(kVocabulary * kInner, 13);
  const auto x = random_values(2 * kInner, 14);
  for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
    for (const std::size_t place : {0, 300, kVocabulary - 1}) {
      // The product of this weight overflows in the first row and is zero in the second.
      auto spoiled = weights;
      spoiled[place * kInner] = 3e38f;
      const PackedMatrix w(WeightType::f32, spoiled.data(), kVocabulary, kInner);
      auto rows = x;
      rows[0] = std::isnan(bad) ? bad : std::copysign(10.0f, bad);
      rows[static_cast<std::size_t>(kInner)] = 0.0f;
      for (const Kernels* k : all_kernels()) {
        for (const int threads : {1, 2}) {
          const Result got = run_head(*k, threads, w.view(), rows, {5, 5}, 0.0f);
          check(got, sorted(got, kVocabulary, {5, 5}), k->isa);
          CHECK(got.ids[0] == -1 && got.ids[5] >= 0, k->isa);
        }
      }
    }
  }
}
