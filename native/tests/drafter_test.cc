// Whole drafts: against plain double arithmetic, alike on every instruction set and number of
// threads, and where they end.
#include "paceline/drafter.h"

#include <cmath>
#include <limits>

#include "draft_model.h"
#include "paceline/noise.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

using Row = std::vector<double>;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---- The drafter in double arithmetic ----

Row multiply(const FileMatrix& w, const Row& x) {
  Row y(static_cast<std::size_t>(w.rows), 0.0);
  for (std::size_t r = 0; r < y.size(); ++r) {
    for (std::size_t i = 0; i < x.size(); ++i) y[r] += double(w.numbers[r * x.size() + i]) * x[i];
  }
  return y;
}

void norm(double* x, const std::vector<float>& weight) {
  double total = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) total += x[i] * x[i];
  const double root = std::sqrt(total / double(weight.size()) + double(1e-6f));
  for (std::size_t i = 0; i < weight.size(); ++i) x[i] = x[i] / root * double(weight[i]);
}

Row normed(Row x, const std::vector<float>& weight) {
  norm(x.data(), weight);
  return x;
}

void turn(double* head, const std::vector<float>& frequencies, double place) {
  const std::size_t half = frequencies.size();
  for (std::size_t i = 0; i < half; ++i) {
    const double angle = place * double(frequencies[i]);
    const double a = head[i], b = head[i + half];
    head[i] = a * std::cos(angle) - b * std::sin(angle);
    head[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// One head over keys and values [S][H].
Row attend_slowly(const double* query, const float* keys, const float* values, std::size_t count,
                  std::size_t size) {
  Row scores(count, 0.0), out(size, 0.0);
  for (std::size_t s = 0; s < count; ++s) {
    for (std::size_t i = 0; i < size; ++i) scores[s] += query[i] * double(keys[s * size + i]);
  }
  const double highest = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - highest);
  for (std::size_t s = 0; s < count; ++s) {
    for (std::size_t i = 0; i < size; ++i) {
      out[i] += scores[s] / total * double(values[s * size + i]);
    }
  }
  return out;
}

struct SlowDrafter {
  const DraftModel& model;
  const KVCache& cache;
  double place;

  Row attention(const LayerShape& layer, Row query, const std::vector<float>& query_norm) const {
    const std::int64_t last = cache.length() - 1;
    const std::int64_t first =
        layer.window ? std::max<std::int64_t>(0, last - layer.window + 1) : 0;
    const auto seen = cache.store(layer.kv_layer).read(first, last);
    const auto size = static_cast<std::size_t>(layer.head_dim);
    const auto count = static_cast<std::size_t>(last - first + 1);
    const auto heads = static_cast<std::size_t>(model.shape.num_heads);
    const std::size_t shared = heads / static_cast<std::size_t>(layer.num_kv_heads);
    Row out;
    for (std::size_t h = 0; h < heads; ++h) {
      double* head = query.data() + h * size;
      norm(head, query_norm);
      turn(head, layer.sliding ? model.shape.sliding_frequencies : model.shape.global_frequencies,
           place);
      const std::size_t at = h / shared * count * size;
      const Row mixed =
          attend_slowly(head, seen.keys.data() + at, seen.values.data() + at, count, size);
      out.insert(out.end(), mixed.begin(), mixed.end());
    }
    return out;
  }

  Row run_layer(std::size_t index, Row x) const {
    const std::string in = "layers." + std::to_string(index) + ".";
    const auto weight = [&](const char* name) -> const FileMatrix& {
      return model.tensors.at(in + name);
    };
    const auto add = [&x](const Row& y) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    };
    Row y = normed(x, weight("input_layernorm.weight").numbers);
    y = attention(model.shape.layers[index], multiply(weight("self_attn.q_proj.weight"), y),
                  weight("self_attn.q_norm.weight").numbers);
    y = multiply(weight("self_attn.o_proj.weight"), y);
    add(normed(y, weight("post_attention_layernorm.weight").numbers));
    y = normed(x, weight("pre_feedforward_layernorm.weight").numbers);
    const Row up = multiply(weight("mlp.up_proj.weight"), y);
    y = multiply(weight("mlp.gate_proj.weight"), y);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double inner = std::sqrt(2 / M_PI) * (y[i] + 0.044715 * y[i] * y[i] * y[i]);
      y[i] = y[i] * (1 + std::tanh(inner)) / 2 * up[i];
    }
    y = multiply(weight("mlp.down_proj.weight"), y);
    add(normed(y, weight("post_feedforward_layernorm.weight").numbers));
    for (double& value : x) value *= double(weight("layer_scalar").numbers[0]);
    return x;
  }

  // Scores by token id; -infinity where no kept cluster holds the token.
  Row scores(const Row& x) const {
    Row all = multiply(model.tensors.at("embed_tokens.weight"), x);
    if (model.ordering.empty()) return all;
    const Row fits = multiply(model.tensors.at("masked_embedding.centroids.weight"), x);
    Row sorted = fits;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const double bound = sorted[static_cast<std::size_t>(model.shape.centroid_top_k) - 1];
    const std::size_t size = all.size() / fits.size();
    for (std::size_t place = 0; place < all.size(); ++place) {
      if (fits[place / size] < bound) {
        all[static_cast<std::size_t>(model.ordering[place])] = -kInfinity;
      }
    }
    return all;
  }

  // The margin and the first token of one step; `hidden` becomes that of the next.
  Drawn step(std::int64_t token, Row& hidden, std::uint64_t position, const DrawRule& rule) const {
    const auto wide = static_cast<std::size_t>(model.target.hidden_size);
    Row x(wide);
    for (std::size_t i = 0; i < wide; ++i) {
      x[i] = double(model.embeddings.numbers[static_cast<std::size_t>(token) * wide + i]) *
             double(model.target.embedding_scale);
    }
    x.insert(x.end(), hidden.begin(), hidden.end());
    x = multiply(model.tensors.at("pre_projection.weight"), x);
    for (std::size_t i = 0; i < model.shape.layers.size(); ++i) x = run_layer(i, x);
    x = normed(x, model.numbers("norm.weight"));
    hidden = multiply(model.tensors.at("post_projection.weight"), x);
    Leaders leaders;
    const Row values = scores(x);
    for (std::size_t id = 0; id < values.size(); ++id) {
      const auto bits = noise_bits(rule.seed, position, static_cast<std::uint32_t>(id));
      const double noised =
          rule.temperature > 0 ? values[id] / rule.temperature + gumbel(bits) : values[id];
      leaders.offer(noised, static_cast<std::int32_t>(id));
    }
    return leaders.drawn();
  }
};

