// The drafter's head against scores of the matrix as it lies in the file, whose bits must be equal,
// and a scan.
#include "paceline/draft_head.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "activations.h"
#include "draft_model.h"
#include "paceline/noise.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct HeadModel {
  DraftModel model;
  DrawRule rule;
};

std::vector<float> scores_of(const Kernels& k, const FileMatrix& matrix,
                             const std::vector<float>& x) {
  const PackedMatrix packed(matrix.type, matrix.bytes.data(), matrix.rows, matrix.columns);
  OwnedActivations activations(x, 1, matrix.columns);
  if (is_quantized(matrix.type)) activations.quantize(k);
  std::vector<float> out(static_cast<std::size_t>(matrix.rows));
  k.linear.multiply(packed.view(), activations.view, 0, num_panels(matrix.rows), out.data(), 0);
  return out;
}

// Token ids that are scored: all, or those of the best clusters.
std::vector<std::int64_t> slow_tokens(const Kernels& k, const DraftModel& model,
                                      const std::vector<float>& x) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(model.shape.vocab_size));
  std::iota(tokens.begin(), tokens.end(), 0);
  if (model.shape.num_centroids == 0) return tokens;
  const auto fits = scores_of(k, model.tensors.at("masked_embedding.centroids.weight"), x);
  std::vector<std::size_t> clusters(fits.size());
  std::iota(clusters.begin(), clusters.end(), 0);
  std::stable_sort(clusters.begin(), clusters.end(),
                   [&](std::size_t a, std::size_t b) { return fits[a] > fits[b]; });
  clusters.resize(static_cast<std::size_t>(model.shape.centroid_top_k));
  const std::size_t size = tokens.size() / fits.size();
  tokens.clear();
  for (const std::size_t cluster : clusters) {
    for (std::size_t i = 0; i < size; ++i) tokens.push_back(model.ordering[cluster * size + i]);
  }
  return tokens;
}

Drawn slow_draw(const Kernels& k, const HeadModel& head, const std::vector<float>& x,
                std::uint64_t position) {
  const auto scores = scores_of(k, head.model.tensors.at("embed_tokens.weight"), x);
  const DrawRule& rule = head.rule;
  std::vector<std::pair<double, std::int64_t>> all;  // (minus the value, id): sorts as wanted
  for (const std::int64_t token : slow_tokens(k, head.model, x)) {
    double value = scores[static_cast<std::size_t>(token)];
    for (std::size_t i = 0; i < rule.biases.size(); ++i) {
      if (rule.bias_ids[i] == token) value += rule.biases[i];
    }
    all.emplace_back(-value, token);
  }
  const double highest = -std::min_element(all.begin(), all.end())->first;
  if (highest == -kInfinity) return {static_cast<std::int32_t>(all.front().second), 0.0};
  for (auto& [minus, token] : all) {
    const auto bits = noise_bits(rule.seed, position, static_cast<std::uint32_t>(token));
    if (rule.temperature > 0.0) minus = -((-minus - highest) / rule.temperature + gumbel(bits));
  }
  std::sort(all.begin(), all.end());
  const double margin = all.size() > 1 ? all[1].first - all[0].first : kInfinity;
  return {static_cast<std::int32_t>(all[0].second), margin};
}

Drawn fast_draw(const Kernels& k, int threads, const HeadModel& head, const std::vector<float>& x,
                std::uint64_t position, bool ordering_first) {
  ThreadPool pool(threads, false);
  DraftHead fast(pool, head.model.shape);
  Parameters parameters(pool);
  fast.expect(parameters);
  const bool has_order = !head.model.ordering.empty();
  if (has_order && ordering_first) parameters.load(head.model.ordering_tensor());
  const std::string names[] = {"embed_tokens.weight", "masked_embedding.centroids.weight"};
  for (const std::string& name : names) {
    const auto found = head.model.tensors.find(name);
    if (found != head.model.tensors.end()) parameters.load(found->second.tensor(name));
  }
  if (has_order && !ordering_first) parameters.load(head.model.ordering_tensor());
  parameters.finish();
  OwnedActivations activations(x, 1, head.model.shape.hidden_size);
  activations.quantize(k);
  fast.set_rule(head.rule);
  Drawn drawn;
  for (int turn = 0; turn < 2; ++turn) {  // nothing stays behind
    pool.run([&](Worker& worker) {
      fast.draw(worker, k, activations.view, position, [&](Drawn result) { drawn = result; });
    });
  }
  return drawn;
}

void check(const HeadModel& head, unsigned seed, const std::string& what) {
  const auto x = random_values(static_cast<std::size_t>(head.model.shape.hidden_size), seed, 3.0f);
  const Drawn expected = slow_draw(*all_kernels().front(), head, x, seed);
  for (const Kernels* k : all_kernels()) {
    for (const int threads : {1, 3}) {
      const Drawn got = fast_draw(*k, threads, head, x, seed, threads == 3);
      CHECK(got.token == expected.token && got.confidence == expected.confidence,
            what + " " + k->isa + " token " + std::to_string(got.token) + " for " +
                std::to_string(expected.token));
    }
  }
}

