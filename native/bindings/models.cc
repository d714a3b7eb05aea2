// Target, drafter and KV cache: a pass, or a whole draft, is one call.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "paceline/drafter.h"
#include "paceline/errors.h"
#include "paceline/file_range.h"
#include "paceline/gemma4.h"
#include "paceline/kv_cache.h"
#include "paceline/shapes.h"
#include "paceline/thread_pool.h"

namespace paceline {
namespace {

using NewHeads = nb::ndarray<float, nb::numpy, nb::ndim<3>, nb::c_contig>;
using File = std::shared_ptr<const FileRange>;
using TokenIds = std::vector<std::vector<std::int32_t>>;

constexpr std::int64_t kMaxPositions = std::int64_t{1} << 30;

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
    return NewHeads(
        kept->data(),
        {static_cast<std::size_t>(store.num_kv_heads()), static_cast<std::size_t>(last - first + 1),
         static_cast<std::size_t>(store.head_dim())},
        owner_of(kept));
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

}  // namespace

void bind_models(nb::module_& module) {
  bind_files(module);
  bind_target(module);
  bind_drafter(module);
}

}  // namespace paceline