// ---- The drafter under test ----

struct Setting {
  const Kernels* kernels = all_kernels().back();
  int threads = 1;
  std::int64_t length = 70;
  bool ordering_first = false;
};

DraftRequest request_for(const DraftModel& model, int max_draft_tokens, double temperature) {
  DraftRequest request;
  request.last_token = 5;
  request.hidden = model.hidden.data();
  request.max_draft_tokens = max_draft_tokens;
  request.place = 69;
  request.rule = {temperature, 4242, {3, 17}, {-kInfinity, 1.5}};
  return request;
}

Draft run_draft(const DraftModel& model, const DraftRequest& request, const Setting& setting = {}) {
  ThreadPool pool(setting.threads, false);
  const RowTable rows = model.rows();
  Drafter drafter(pool, model.shape, model.target, rows, *setting.kernels);
  model.load_into(drafter, setting.ordering_first);
  const auto cache = model.cache(setting.length, *setting.kernels);
  const Draft first = drafter.draft(*cache, request);
  const Draft again = drafter.draft(*cache, request);
  CHECK(first.tokens == again.tokens && first.confidences == again.confidences, "second draft");
  return first;
}

bool same(const Draft& a, const Draft& b) {
  return a.tokens == b.tokens && a.confidences == b.confidences;
}

}  // namespace

TEST(drafts_are_near_plain_arithmetic) {
  for (const int centroids : {0, 12}) {
    const DraftModel model(WeightType::f32, centroids, 3);
    for (const std::int64_t length : {1, 24, 70, 300}) {
      for (const double temperature : {0.0, 0.8}) {
        Setting setting;
        setting.length = length;
        DraftRequest request = request_for(model, 6, temperature);
        request.rule.bias_ids.clear();
        request.rule.biases.clear();
        const Draft draft = run_draft(model, request, setting);
        CHECK(draft.tokens.size() == 6);
        const auto cache = model.cache(length, *setting.kernels);
        const SlowDrafter slow{model, *cache, double(request.place)};
        Row hidden(model.hidden.begin(), model.hidden.end());
        std::int64_t token = request.last_token;
        for (std::size_t step = 0; step < draft.tokens.size(); ++step) {
          const auto position = static_cast<std::uint64_t>(length) + 1 + step;
          const Drawn expected = slow.step(token, hidden, position, request.rule);
          // Margins of size 1. A sum of up to 192 terms errs by about sqrt(192) roundings of 2^-24,
          // 8e-7; some ten of them and six steps follow each other.
          const double error = std::fabs(draft.confidences[step] - expected.confidence);
          CHECK(draft.tokens[step] == expected.token, "step " + std::to_string(step));
          CHECK(error < 5e-5, std::to_string(error) + " of " + std::to_string(expected.confidence));
          token = draft.tokens[step];
        }
      }
    }
  }
}

TEST(drafts_are_the_same_everywhere) {
  for (const WeightType type :
       {WeightType::q4_0, WeightType::q8_0, WeightType::bf16, WeightType::f16, WeightType::f32}) {
    for (const int centroids : {0, 12}) {
      const DraftModel model(type, centroids, 3);
      for (const double temperature : {0.0, 1.0}) {
        const DraftRequest request = request_for(model, 5, temperature);
        const Draft expected = run_draft(model, request, {all_kernels().front(), 1});
        CHECK(expected.tokens.size() == 5);
        for (const std::int32_t token : expected.tokens) CHECK(token != 3, "suppressed");
        for (const Kernels* k : all_kernels()) {
          for (const int threads : {1, 3}) {
            const Setting setting{k, threads, 70, threads == 3};
            CHECK(same(run_draft(model, request, setting), expected), k->isa);
          }
        }
      }
    }
  }
}

