// The Python module paceline._native. The only file that knows Python.
//
// Arrays come from files: every size and range is checked here or in the class behind, and what is
// wrong is a ValueError; an array of another dtype or rank is nanobind's TypeError. Long calls run
// without the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "paceline/acceptance.h"
#include "paceline/bandwidth.h"
#include "paceline/draft_length.h"
#include "paceline/drafter.h"
#include "paceline/errors.h"
#include "paceline/file_range.h"
#include "paceline/gemma4.h"
#include "paceline/kernels.h"
#include "paceline/kv_cache.h"
#include "paceline/score_row.h"
#include "paceline/shapes.h"
#include "paceline/suffix.h"
#include "paceline/thread_pool.h"
#include "paceline/weights.h"
#include "paceline/written_text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace paceline {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using NewRows = nb::ndarray<T, nb::numpy, nb::ndim<2>, nb::c_contig>;
using NewHeads = nb::ndarray<float, nb::numpy, nb::ndim<3>, nb::c_contig>;
using Bytes = Vector<std::uint8_t>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// Numbers that nobody sets twice.
template <class T>
std::shared_ptr<T[]> new_numbers(std::size_t count) {
  return std::make_shared_for_overwrite<T[]>(count);
}

// Rows of them for NumPy, which keeps them all alive.
template <class T>
NewRows<T> to_rows(const std::shared_ptr<T[]>& numbers, std::size_t first, std::size_t rows,
                   std::size_t columns) {
  using Kept = std::shared_ptr<T[]>;
  nb::capsule owner(new Kept(numbers), [](void* it) noexcept { delete static_cast<Kept*>(it); });
  return NewRows<T>(numbers.get() + first * columns, {rows, columns}, owner);
}

template <class T>
std::vector<T> to_vector(const Vector<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

WeightType weight_type(const std::string& dtype) {
  if (dtype == "Q4_0") return WeightType::q4_0;
  if (dtype == "Q8_0") return WeightType::q8_0;
  if (dtype == "BF16") return WeightType::bf16;
  if (dtype == "F16") return WeightType::f16;
  if (dtype == "F32") return WeightType::f32;
  refuse("dtype '" + dtype + "' is unknown: expected Q4_0, Q8_0, BF16, F16 or F32.");
}

void check_bytes(WeightType type, const Bytes& data, int outputs, int inner) {
  if (outputs < 1 || inner < 1) refuse("a matrix needs at least one output and one column.");
  if (is_quantized(type) && inner % kBlockColumns != 0) {
    refuse("rows of " + std::to_string(inner) + " columns do not divide into blocks of 32.");
  }
  const std::size_t expected = outputs * source_row_bytes(type, inner);
  if (data.size() != expected) {
    refuse("the matrix has " + std::to_string(data.size()) + " bytes, its shape implies " +
           std::to_string(expected) + ".");
  }
}

// One linear layer, for tests: y = W x.
NewRows<float> multiply(const std::string& dtype, const Bytes& data, int outputs, int inner,
                        const FloatRows& x) {
  const WeightType type = weight_type(dtype);
  check_bytes(type, data, outputs, inner);
  if (x.shape(1) != static_cast<std::size_t>(inner)) {
    refuse("x has " + std::to_string(x.shape(1)) + " columns, the matrix " + std::to_string(inner) +
           ".");
  }
  const int num_rows = static_cast<int>(x.shape(0));
  const auto out = new_numbers<float>(x.shape(0) * static_cast<std::size_t>(outputs));
  if (num_rows > 0) {
    nb::gil_scoped_release unlocked;
    const PackedMatrix weights(type, data.data(), outputs, inner);
    std::vector<float> values(x.data(), x.data() + x.size());
    std::vector<std::int8_t> quants(x.size());
    const std::size_t blocks = is_quantized(type) ? inner / kBlockColumns : 0;
    std::vector<float> scales(blocks * num_rows);
    std::vector<std::int32_t> sums(blocks * num_rows);
    const Activations rows{num_rows,      inner,         values.data(),
                           quants.data(), scales.data(), sums.data()};
    const LinearKernels& linear = kernels().linear;
    for (int row = 0; blocks > 0 && row < num_rows; ++row) {
      linear.quantize(rows, row, 0, static_cast<int>(blocks));
    }
    linear.multiply(weights.view(), rows, 0, num_panels(outputs), out.get(), outputs);
  }
  return to_rows(out, 0, x.shape(0), static_cast<std::size_t>(outputs));
}

constexpr int kMaxThreads = 1024;
constexpr std::int64_t kMaxReadBytes = std::int64_t{1} << 36;
constexpr int kMaxMeasuredRows = 512;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 30;

void make_pool(ThreadPool* pool, int threads, bool pin) {
  check_range("threads", threads, 1, kMaxThreads);
  new (pool) ThreadPool(threads, pin);
}

double measure_bandwidth(ThreadPool& pool, std::int64_t num_bytes) {
  check_range("num_bytes", num_bytes, 1, kMaxReadBytes);
  nb::gil_scoped_release unlocked;
  return read_bandwidth(pool, static_cast<std::size_t>(num_bytes));
}

double measure_products(ThreadPool& pool, const std::string& dtype, int num_rows) {
  check_range("num_rows", num_rows, 1, kMaxMeasuredRows);
  const WeightType type = weight_type(dtype);
  nb::gil_scoped_release unlocked;
  return product_rate(pool, type, num_rows);
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Kernels* candidate : all_kernels()) names.emplace_back(candidate->isa);
  return names;
}

