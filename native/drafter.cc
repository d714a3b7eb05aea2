#include "paceline/drafter.h"

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace paceline {
namespace {

void check_donors(const DecoderShape& shape, const DecoderShape& target) {
  for (const LayerShape& layer : shape.layers) {
    const bool known =
        layer.kv_layer >= 0 && layer.kv_layer < static_cast<int>(target.layers.size());
    const LayerShape* donor =
        known ? &target.layers[static_cast<std::size_t>(layer.kv_layer)] : nullptr;
    if (layer.owns_kv || donor == nullptr || !donor->owns_kv || donor->head_dim != layer.head_dim ||
        donor->num_kv_heads != layer.num_kv_heads) {
      throw std::invalid_argument("a drafter's layer reads the keys and values of layer " +
                                  std::to_string(layer.kv_layer) +
                                  " of the target, which has none or others");
    }
  }
}

bool any_quantized(std::initializer_list<Matrix> matrices) {
  return std::any_of(matrices.begin(), matrices.end(),
                     [](const Matrix& matrix) { return is_quantized(matrix.type); });
}

}  // namespace

Drafter::Drafter(ThreadPool& pool, const DecoderShape& shape, const DecoderShape& target_shape,
                 const RowTable& target_embeddings, const Kernels& kernels)
    : shape_(shape),
      embedding_scale_(target_shape.embedding_scale),
      embeddings_(target_embeddings),
      kernels_(kernels),
      pool_(pool),
      head_(pool, shape),
      parameters_(pool),
      workspace_(shape, pool.num_threads(), 1),
      input_(1, 2 * shape.target_hidden_size),
      sliding_rope_(2 * shape.sliding_frequencies.size()),
      global_rope_(2 * shape.global_frequencies.size()),
      spans_(shape.layers.size()),
      first_visible_(shape.layers.size()) {
  if (shape.layers.empty()) throw std::invalid_argument("a drafter needs at least one layer");
  if (shape.target_hidden_size != target_shape.hidden_size ||
      shape.vocab_size != target_shape.vocab_size) {
    throw std::invalid_argument("the drafter belongs to another target: hidden size " +
                                std::to_string(shape.target_hidden_size) + " and " +
                                std::to_string(shape.vocab_size) + " tokens for " +
                                std::to_string(target_shape.hidden_size) + " and " +
                                std::to_string(target_shape.vocab_size));
  }
  check_donors(shape, target_shape);
  const int hidden = shape.hidden_size, wide = shape.target_hidden_size;
  parameters_.matrix("pre_projection.weight", hidden, 2 * wide, pre_projection_);
  parameters_.layers(shape, layers_);
  parameters_.vector("norm.weight", hidden, norm_);
  parameters_.matrix("post_projection.weight", wide, hidden, post_projection_);
  head_.expect(parameters_);
}

Draft Drafter::draft(const KVCache& cache, const DraftRequest& request) {
  const std::lock_guard<std::mutex> turn(turn_);
  check(cache, request);
  Draft draft;
  if (request.max_draft_tokens == 0) return draft;
  draft.tokens.reserve(static_cast<std::size_t>(request.max_draft_tokens));
  draft.confidences.reserve(draft.tokens.capacity());
  look_at(cache, request.place);
  head_.set_rule(request.rule);
  embed(request.last_token);
  const Activations input = input_.view(1, 2 * shape_.target_hidden_size);
  std::copy_n(request.hidden, shape_.target_hidden_size, input.values + shape_.target_hidden_size);
  quantize_input();
  stopped_ = false;
  pool_.run([&](Worker& worker) {
    for (std::int64_t step = 1;; ++step) {
      run_layers(worker);
      const auto position = static_cast<std::uint64_t>(cache.length() + step);
      head_.draw(worker, kernels_, workspace_.normed().view(1, shape_.hidden_size), position,
                 [&](Drawn drawn) { take(drawn, request, draft); });
      if (stopped_) return;
      project_back(worker);
    }
  });
  failure_.rethrow();
  return draft;
}

void Drafter::check(const KVCache& cache, const DraftRequest& request) const {
  if (request.last_token < 0 || request.last_token >= shape_.vocab_size) {
    throw std::invalid_argument("token " + std::to_string(request.last_token) +
                                " is not in the vocabulary, which ends at " +
                                std::to_string(shape_.vocab_size - 1));
  }
  if (request.max_draft_tokens < 0 || request.max_draft_tokens > kMaxDraftTokens) {
    throw std::invalid_argument("a draft of " + std::to_string(request.max_draft_tokens) +
                                " tokens was asked for: expected 0 to " +
                                std::to_string(kMaxDraftTokens));
  }
  if (cache.length() == 0) {
    throw std::invalid_argument("the KV cache is empty: a drafter needs at least one position");
  }
}

void Drafter::look_at(const KVCache& cache, std::int64_t place) {
  rope_row(place, shape_.sliding_frequencies, sliding_rope_.data());
  rope_row(place, shape_.global_frequencies, global_rope_.data());
  last_visible_ = cache.length() - 1;
  for (std::size_t i = 0; i < spans_.size(); ++i) {
    const LayerShape& layer = shape_.layers[i];
    const LayerStore& store = cache.store(layer.kv_layer);
    first_visible_[i] =
        layer.window > 0 ? std::max<std::int64_t>(0, cache.length() - layer.window) : 0;
    spans_[i] = {&store, 0, 1, &first_visible_[i], &last_visible_};
  }
}

void Drafter::quantize_input() {
  if (!is_quantized(pre_projection_.type)) return;
  kernels_.linear.quantize(input_.view(1, pre_projection_.inner), 0, 0,
                           pre_projection_.inner / kBlockColumns);
}

void Drafter::embed(std::int64_t token) {
  embedding_bytes_.resize(embeddings_.row_bytes());
  embeddings_.read(token, embedding_bytes_.data());
  kernels_.ops.embed(embeddings_.type, embedding_bytes_.data(), embedding_scale_,
                     shape_.target_hidden_size, input_.view(1, 1).values);
}

void Drafter::run_layers(Worker& worker) {
  const Activations input = input_.view(1, 2 * shape_.target_hidden_size);
  worker.for_each(
      num_panels(shape_.hidden_size), 1,
      [&](int first, int end) {
        kernels_.linear.multiply(pre_projection_, input, first, end, workspace_.x(),
                                 shape_.hidden_size);
      },
      [&] { norm_first(); });
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    run_layer(worker, kernels_, workspace_, layer_call(i));
  }
}