TEST(a_longer_draft_begins_with_the_shorter_one) {
  const DraftModel model(WeightType::q8_0, 12, 3);
  const Draft all = run_draft(model, request_for(model, 8, 1.0));
  for (int count = 0; count < 8; ++count) {
    const Draft some = run_draft(model, request_for(model, count, 1.0));
    const auto end = static_cast<std::ptrdiff_t>(count);
    CHECK(some.tokens == std::vector<std::int32_t>(all.tokens.begin(), all.tokens.begin() + end));
    CHECK(some.confidences ==
          std::vector<double>(all.confidences.begin(), all.confidences.begin() + end));
  }
}

TEST(a_token_below_its_bound_is_not_kept) {
  for (const double temperature : {0.0, 1.0}) {
    const DraftModel model(WeightType::q8_0);
    const Draft all = run_draft(model, request_for(model, 6, temperature));
    for (std::size_t step = 0; step < 6; ++step) {
      DraftRequest request = request_for(model, 6, temperature);
      request.min_confidences.assign(step, 0.0);
      request.min_confidences.push_back(all.confidences[step]);
      CHECK(same(run_draft(model, request), all), "the bound itself is enough");
      request.min_confidences.back() = std::nextafter(all.confidences[step], kInfinity);
      CHECK(run_draft(model, request).tokens.size() == step);
    }
  }
}

TEST(a_token_that_ends_the_turn_is_kept_and_the_last) {
  const DraftModel model(WeightType::q8_0);
  const Draft all = run_draft(model, request_for(model, 6, 1.0));
  for (const std::int32_t end : all.tokens) {
    DraftRequest request = request_for(model, 6, 1.0);
    request.end_token_ids = {299, end};
    const Draft draft = run_draft(model, request);
    const auto place = std::find(all.tokens.begin(), all.tokens.end(), end) - all.tokens.begin();
    CHECK(draft.tokens.size() == static_cast<std::size_t>(place) + 1);
    CHECK(draft.tokens.back() == end);
  }
}

TEST(broken_drafters_cost_their_drafts_only) {
  for (const WeightType type : {WeightType::q8_0, WeightType::bf16, WeightType::f32}) {
    for (const int centroids : {0, 12}) {
      const DraftModel whole(type, centroids, 3);
      for (const char* name :
           {"pre_projection.weight", "norm.weight", "layers.1.layer_scalar",
            "layers.0.self_attn.q_norm.weight", "layers.1.post_feedforward_layernorm.weight"}) {
        DraftModel model = whole;
        const FileMatrix& old = whole.tensors.at(name);
        std::vector<float> huge(old.numbers.size(), 6e4f);  // finite in every type
        if (old.type != WeightType::q8_0) std::fill(huge.begin(), huge.end(), 3e38f);
        model.tensors.insert_or_assign(name, FileMatrix(old.type, old.rows, old.columns, huge));
        for (const Kernels* k : all_kernels()) {
          const Draft draft = run_draft(model, request_for(model, 3, 1.0), {k});
          CHECK(draft.tokens.size() == 3, name);
          for (const std::int32_t token : draft.tokens) CHECK(token >= 0 && token < 300, name);
          for (const double margin : draft.confidences) CHECK(margin >= 0.0, name);
        }
      }
      DraftModel model = whole;
      model.hidden[7] = std::nanf("");
      for (const double temperature : {0.0, 1.0}) {
        DraftRequest request = request_for(model, 3, temperature);
        const Draft draft = run_draft(model, request);
        CHECK(draft.tokens.size() == 3 && draft.confidences == std::vector<double>(3, 0.0));
        request.min_confidences = {0.1};
        CHECK(run_draft(model, request).tokens.empty());
      }
    }
  }
}

TEST(what_cannot_be_drafted_is_refused_by_name) {
  const DraftModel model(WeightType::f32);
  const auto refusal = [&](const DraftRequest& request, std::int64_t length = 70) {
    return paceline::testing::refusal(
        [&] { run_draft(model, request, {all_kernels().back(), 1, length}); });
  };
  DraftRequest request = request_for(model, 3, 1.0);
  CHECK(refusal(request).empty());
  CHECK(refusal(request, 0).find("empty") != std::string::npos);
  for (const std::int64_t token : {-1, 300}) {
    request.last_token = token;
    CHECK(refusal(request).find(std::to_string(token)) != std::string::npos);
  }
  request.last_token = 299;
  request.rule.bias_ids[1] = 300;
  CHECK(refusal(request).find("300") != std::string::npos);
  request.rule.bias_ids.pop_back();
  CHECK(refusal(request).find("biases") != std::string::npos);
  request = request_for(model, kMaxDraftTokens + 1, 1.0);
  CHECK(refusal(request).find("257") != std::string::npos);
  DecoderShape other = model.shape;
  other.layers[0].kv_layer = 2;
  ThreadPool pool(1, false);
  const RowTable rows = model.rows();
  CHECK(refuses([&] { Drafter drafter(pool, other, model.target, rows); }));
}