// ---- Target, cache and drafter ----

using File = std::shared_ptr<const FileRange>;

// The array stays alive as long as somebody reads rows from it.
template <class Model>
void load(Model& model, const std::string& name, const std::string& dtype, const Bytes& data,
          const File& file) {
  const Tensor tensor{name, dtype, data.data(), data.size(), std::make_shared<Bytes>(data), file};
  nb::gil_scoped_release unlocked;
  model.load(tensor);
}

struct Cache {
  std::unique_ptr<KVCache> inner;
  const Target* target;  // kept alive by Python, so that nobody else gets its address
};

Cache new_cache(const Target& target, std::int64_t max_length, std::int64_t slack) {
  check_range("max_length", max_length, 1, kMaxPositions);
  check_range("slack", slack, 0, kMaxPositions);
  return {target.new_cache(max_length, slack), &target};
}

void check_cache(const Cache* cache, const Target& target) {
  if (cache == nullptr || cache->target != &target) {
    refuse("the KV cache belongs to another target: use one that this target's new_cache() gave.");
  }
}

// K and V, [G, positions, H] each, for tests.
std::tuple<NewHeads, NewHeads> read_cache(const Cache& cache, int layer, std::int64_t first,
                                          std::int64_t last) {
  const auto num_layers = static_cast<std::int64_t>(cache.target->shape().layers.size());
  check_range("layer", layer, 0, num_layers - 1);
  const LayerStore& store = cache.inner->store(layer);
  const std::int64_t length = cache.inner->length();
  const std::int64_t oldest = store.is_ring() ? length - store.num_slots() : 0;
  check_range("last", last, 0, length - 1);
  check_range("first", first, std::max<std::int64_t>(oldest, 0), last);
  LayerStore::Numbers numbers = store.read(first, last);
  const auto give = [&](std::vector<float>& values) {
    auto* kept = new std::vector<float>(std::move(values));
    nb::capsule owner(kept, [](void* it) noexcept { delete static_cast<std::vector<float>*>(it); });
    return NewHeads(
        kept->data(),
        {static_cast<std::size_t>(store.num_kv_heads()), static_cast<std::size_t>(last - first + 1),
         static_cast<std::size_t>(store.head_dim())},
        owner);
  };
  return {give(numbers.keys), give(numbers.values)};
}

// The final-normed row of one token, as a draft starts from it.
struct Hidden {
  std::shared_ptr<float[]> rows;
  std::size_t row, size;

  const float* data() const { return rows.get() + row * size; }
};

void make_hidden(Hidden* hidden, const Vector<float>& values) {
  Hidden made{new_numbers<float>(values.size()), 0, values.size()};
  std::copy(values.data(), values.data() + values.size(), made.rows.get());
  new (hidden) Hidden(std::move(made));
}

// All that a pass writes.
struct PassRows {
  PassRows(std::size_t rows, std::size_t vocab_size, std::size_t hidden_size, std::size_t most)
      : vocab_size(vocab_size),
        hidden_size(hidden_size),
        most(most),
        logits(new_numbers<float>(rows * vocab_size)),
        hidden(new_numbers<float>(rows * hidden_size)),
        candidate_ids(new_numbers<std::int32_t>(rows * most)),
        candidate_logits(new_numbers<float>(rows * most)) {}

  std::size_t vocab_size, hidden_size, most;
  std::shared_ptr<float[]> logits, hidden;
  std::shared_ptr<std::int32_t[]> candidate_ids;
  std::shared_ptr<float[]> candidate_logits;
};

// One sequence's rows of a pass. An array is made only when somebody looks at it: behind a pass,
// which has emptied the processor's caches, four of them take a tenth of a millisecond.
class Output {
 public:
  Output(std::shared_ptr<const PassRows> pass, std::size_t first, std::size_t count)
      : pass_(std::move(pass)), first_(first), count_(count) {}

  NewRows<float> logits() const { return rows(pass_->logits, pass_->vocab_size); }
  NewRows<std::int32_t> candidate_ids() const { return rows(pass_->candidate_ids, pass_->most); }
  NewRows<float> candidate_logits() const { return rows(pass_->candidate_logits, pass_->most); }

  std::vector<Hidden> hidden() const {
    std::vector<Hidden> rows;
    for (std::size_t row = first_; row < first_ + count_; ++row) {
      rows.push_back({pass_->hidden, row, pass_->hidden_size});
    }
    return rows;
  }

  std::vector<std::int32_t> best_tokens(std::int64_t row) const {
    check_range("row", row, 0, static_cast<std::int64_t>(count_) - 1);
    const std::size_t at = first_ + static_cast<std::size_t>(row);
    const std::int32_t* ids = pass_->candidate_ids.get() + at * pass_->most;
    return {ids, std::find(ids, ids + pass_->most, -1)};
  }