struct Clusters {
  int num_centroids, top_k, vocabulary;
};
// Dense; a cluster in one panel, across panels, of exactly one, of several pieces; all kept.
constexpr Clusters kClusters[] = {{0, 0, 300}, {60, 7, 300}, {12, 3, 300},  {20, 4, 320},
                                  {2, 1, 600}, {5, 5, 1000}, {300, 9, 300}, {0, 0, 1}};

}  // namespace

TEST(tokens_and_margins_are_those_of_the_file_order) {
  for (const WeightType type :
       {WeightType::q4_0, WeightType::q8_0, WeightType::bf16, WeightType::f16, WeightType::f32}) {
    for (const Clusters c : kClusters) {
      HeadModel head{DraftModel(type, c.num_centroids, c.top_k, c.vocabulary), {}};
      for (const double temperature : {0.0, 1.0}) {
        head.rule = {temperature, 77, {}, {}};
        check(head, 1, "clusters " + std::to_string(c.num_centroids));
      }
    }
  }
}

TEST(biases_reach_their_tokens_wherever_they_lie) {
  for (const Clusters c : kClusters) {
    HeadModel head{DraftModel(WeightType::q8_0, c.num_centroids, c.top_k, c.vocabulary), {}};
    for (unsigned seed = 1; seed < 6; ++seed) {
      head.rule = {seed % 2 ? 1.0 : 0.0, seed, {}, {}};
      // The best two of the unbiased draw fall, and whoever comes instead is helped.
      for (int i = 0; i < 3 && i < c.vocabulary - 1; ++i) {
        const auto x =
            random_values(static_cast<std::size_t>(head.model.shape.hidden_size), seed, 3.0f);
        const Drawn best = slow_draw(*all_kernels().front(), head, x, seed);
        const auto known =
            std::find(head.rule.bias_ids.begin(), head.rule.bias_ids.end(), best.token);
        if (known != head.rule.bias_ids.end()) break;
        head.rule.bias_ids.push_back(best.token);
        head.rule.biases.push_back(i < 2 ? -kInfinity : 0.75);
      }
      check(head, seed, "biased, clusters " + std::to_string(c.num_centroids));
    }
  }
}

TEST(equal_scores_give_the_lowest_id) {
  for (const Clusters c : kClusters) {
    HeadModel head{DraftModel(WeightType::f32, c.num_centroids, c.top_k, c.vocabulary), {}};
    FileMatrix& embedding = head.model.tensors.at("embed_tokens.weight");
    std::fill(embedding.bytes.begin(), embedding.bytes.end(), std::uint8_t{0});
    check(head, 4, "ties, clusters " + std::to_string(c.num_centroids));
  }
}

TEST(broken_rows_give_no_confidence) {
  for (const Clusters c : kClusters) {
    const HeadModel head{DraftModel(WeightType::f32, c.num_centroids, c.top_k, c.vocabulary), {}};
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), 3e38f}) {
      std::vector<float> x(static_cast<std::size_t>(head.model.shape.hidden_size), bad);
      for (const Kernels* k : all_kernels()) {
        const Drawn got = fast_draw(*k, 2, head, x, 1, false);
        CHECK(got.token >= 0 && got.token < c.vocabulary, k->isa);
        CHECK(!std::isnan(got.confidence) && (bad == 3e38f || got.confidence == 0.0), k->isa);
      }
    }
  }
}

TEST(bad_tensors_are_refused_by_name) {
  ThreadPool pool(1, false);
  const DraftModel model(WeightType::f32, 12, 3, 300);
  const auto refusal = [&](const Tensor& first, const Tensor& second) {
    DraftHead head(pool, model.shape);
    Parameters parameters(pool);
    head.expect(parameters);
    return paceline::testing::refusal([&] {
      parameters.load(first);
      parameters.load(second);
    });
  };
  const FileMatrix& embedding = model.tensors.at("embed_tokens.weight");
  const Tensor good = embedding.tensor("embed_tokens.weight");
  CHECK(refusal(good, model.ordering_tensor()).empty());
  DraftModel twice = model, outside = model;
  twice.ordering[7] = twice.ordering[8];
  outside.ordering[7] = 300;
  CHECK(refusal(good, twice.ordering_tensor()).find("twice") != std::string::npos);
  CHECK(refusal(good, outside.ordering_tensor()).find("300") != std::string::npos);
  Tensor cut = model.ordering_tensor();
  cut.size -= 8;
  CHECK(refusal(good, cut).find("token_ordering") != std::string::npos);
  FileMatrix spoiled = embedding;
  const float nan = std::nanf("");
  std::memcpy(spoiled.bytes.data() + spoiled.bytes.size() - 4, &nan, 4);
  const Tensor bad = spoiled.tensor("embed_tokens.weight");
  CHECK(refusal(bad, model.ordering_tensor()).find("embed_tokens") != std::string::npos);
  CHECK(refusal(model.ordering_tensor(), bad).find("NaN") != std::string::npos);
  DecoderShape uneven = model.shape;
  uneven.num_centroids = 7;
  CHECK(refuses([&] { DraftHead head(pool, uneven); }));
}