void Drafter::norm_first() {
  const Activations normed = workspace_.normed().view(1, shape_.hidden_size);
  kernels_.ops.rms_norm(workspace_.x(), layers_[0].input_norm, shape_.rms_norm_eps,
                        shape_.hidden_size, normed.values);
  if (layers_[0].reads_quantized()) {
    kernels_.linear.quantize(normed, 0, 0, shape_.hidden_size / kBlockColumns);
  }
}

LayerCall Drafter::layer_call(std::size_t index) const {
  LayerCall call;
  call.shape = &shape_;
  call.layer = &shape_.layers[index];
  call.weights = &layers_[index];
  call.next =
      index + 1 < layers_.size()
          ? NextNorm{layers_[index + 1].input_norm, layers_[index + 1].reads_quantized()}
          : NextNorm{norm_, any_quantized({post_projection_, head_.matrix(), head_.centroids()})};
  call.num_rows = 1;
  call.rope = call.layer->sliding ? sliding_rope_.data() : global_rope_.data();
  call.spans = &spans_[index];
  call.num_spans = 1;
  return call;
}

// The hidden row of the next step. The token's embedding is there already.
void Drafter::project_back(Worker& worker) {
  const int wide = shape_.target_hidden_size;
  float* hidden = input_.view(1, 2 * wide).values + wide;
  const Activations normed = workspace_.normed().view(1, shape_.hidden_size);
  worker.for_each(
      num_panels(wide), 1,
      [&](int first, int end) {
        kernels_.linear.multiply(post_projection_, normed, first, end, hidden, wide);
      },
      [&] { quantize_input(); });
}

void Drafter::take(Drawn drawn, const DraftRequest& request, Draft& draft) {
  const std::size_t step = draft.tokens.size();
  const std::vector<double>& bounds = request.min_confidences;
  stopped_ = step < bounds.size() && drawn.confidence < bounds[step];
  if (stopped_) return;
  draft.tokens.push_back(drawn.token);
  draft.confidences.push_back(drawn.confidence);
  const std::vector<std::int64_t>& ends = request.end_token_ids;
  stopped_ = std::find(ends.begin(), ends.end(), drawn.token) != ends.end() ||
             draft.tokens.size() == static_cast<std::size_t>(request.max_draft_tokens);
  if (!stopped_) stopped_ = !failure_.guard([&] { embed(drawn.token); });
}

}  // namespace paceline