 private:
  template <class T>
  NewRows<T> rows(const std::shared_ptr<T[]>& numbers, std::size_t columns) const {
    return to_rows(numbers, first_, count_, columns);
  }

  std::shared_ptr<const PassRows> pass_;
  std::size_t first_, count_;
};

using TokenIds = std::vector<std::vector<std::int32_t>>;

// Numbers of rows are checked by Target::forward.
std::vector<SequenceRows> to_sequences(const Target& target, const std::vector<Cache*>& caches,
                                       const TokenIds& token_ids,
                                       const std::vector<int>& num_outputs,
                                       const std::vector<int>& num_candidates) {
  const std::size_t count = caches.size();
  if (token_ids.size() != count || num_outputs.size() != count || num_candidates.size() != count) {
    refuse("caches, token_ids, num_outputs and num_candidates must be equally long, got " +
           std::to_string(count) + ", " + std::to_string(token_ids.size()) + ", " +
           std::to_string(num_outputs.size()) + " and " + std::to_string(num_candidates.size()) +
           ".");
  }
  std::vector<SequenceRows> sequences;
  for (std::size_t i = 0; i < count; ++i) {
    check_cache(caches[i], target);
    const auto num_rows = static_cast<std::int64_t>(token_ids[i].size());
    check_range("number of token_ids", num_rows, 1, kMaxPositions);
    check_range("num_outputs", num_outputs[i], 0, num_rows);
    check_range("num_candidates", num_candidates[i], 0, kMaxCandidates);
    sequences.push_back({caches[i]->inner.get(), token_ids[i].data(), static_cast<int>(num_rows),
                         num_outputs[i], num_candidates[i]});
  }
  return sequences;
}

std::vector<Output> forward(Target& target, const std::vector<Cache*>& caches,
                            const TokenIds& token_ids, const std::vector<int>& num_outputs,
                            const std::vector<int>& num_candidates) {
  const std::vector<SequenceRows> sequences =
      to_sequences(target, caches, token_ids, num_outputs, num_candidates);
  std::size_t rows = 0;
  int most = 0;
  for (const SequenceRows& sequence : sequences) {
    rows += static_cast<std::size_t>(sequence.num_outputs);
    most = std::max(most, sequence.num_candidates);
  }
  const auto pass = std::make_shared<const PassRows>(
      rows, static_cast<std::size_t>(target.shape().vocab_size),
      static_cast<std::size_t>(target.shape().hidden_size), static_cast<std::size_t>(most));
  {
    nb::gil_scoped_release unlocked;
    target.forward(sequences, {pass->logits.get(), pass->hidden.get(), pass->candidate_ids.get(),
                               pass->candidate_logits.get(), most});
  }
  std::vector<Output> outputs;
  std::size_t first = 0;
  for (const SequenceRows& sequence : sequences) {
    const auto count = static_cast<std::size_t>(sequence.num_outputs);
    outputs.emplace_back(pass, first, count);
    first += count;
  }
  return outputs;
}

// A drafter, and what it needs that nobody may forget.
class PairedDrafter {
 public:
  PairedDrafter(ThreadPool& pool, const DecoderShape& shape, const Target& target)
      : target_(target), inner_(pool, shape, target.shape(), target.embeddings()) {}

  void load(const Tensor& tensor) { inner_.load(tensor); }
  void finish() {
    inner_.finish();
    is_complete_ = true;
  }
  std::size_t weight_bytes() const { return inner_.weight_bytes(); }
  int hidden_size() const { return inner_.shape().target_hidden_size; }

  Draft draft(const Cache& cache, const DraftRequest& request) {
    if (!is_complete_) refuse("finish() comes before draft().");
    if (!target_.embeddings().is_loaded()) refuse("the target has no weights yet.");
    check_cache(&cache, target_);
    nb::gil_scoped_release unlocked;
    return inner_.draft(*cache.inner, request);
  }

 private:
  const Target& target_;
  Drafter inner_;
  bool is_complete_ = false;
};

std::tuple<std::vector<std::int32_t>, std::vector<double>> draft(
    PairedDrafter& drafter, const Cache& cache, std::int64_t last_token,
    const Hidden& hidden, int max_draft_tokens, std::int64_t place, double temperature,
    std::uint64_t seed, const Vector<std::int64_t>& bias_ids, const Vector<double>& biases,
    std::vector<double> min_confidences, const Vector<std::int64_t>& end_token_ids) {
  if (hidden.size != static_cast<std::size_t>(drafter.hidden_size())) {
    refuse("hidden has " + std::to_string(hidden.size) + " numbers, the target's rows have " +
           std::to_string(drafter.hidden_size()) + ".");
  }
  check_range("place", place, 0, kMaxPositions);
  if (!(temperature >= 0.0 && std::isfinite(temperature))) {
    refuse("temperature=" + std::to_string(temperature) + " is out of range: expected 0 or more.");
  }
  Draft drafted =
      drafter.draft(cache, {last_token, hidden.data(), max_draft_tokens, place,
                            DrawRule{temperature, seed, to_vector(bias_ids), to_vector(biases)},
                            std::move(min_confidences), to_vector(end_token_ids)});
  return {std::move(drafted.tokens), std::move(drafted.confidences)};
}

// ---- Texts to draft from ----

std::vector<std::int32_t> tokens_of(const IndexedText& text) {
  std::vector<std::int32_t> tokens;
  for (Place place = 0; place < text.size(); ++place) tokens.push_back(text.token(place));
  return tokens;
}

void record(Trust& trust, std::int64_t match_length, double share, bool right) {
  check_range("match_length", match_length, 0, kMaxTextTokens);
  trust.record(static_cast<int>(match_length), share, right);
}

double factor(const Trust& trust, std::int64_t match_length) {
  check_range("match_length", match_length, 0, kMaxTextTokens);
  return trust.factor(static_cast<int>(match_length));
}

std::vector<Place> places_of(const TrustedFollower& trusted) {
  const Places& places = trusted.follower().places();
  return std::vector<Place>(places.begin(), places.end());
}

std::tuple<std::vector<std::int32_t>, std::vector<double>> propose(const TrustedFollower& trusted,
                                                                   std::int64_t limit) {
  Proposal proposal = trusted.follower().propose(limit);
  return {std::move(proposal.tokens), std::move(proposal.shares)};
}

std::optional<std::tuple<std::vector<std::int32_t>, std::size_t, double, double>> best_draft(
    const WrittenText& written, std::vector<double> passes, double other_seconds,
    double other_tokens, double best_rate) {
  auto draft = written.best_draft({std::move(passes), other_seconds, other_tokens, best_rate});
  if (!draft) return std::nullopt;
  return {{std::move(draft->tokens), draft->follower, draft->expected_tokens, draft->seconds}};
}

// ---- Acceptance and draft lengths ----

using Numbers = std::vector<double>;

template <std::size_t count>
std::array<double, count> exactly(const char* name, const Numbers& values) {
  if (values.size() != count) {
    refuse(std::string(name) + " has " + std::to_string(values.size()) + " numbers, expected " +
           std::to_string(count) + ".");
  }
  std::array<double, count> found;
  std::copy(values.begin(), values.end(), found.begin());
  return found;
}

void make_curve(MarginCurve* curve, const Numbers& seen, const Numbers& accepted,
                const Numbers& margins) {
  new (curve)
      MarginCurve(exactly<kNumBins>("seen", seen), exactly<kNumBins>("accepted", accepted),
                  exactly<kNumBins>("margins", margins));
}

void make_profile(Profile* profile, const Numbers& knots, const Numbers& counts,
                  const Numbers& levels, const MarginCurve& curve) {
  new (profile) Profile(exactly<kNumKnots>("knots", knots), exactly<kNumKnots>("counts", counts),
                        exactly<kNumLevels>("levels", levels), curve);
}

void observe_margins(MarginCurve& curve, const Numbers& margins, std::int64_t num_accepted) {
  curve.observe(margins.data(), margins.size(), num_accepted);
}

using JudgementFields = std::tuple<std::int64_t, std::int64_t, Numbers>;

void observe_drafts(AcceptanceModel& model, const Numbers& survivals,
                    std::vector<JudgementFields> drafts, const Numbers& bounds) {
  std::vector<Judgement> judgements;
  judgements.reserve(drafts.size());
  for (auto& [num_accepted, num_judged, margins] : drafts) {
    judgements.push_back({num_accepted, num_judged, std::move(margins)});
  }
  model.observe(exactly<kMaxTokens + 1>("survivals", survivals), judgements, bounds);
}

std::tuple<std::int64_t, double, double, double> find_best_length(
    const Numbers& survivals, const Numbers& kept, const Numbers& passes, double draft_step,
    double plain, double draft_fixed, std::int64_t room, double others) {
  const Forecast best =
      best_length({survivals, kept, passes, draft_step}, plain, draft_fixed, room, others);
  return {best.length, best.tokens, best.seconds, best.rate};
}

nb::tuple find_margin_bounds(const Numbers& survivals, const Numbers& kept, const Numbers& passes,
                             double draft_step, std::int64_t length, double rate,
                             const MarginCurve& margins) {
  return nb::tuple(
      nb::cast(margin_bounds({survivals, kept, passes, draft_step}, length, rate, margins)));
}

// ---- Scores ----

using Ids = nb::ndarray<std::int64_t, nb::numpy, nb::ndim<1>, nb::c_contig>;
using Scores = nb::ndarray<double, nb::numpy, nb::ndim<1>, nb::c_contig>;

template <class Array, class T>
Array give(std::vector<T> values) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* it) noexcept { delete static_cast<std::vector<T>*>(it); });
  return Array(kept->data(), {kept->size()}, owner);
}

// A row of scores, and the logits that it reads. What needs a peak that is a number refuses others.
class HeldScoreRow {
 public:
  HeldScoreRow(const Vector<float>& logits, const Vector<std::int64_t>& changed_ids,
               const Vector<double>& changed_scores)
      : logits_(logits),
        inner_(logits_.data(), logits_.size(), to_vector(changed_ids), to_vector(changed_scores)) {}

  double peak() const { return inner_.peak(); }
  Scores scores(const Vector<std::int64_t>& ids) const {
    std::vector<double> found;
    for (std::size_t i = 0; i < ids.size(); ++i) found.push_back(inner_.score(ids.data()[i]));
    return give<Scores>(std::move(found));
  }
  Ids at_least(double floor) const { return give<Ids>(inner_.at_least(floor)); }
  Ids highest(std::int64_t count) const {
    check_finite();
    return give<Ids>(inner_.highest(count));
  }
  double weight_sum(double temperature) const {
    check_drawable(temperature);
    nb::gil_scoped_release unlocked;
    return inner_.weight_sum(temperature);
  }
  Ids contenders(double temperature, std::uint64_t seed, std::uint64_t position) const {
    check_drawable(temperature);
    std::vector<std::int64_t> ids;
    {
      nb::gil_scoped_release unlocked;
      ids = inner_.contenders(temperature, seed, position);
    }
    return give<Ids>(std::move(ids));
  }

 private:
  void check_finite() const {
    if (!std::isfinite(peak())) refuse("the highest score of the row is no finite number.");
  }
  void check_drawable(double temperature) const {
    check_finite();
    if (!(temperature > 0.0 && std::isfinite(temperature))) {
      refuse("temperature=" + std::to_string(temperature) +
             " is out of range: expected more than 0.");
    }
  }

  Vector<float> logits_;
  ScoreRow inner_;
};

void bind_pool(nb::module_& module) {
  nb::class_<ThreadPool>(module, "Pool",
                         "Threads that run a pass together; the caller is one of them.")
      .def("__init__", &make_pool, "threads"_a, "pin"_a = true)
      .def_prop_ro("threads", &ThreadPool::num_threads);
  module.def("read_bandwidth", &measure_bandwidth, "pool"_a, "num_bytes"_a,
             "Bytes a second that a plain loop reads of freshly allocated memory.");
  module.def("product_rate", &measure_products, "pool"_a, "dtype"_a, "num_rows"_a,
             "Multiplications a second of linear layers whose weights stay in the cache.");
}

void bind_shapes(nb::module_& module) {
  nb::class_<LayerShape>(module, "LayerShape", "One decoder layer: see native shapes.h.")
      .def(
          "__init__",
          [](LayerShape* shape, bool sliding, int head_dim, int num_kv_heads, int ffn_size,
             bool owns_kv, int kv_layer, bool values_from_keys, int window) {
            new (shape) LayerShape{sliding, head_dim, num_kv_heads,     ffn_size,
                                   owns_kv, kv_layer, values_from_keys, window};
          },
          nb::kw_only(), "sliding"_a, "head_dim"_a, "num_kv_heads"_a, "ffn_size"_a, "owns_kv"_a,
          "kv_layer"_a, "values_from_keys"_a = false, "window"_a = 0)
      .def_ro("sliding", &LayerShape::sliding)
      .def_ro("head_dim", &LayerShape::head_dim)
      .def_ro("num_kv_heads", &LayerShape::num_kv_heads)
      .def_ro("ffn_size", &LayerShape::ffn_size)
      .def_ro("owns_kv", &LayerShape::owns_kv)
      .def_ro("kv_layer", &LayerShape::kv_layer)
      .def_ro("values_from_keys", &LayerShape::values_from_keys)
      .def_ro("window", &LayerShape::window);
  nb::class_<DecoderShape>(module, "Shape", "A target or a drafter: see native shapes.h.")
      .def(
          "__init__",
          [](DecoderShape* shape, int hidden_size, int vocab_size, int num_heads,
             float rms_norm_eps, std::vector<LayerShape> layers, int first_shared_layer,
             std::vector<float> sliding_frequencies, std::vector<float> global_frequencies,
             int per_layer_size, int per_layer_vocab_size, float logit_softcap, int num_experts,
             int num_experts_per_token, int expert_ffn_size, float embedding_scale,
             float per_layer_scale, int target_hidden_size, int num_centroids, int centroid_top_k) {
            new (shape) DecoderShape{hidden_size,
                                     vocab_size,
                                     num_heads,
                                     rms_norm_eps,
                                     std::move(layers),
                                     first_shared_layer,
                                     std::move(sliding_frequencies),
                                     std::move(global_frequencies),
                                     per_layer_size,
                                     per_layer_vocab_size,
                                     logit_softcap,
                                     num_experts,
                                     num_experts_per_token,
                                     expert_ffn_size,
                                     embedding_scale,
                                     per_layer_scale,
                                     target_hidden_size,
                                     num_centroids,
                                     centroid_top_k};
          },
          nb::kw_only(), "hidden_size"_a, "vocab_size"_a, "num_heads"_a, "rms_norm_eps"_a,
          "layers"_a, "first_shared_layer"_a, "sliding_frequencies"_a, "global_frequencies"_a,
          "per_layer_size"_a = 0, "per_layer_vocab_size"_a = 0, "logit_softcap"_a = 0.0f,
          "num_experts"_a = 0, "num_experts_per_token"_a = 0, "expert_ffn_size"_a = 0,
          "embedding_scale"_a = 1.0f, "per_layer_scale"_a = 1.0f, "target_hidden_size"_a = 0,
          "num_centroids"_a = 0, "centroid_top_k"_a = 0)
      .def_ro("hidden_size", &DecoderShape::hidden_size)
      .def_ro("vocab_size", &DecoderShape::vocab_size)
      .def_ro("layers", &DecoderShape::layers);
}

template <class Model>
void bind_weights(nb::class_<Model>& model) {
  model
      .def("load", &load<Model>, "name"_a, "dtype"_a, "data"_a.noconvert(),
           "file"_a.none() = nb::none(),
           "Give one tensor as it lies in a file, under its name in paceline.checkpoint.names.\n\n"
           "Rows that tokens need later are read from `file`, else from `data`.")
      .def("finish", &Model::finish, "ValueError names what was not loaded.")
      .def_prop_ro("weight_bytes", &Model::weight_bytes, "Bytes of packed weights in memory.");
}

void bind_files(nb::module_& module) {
  nb::class_<FileRange>(module, "FileRange", "A tensor's place in an open file.")
      .def(nb::init<int, std::int64_t, std::string>(), "descriptor"_a, "start"_a, "path"_a);
}

void bind_target(nb::module_& module) {
  nb::class_<Cache>(module, "Cache", "Keys and values of one sequence.")
      .def_prop_ro("length", [](const Cache& cache) { return cache.inner->length(); })
      .def_prop_ro("max_length", [](const Cache& cache) { return cache.inner->max_length(); })
      .def_prop_ro("shortest_truncation",
                   [](const Cache& cache) { return cache.inner->shortest_truncation(); })
      .def_prop_ro("kv_bytes", [](const Cache& cache) { return cache.inner->kv_bytes(); })
      .def(
          "truncate", [](Cache& cache, std::int64_t length) { cache.inner->truncate(length); },
          "length"_a)
      .def("read", &read_cache, "layer"_a, "first"_a, "last"_a,
           "Keys and values [G, S, H] of positions first to last, for tests.");
  nb::class_<Hidden>(module, "Hidden", "The final-normed row of one token, for a draft.")
      .def("__init__", &make_hidden, "values"_a.noconvert())
      .def(
          "numpy",
          [](const Hidden& hidden) { return to_rows(hidden.rows, hidden.row, 1, hidden.size); },
          "The numbers [1, D].");
  nb::class_<Output>(module, "Output", "What a pass gave for the R outputs of one sequence.")
      .def_prop_ro("logits", &Output::logits, nb::rv_policy::automatic, "[R, V]")
      .def_prop_ro("hidden", &Output::hidden)
      .def_prop_ro("candidate_ids", &Output::candidate_ids, nb::rv_policy::automatic,
                   "[R, C], C the most of the pass. Best first; -1 stands where there is none.")
      .def_prop_ro("candidate_logits", &Output::candidate_logits, nb::rv_policy::automatic,
                   "[R, C]")
      .def("best_tokens", &Output::best_tokens, "row"_a,
           "The candidate ids of a row up to the first -1.");
  nb::class_<Target> target(module, "Target", "A Gemma 4.");
  target.def(nb::init<ThreadPool&, DecoderShape>(), "pool"_a, "shape"_a, nb::keep_alive<1, 2>())
      .def("new_cache", &new_cache, "max_length"_a, "slack"_a, nb::keep_alive<0, 1>(),
           "An empty cache whose rings survive the rejection of `slack` positions.")
      .def("forward", &forward, "caches"_a, "token_ids"_a, "num_outputs"_a, "num_candidates"_a,
           "One pass over the tokens of each sequence.");
  bind_weights(target);
}

void bind_drafter(nb::module_& module) {
  nb::class_<PairedDrafter> drafter(module, "Drafter", "The drafter of a Gemma 4.");
  drafter
      .def(nb::init<ThreadPool&, const DecoderShape&, const Target&>(), "pool"_a, "shape"_a,
           "target"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 4>())
      .def("draft", &draft, "cache"_a, "last_token"_a, "hidden"_a, "max_draft_tokens"_a,
           "place"_a, "temperature"_a, "seed"_a, "bias_ids"_a.noconvert(), "biases"_a.noconvert(),
           "min_confidences"_a, "end_token_ids"_a.noconvert(),
           "Tokens that continue `last_token`, and their confidences.");
  bind_weights(drafter);
}

void bind_texts(nb::module_& module) {
  module.attr("SEPARATOR") = kSeparator;
  nb::class_<IndexedText>(module, "IndexedText",
                          "Tokens, and where in them the end of a text occurs with a token to "
                          "follow.\n\n"
                          "SEPARATOR stands between two texts of an index. Cost: constant work and "
                          "28 to 56 bytes\na token, less where the text repeats itself.")
      .def(nb::init<>())
      .def("append", &IndexedText::append, "token_id"_a)
      .def("extend", &IndexedText::extend, "token_ids"_a, "Append many at once, or none.")
      .def("__len__", &IndexedText::size)
      .def_prop_ro("tokens", &tokens_of, "A copy.");
  nb::class_<Trust>(module, "Trust",
                    "How often the token after a match was right, by the length of the match.\n\n"
                    "Right tokens are counted against the agreement of the places, so that what is "
                    "learned\nis the factor that makes a share of places a probability. Both "
                    "counts forget.")
      .def(nb::init<>())
      .def("of_new_sequence", &Trust::of_new_sequence, "What a sequence starts from.")
      .def("record", &record, "match_length"_a, "share"_a, "right"_a)
      .def("factor", &factor, "match_length"_a);
  nb::class_<TrustedFollower>(module, "Follower",
                              "Keeps up with the places of a text that go on as the written text "
                              "does, and learns how\nfar they can be trusted.")
      .def_prop_ro(
          "match_length",
          [](const TrustedFollower& trusted) { return trusted.follower().match_length(); },
          "How many tokens before the places are known to be the last ones written.")
      .def_prop_ro("places", &places_of,
                   "Indices of the tokens that may come next, the best first.")
      .def_prop_ro("first_trust", &TrustedFollower::first_trust,
                   "The chance of the first token of a proposal; 0 if there is none.")
      .def("turn_to", &TrustedFollower::turn_to, "own"_a, "shared"_a,
           "Learn here from now on: what this sequence has seen, and what all have.")
      .def("start_at", &TrustedFollower::start_at, "place"_a,
           "Expect the text from here on, without a match before.")
      .def("propose", &propose, "limit"_a,
           "Up to `limit` tokens that may come next. For each, of the places that agreed so far, "
           "the\nshare that has this token too.");
  nb::class_<WrittenText>(module, "WrittenText",
                          "A text that is being written, and those who follow others meanwhile.")
      .def(nb::init<std::vector<std::int64_t>>(), "end_token_ids"_a = nb::make_tuple(),
           "After one of these nothing is proposed.")
      .def_prop_ro("text", &WrittenText::text)
      .def("follow", &WrittenText::follow, "text"_a,
           "Follow a text from the next token on: the written one, or another that may grow too.")
      .def(
          "push",
          [](WrittenText& written, std::int64_t token) {
            written.push(token);
            return written.has_proposal();
          },
          "token_id"_a,
          "The text goes on. Every token shows whether a proposal would have been right, so that\n"
          "nothing need be drafted to learn. Returns `has_proposal`.")
      .def_prop_ro("has_proposal", &WrittenText::has_proposal,
                   "Whether a draft is worth asking for.")
      .def("best_draft", &best_draft, "passes"_a, "other_seconds"_a, "other_tokens"_a,
           "best_rate"_a,
           "The proposal with most tokens a second, if that is more than `best_rate`.\n\n"
           "`passes` are seconds of the round's pass by tokens of the draft, from none to as many\n"
           "as there is room for, ascending; `other_seconds` are those of the rest of the round,\n"
           "`other_tokens` what its other sequences are expected to emit. Returns the draft, the\n"
           "number of its follower, what this sequence is expected to emit, seconds of the round.");
}

// Copies know no more of each other: `copy.deepcopy`, for simulations.
template <class Class>
Class copied(const Class& original, nb::handle) {
  return original;
}

void bind_acceptance(nb::module_& module) {
  module.attr("LARGEST_OFFSET") = kLargestOffset;
  nb::class_<MarginCurve>(module, "MarginCurve",
                          "The chance of a token by the drafter's margin: "
                          "sigmoid(slope * margin + intercept).")
      .def(nb::init<>())
      .def("__init__", &make_curve, "seen"_a, "accepted"_a, "margins"_a, "From kept counts.")
      .def("__deepcopy__", &copied<MarginCurve>, "memo"_a)
      .def("observe", &observe_margins, "margins"_a, "num_accepted"_a,
           "Learn from tokens that were judged, of which the first were accepted.")
      .def("margin_at", &MarginCurve::margin_at, "chance"_a,
           "The margin from which a token has this chance; there must be a slope.")
      .def_prop_ro("slope", &MarginCurve::slope, "0 as long as margins tell nothing.")
      .def_prop_ro("intercept", &MarginCurve::intercept)
      .def_prop_ro("seen", &MarginCurve::seen, "Tokens, by bins of their margin.")
      .def_prop_ro("accepted", &MarginCurve::accepted, "Of these.")
      .def_prop_ro("margins", &MarginCurve::margins, "Their sums.");
  nb::class_<Profile>(module, "Profile",
                      "What is known of text of one kind before a sequence writes any, and what "
                      "margins tell.")
      .def(nb::init<>())
      .def("__init__", &make_profile, "knots"_a, "counts"_a, "levels"_a, "curve"_a,
           "From what was kept.")
      .def("__deepcopy__", &copied<Profile>, "memo"_a)
      .def_prop_ro("knots", &Profile::knots, "Offsets of some positions, in log-odds.")
      .def_prop_ro("counts", &Profile::counts, "How many tokens taught each.")
      .def_prop_ro("levels", &Profile::levels, "Weights of the levels that sequences had.")
      .def_prop_ro("prior", &Profile::prior, "Weights that a new sequence starts from.")
      .def_prop_ro("curve", &Profile::curve, nb::rv_policy::reference_internal);
  nb::class_<AcceptanceModel>(module, "AcceptanceModel",
                              "What to expect of the next draft of one sequence, in text of one "
                              "kind.")
      .def(nb::init<std::shared_ptr<Profile>>(), "profile"_a)
      .def_prop_ro("profile", &AcceptanceModel::profile)
      .def_prop_rw("weights", &AcceptanceModel::weights,
                   [](AcceptanceModel& model, const Numbers& weights) {
                     model.set_weights(exactly<kNumLevels>("weights", weights));
                   },
                   "Of the levels, 1 in all: how likely the text is as easy as each of them.")
      .def_prop_ro("kept", &AcceptanceModel::kept,
                   "Entry n is the share of drafts that reached token n and then kept it, its\n"
                   "margin not being below its bound. Survivals are those of kept tokens.")
      .def("survivals", &AcceptanceModel::survivals,
           "Entry n is the chance that the first n tokens of a draft are all taken.")
      .def("observe", &observe_drafts, "survivals"_a, "judgements"_a, "bounds"_a = Numbers(),
           "Learn from one or more drafts of a text that did not change between them.\n\n"
           "Args:\n"
           "    survivals: what this model expected of each.\n"
           "    judgements: see `paceline.speculative.acceptance.Judgement`.\n"
           "    bounds: margins below which a token would have been held back, even if it was not.")
      .def("observe_kept", &AcceptanceModel::observe_kept, "num_kept"_a, "held_back"_a,
           "Learn how many tokens of a draft were kept, and whether the next was held back.")
      .def("doubt", &AcceptanceModel::doubt, "share"_a,
           "The text may have changed: believe so much less of what was learned of it.");
}

void bind_draft_length(nb::module_& module) {
  module.attr("LEAST_GAIN") = kLeastGain;
  module.def("best_length", &find_best_length, "survivals"_a, "kept"_a, "passes"_a, "draft_step"_a,
             "plain"_a, "draft_fixed"_a, "room"_a, "others"_a,
             "The draft length with most expected tokens a second, its tokens, seconds and rate:\n"
             "see `paceline.speculative.adaptive.best_length`.");
  module.def("margin_bounds", &find_margin_bounds, "survivals"_a, "kept"_a, "passes"_a,
             "draft_step"_a, "length"_a, "rate"_a, "margins"_a,
             nb::sig("def margin_bounds(survivals: Sequence[float], kept: Sequence[float], passes: "
                     "Sequence[float], draft_step: float, length: int, rate: float, margins: "
                     "MarginCurve) -> tuple[float, ...]"),
             "See `paceline.speculative.adaptive.margin_bounds`.");
}

void bind_scores(nb::module_& module) {
  nb::class_<HeldScoreRow>(module, "ScoreRow",
                           "One row of scores over the vocabulary: see paceline.score_row.")
      .def(nb::init<const Vector<float>&, const Vector<std::int64_t>&, const Vector<double>&>(),
           "logits"_a.noconvert(), "changed_ids"_a.noconvert(), "changed_scores"_a.noconvert())
      .def_prop_ro("peak", &HeldScoreRow::peak)
      .def("scores", &HeldScoreRow::scores, "ids"_a.noconvert())
      .def("at_least", &HeldScoreRow::at_least, "floor"_a)
      .def("highest", &HeldScoreRow::highest, "count"_a)
      .def("weight_sum", &HeldScoreRow::weight_sum, "temperature"_a)
      .def("contenders", &HeldScoreRow::contenders, "temperature"_a, "seed"_a, "position"_a);
}

}  // namespace
}  // namespace paceline

NB_MODULE(_native, module) {
  using namespace paceline;
  module.doc() = "The native CPU runtime: see native/README.md.";
  // What a waiting thread holds as a program ends is no mistake that its user could mend.
  nb::set_leak_warnings(false);
  module.def(
      "isa_name", [] { return kernels().isa; },
      "Instruction set in use: the processor's best, or what PACELINE_ISA names.");
  module.def("isa_names", &isa_names, "What this processor can run, the slowest first.");
  module.def("multiply", &multiply, "dtype"_a, "data"_a.noconvert(), "outputs"_a, "inner"_a,
             "x"_a.noconvert(), "Outputs [M, outputs] of one linear layer for rows x [M, inner].");
  nb::exception<NotFiniteError>(module, "NotFiniteError", PyExc_ValueError);
  nb::exception<ReadError>(module, "ReadError", PyExc_OSError);
  bind_pool(module);
  bind_shapes(module);
  bind_files(module);
  bind_target(module);
  bind_drafter(module);
  bind_texts(module);
  bind_acceptance(module);
  bind_draft_length(module);
  bind_scores(module);
}
