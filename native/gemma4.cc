#include "paceline/gemma4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "layer_run.h"

namespace paceline {
namespace {

// `what` is put together only where it is needed: a pass checks its arguments without allocating.
template <class... Parts>
void require(bool holds, const Parts&... what) {
  if (!holds) throw std::invalid_argument((std::string() + ... + what));
}

std::string shown(std::int64_t number) { return std::to_string(number); }

void check_layer(const DecoderShape& shape, std::size_t index) {
  const LayerShape& layer = shape.layers[index];
  const std::string name = "layer " + std::to_string(index) + ": ";
  require(layer.head_dim > 0 && layer.head_dim % 2 == 0 && layer.head_dim <= kMaxHeadDim, name,
          "head_dim must be even and at most ", shown(kMaxHeadDim));
  require(layer.num_kv_heads > 0 && shape.num_heads % layer.num_kv_heads == 0, name,
          "num_heads must be a multiple of num_kv_heads");
  require(layer.ffn_size > 0, name + "ffn_size must be positive");
  require(layer.window >= 0 && layer.sliding == (layer.window > 0), name,
          "a sliding layer, and no other, has a window");
  const bool owns = index < static_cast<std::size_t>(shape.first_shared_layer);
  require(layer.owns_kv == owns, name + "layers own KV up to first_shared_layer");
  const auto donor = static_cast<std::size_t>(layer.kv_layer);
  require(layer.kv_layer >= 0 && (owns ? donor == index : donor < index) &&
              shape.layers[donor].owns_kv && shape.layers[donor].window == layer.window &&
              shape.layers[donor].head_dim == layer.head_dim &&
              shape.layers[donor].num_kv_heads == layer.num_kv_heads,
          name, "kv_layer must be the layer itself or a donor of the same geometry");
  const auto& frequencies = layer.sliding ? shape.sliding_frequencies : shape.global_frequencies;
  require(frequencies.size() == static_cast<std::size_t>(layer.head_dim / 2), name,
          "rotary frequencies must be head_dim / 2");
}

DecoderShape checked(DecoderShape shape) {
  const int layers = static_cast<int>(shape.layers.size());
  require(shape.hidden_size > 0 && shape.vocab_size > 0 && shape.num_heads > 0 && layers > 0,
          "hidden_size, vocab_size, num_heads and the number of layers must be positive");
  require(shape.first_shared_layer > 0 && shape.first_shared_layer <= layers,
          "first_shared_layer must be 1 to the number of layers");
  for (std::size_t i = 0; i < shape.layers.size(); ++i) check_layer(shape, i);
  require(shape.per_layer_size >= 0 && (!shape.per_layer_size || shape.per_layer_vocab_size > 0),
          "per-layer embeddings need a vocabulary");
  require(shape.num_experts >= 0, "num_experts must not be negative");
  require(!shape.num_experts || (shape.expert_ffn_size > 0 && shape.num_experts_per_token > 0 &&
                                 shape.num_experts_per_token <= shape.num_experts),
          "a mixture of experts needs a width, and 1 to num_experts of them per token");
  return shape;
}

bool fits(const KVCache& cache, const DecoderShape& shape) {
  if (cache.num_layers() != static_cast<int>(shape.layers.size())) return false;
  for (int i = 0; i < cache.num_layers(); ++i) {
    const LayerShape& layer = shape.layers[static_cast<std::size_t>(i)];
    const LayerStore& store = cache.store(i);
    if (store.num_kv_heads() != layer.num_kv_heads || store.head_dim() != layer.head_dim ||
        store.is_ring() != layer.sliding) {
      return false;
    }
  }
  return true;
}

const float kPerLayerSumScale = std::sqrt(0.5f);

}  // namespace

Target::Target(ThreadPool& pool, DecoderShape shape, const Kernels& kernels)
    : shape_(checked(std::move(shape))),
      kernels_(kernels),
      pool_(pool),
      parameters_(pool),
      workspace_(shape_, pool.num_threads(), kMaxRows),
      embedded_(kMaxRows, shape_.hidden_size) {
  const auto table = [](std::size_t row) { return AlignedBytes(kMaxRows * row * sizeof(float)); };
  sliding_rope_ = table(2 * shape_.sliding_frequencies.size());
  global_rope_ = table(2 * shape_.global_frequencies.size());
  const auto size = static_cast<std::size_t>(shape_.per_layer_size);
  per_layer_ = table(size * shape_.layers.size());
  per_layer_scratch_ =
      AlignedBytes(static_cast<std::size_t>(pool.num_threads()) * size * sizeof(float));
  for (const LayerShape& layer : shape_.layers) {
    if (std::find(windows_.begin(), windows_.end(), layer.window) == windows_.end()) {
      windows_.push_back(layer.window);
    }
  }
  for (RowSet* set : {&all_, &kept_}) set->first_visible.resize(windows_.size());
  expect_parameters();
}

void Target::expect_parameters() {
  const int hidden = shape_.hidden_size, size = shape_.per_layer_size;
  parameters_.embedding("embed_tokens.weight", shape_.vocab_size, hidden, head_, embedding_rows_);
  parameters_.vector("norm.weight", hidden, norm_);
  parameters_.layers(shape_, layers_);
  if (!size) return;
  const int packed = num_layers() * size;
  parameters_.row_table("embed_tokens_per_layer.weight", shape_.per_layer_vocab_size, packed,
                        per_layer_rows_);
  parameters_.matrix("per_layer_model_projection.weight", packed, hidden,
                     per_layer_model_projection_);
  parameters_.vector("per_layer_projection_norm.weight", size, per_layer_projection_norm_);
}

void Target::finish() {
  parameters_.finish();
  // A layer's share of a quantised row has to begin with a block.
  require(!is_quantized(per_layer_rows_.type) || shape_.per_layer_size % kBlockColumns == 0,
          "embed_tokens_per_layer.weight is quantised, but ", shown(shape_.per_layer_size),
          " numbers per layer are no multiple of 32");
  embedding_bytes_ = AlignedBytes(kMaxRows * embedding_rows_.row_bytes());
  per_layer_bytes_ = AlignedBytes(kMaxRows * per_layer_rows_.row_bytes());
  is_complete_ = true;
}

std::unique_ptr<KVCache> Target::new_cache(std::int64_t max_length, std::int64_t slack) const {
  return std::make_unique<KVCache>(shape_, max_length, std::max<std::int64_t>(slack, kMaxRows));
}

// ---- A pass ----

void Target::check(std::span<const SequenceRows> sequences, const PassOutput& output) const {
  require(is_complete_, "finish() comes before forward()");
  require(output.num_candidates >= 0 && output.num_candidates <= kMaxCandidates,
          "num_candidates must be 0 to 256");
  static_assert(kMaxCandidates == 256);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const SequenceRows& rows = sequences[i];
    require(rows.num_rows > 0, "a sequence without tokens has no place in a pass");
    require(rows.num_outputs >= 0 && rows.num_outputs <= rows.num_rows,
            "num_outputs must be 0 to the number of tokens");
    require(rows.num_candidates >= 0 && rows.num_candidates <= output.num_candidates,
            "num_candidates must be 0 to the most of the pass");
    require(fits(*rows.cache, shape_), "the KV cache belongs to another model");
    for (std::size_t j = 0; j < i; ++j) {
      require(sequences[j].cache != rows.cache, "two sequences of a pass share a KV cache");
    }
    check_tokens(rows);
  }
}

void Target::check_tokens(const SequenceRows& rows) const {
  const int limit = shape_.per_layer_size ? std::min(shape_.vocab_size, shape_.per_layer_vocab_size)
                                          : shape_.vocab_size;
  for (const std::int32_t id : std::span(rows.token_ids, static_cast<std::size_t>(rows.num_rows))) {
    if (id >= 0 && id < limit) continue;
    require(false, "token ", shown(id), " is not in the vocabulary of ", shown(limit));
  }
}

void Target::forward(std::span<const SequenceRows> sequences, const PassOutput& output) {
  const std::lock_guard<std::mutex> turn(turn_);
  check(sequences, output);
  for (const SequenceRows& rows : sequences) {
    // The first that does not fit complains, before any other has changed.
    if (rows.cache->length() + rows.num_rows > rows.cache->max_length()) {
      rows.cache->reserve(rows.num_rows);
    }
  }
  for (const SequenceRows& rows : sequences) rows.cache->reserve(rows.num_rows);
  int first_output = 0;
  start_chunk();
  for (const SequenceRows& rows : sequences) {
    for (int begin = 0; begin < rows.num_rows;) {
      begin += add_rows(rows, begin);
      if (all_.num_rows() == kMaxRows) {
        run_chunk(output, first_output);
        first_output += kept_.num_rows();
        start_chunk();
      }
    }
  }
  if (all_.num_rows() > 0) run_chunk(output, first_output);
}

void Target::start_chunk() {
  spans_.clear();
  num_candidates_.clear();
  for (RowSet* set : {&all_, &kept_}) {
    set->token_ids.clear();
    set->positions.clear();
    set->places.clear();
    for (auto& visible : set->first_visible) visible.clear();
  }
}

void Target::add_row(RowSet& set, std::int32_t token_id, std::int64_t position) const {
  set.places.push_back(all_.num_rows());
  set.token_ids.push_back(token_id);
  set.positions.push_back(position);
  for (std::size_t w = 0; w < windows_.size(); ++w) {
    const std::int64_t first = windows_[w] ? position - windows_[w] + 1 : 0;
    set.first_visible[w].push_back(std::max<std::int64_t>(first, 0));
  }
}

// As many rows of a sequence, from `begin` on, as the chunk has room for; their number.
int Target::add_rows(const SequenceRows& rows, int begin) {
  const int count = std::min(rows.num_rows - begin, kMaxRows - all_.num_rows());
  // Chunks before this one have advanced the cache already.
  const std::int64_t position = rows.cache->length();
  spans_.push_back({rows.cache, position, all_.num_rows(), count, kept_.num_rows(), 0});
  for (int i = 0; i < count; ++i) {
    const std::int32_t id = rows.token_ids[begin + i];
    if (begin + i >= rows.num_rows - rows.num_outputs) {
      num_candidates_.push_back(rows.num_candidates);
      add_row(kept_, id, position + i);
      ++spans_.back().num_kept;
    }
    add_row(all_, id, position + i);
  }
  return count;
}

int Target::window_index(const LayerShape& layer) const {
  return static_cast<int>(std::find(windows_.begin(), windows_.end(), layer.window) -
                          windows_.begin());
}

void Target::point_spans(RowSet& set, int first_layer, int end_layer, bool kept) {
  set.spans.resize(shape_.layers.size() * spans_.size());
  for (int layer = first_layer; layer < end_layer; ++layer) {
    const LayerShape& shape = shape_.layers[static_cast<std::size_t>(layer)];
    const auto& visible = set.first_visible[static_cast<std::size_t>(window_index(shape))];
    AttentionSpan* to = set.spans.data() + static_cast<std::size_t>(layer) * spans_.size();
    for (const Span& span : spans_) {
      const int first = kept ? span.first_kept : span.first_row;
      *to++ = {&span.cache->store(layer), first, kept ? span.num_kept : span.num_rows,
               visible.data() + first, set.positions.data() + first};
    }
  }
}

// Here and not on the workers, which cannot throw.
void Target::read_rows() {
  const std::size_t size = per_layer_rows_.row_bytes();
  for (std::size_t i = 0; i < all_.token_ids.size(); ++i) {
    const std::int32_t id = all_.token_ids[i];
    embedding_rows_.read(id, embedding_bytes_.data() + i * embedding_rows_.row_bytes());
    if (!shape_.per_layer_size) continue;
    std::uint8_t* row = per_layer_bytes_.data() + i * size;
    per_layer_rows_.read(id, row);
    if (!is_finite_row(per_layer_rows_.type, row, per_layer_rows_.columns)) {
      throw NotFiniteError("embed_tokens_per_layer.weight");
    }
  }
}

void Target::run_chunk(const PassOutput& output, int first_output) {
  read_rows();
  const int owner = last_owner(), end = drops_rows() ? owner + 1 : num_layers();
  point_spans(all_, 0, end, false);
  if (drops_rows()) point_spans(kept_, owner, num_layers(), true);
  head_scratch_.reserve(pool_.num_threads(), kept_.num_rows(), output.num_candidates);
  pool_.run([&](Worker& worker) {
    run_layers(worker);
    if (kept_.num_rows() > 0) write_outputs(worker, output, first_output);
  });
  for (const Span& span : spans_) span.cache->advance(span.num_rows);
}

// ---- On every worker ----

void Target::run_layers(Worker& worker) {
  const bool drops = drops_rows();
  const int owner = last_owner();
  start_rows(worker, all_, true, 0);
  per_layer_inputs(worker, all_, 0, drops ? owner : num_layers());
  for (int layer = 0; layer < (drops ? owner : num_layers()); ++layer) {
    run_layer(worker, kernels_, workspace_, layer_call(all_, layer));
  }
  if (!drops) return;
  paceline::store_keys(worker, kernels_, workspace_, layer_call(all_, owner));
  if (kept_.num_rows() == 0) return;
  worker.barrier([&] { keep_rows(); });
  start_rows(worker, kept_, false, owner);
  per_layer_inputs(worker, kept_, owner, num_layers());
  for (int layer = owner; layer < num_layers(); ++layer) {
    LayerCall call = layer_call(kept_, layer);
    call.keys_stored = layer == owner;
    run_layer(worker, kernels_, workspace_, call);
  }
}

// Embeddings, angles, and the norm of the first layer that these rows meet.
void Target::start_rows(Worker& worker, const RowSet& set, bool with_rope, int norm_layer) {
  const int parts = with_rope ? 2 : 1;
  worker.for_each(set.num_rows() * parts, 1, [&](int first, int end) {
    for (int i = first; i < end; ++i) {
      i % parts == 0 ? embed_row(i / parts, set, norm_layer) : rope_rows(i / parts, set);
    }
  });
}

void Target::embed_row(int row, const RowSet& set, int norm_layer) const {
  const auto place = static_cast<std::size_t>(set.places[static_cast<std::size_t>(row)]);
  const int hidden = shape_.hidden_size;
  const Activations embedded = embedded_.view(set.num_rows(), hidden);
  const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(row) * hidden;
  kernels_.ops.embed(embedding_rows_.type,
                     embedding_bytes_.data() + place * embedding_rows_.row_bytes(),
                     shape_.embedding_scale, hidden, embedded.values + at);
  // Rows that were kept are in the stream already, further along.
  if (&set == &all_) std::copy_n(embedded.values + at, hidden, workspace_.x() + at);
  if (shape_.per_layer_size && is_quantized(per_layer_model_projection_.type)) {
    kernels_.linear.quantize(embedded, row, 0, hidden / kBlockColumns);
  }
  const LayerWeights& weights = layers_[static_cast<std::size_t>(norm_layer)];
  norm_row(kernels_, workspace_.x() + at, weights.input_norm, shape_.rms_norm_eps,
           workspace_.normed().view(set.num_rows(), hidden), row, weights.reads_quantized());
}

void Target::rope_rows(int row, const RowSet& set) {
  const std::int64_t position = set.positions[static_cast<std::size_t>(row)];
  const auto write = [&](const AlignedBytes& table, const std::vector<float>& frequencies) {
    const std::size_t size = 2 * frequencies.size();
    rope_row(position, frequencies, table.as<float>() + static_cast<std::size_t>(row) * size);
  };
  write(sliding_rope_, shape_.sliding_frequencies);
  write(global_rope_, shape_.global_frequencies);
}

// What each layer adds of the token itself (reference section 2.3).
void Target::per_layer_inputs(Worker& worker, const RowSet& set, int first_layer, int end_layer) {
  const int size = shape_.per_layer_size;
  if (!size || first_layer == end_layer) return;
  const Matrix& projection = per_layer_model_projection_;
  const int first_panel = first_layer * size / kPanelRows;
  const Activations in = embedded_.view(set.num_rows(), shape_.hidden_size);
  worker.for_each(num_panels(end_layer * size) - first_panel, grain_of(projection),
                  [&](int first, int end) {
                    kernels_.linear.multiply(projection, in, first_panel + first, first_panel + end,
                                             per_layer_.as<float>(), projection.outputs);
                  });
  const int count = end_layer - first_layer;
  worker.for_each(set.num_rows() * count, 1, [&](int first, int end) {
    for (int i = first; i < end; ++i) {
      per_layer_input(i / count, set, first_layer + i % count, worker.index());
    }
  });
}

void Target::per_layer_input(int row, const RowSet& set, int layer, int worker) const {
  const int size = shape_.per_layer_size;
  const auto place = static_cast<std::size_t>(set.places[static_cast<std::size_t>(row)]);
  const std::uint8_t* bytes = per_layer_bytes_.data() + place * per_layer_rows_.row_bytes();
  float* context =
      per_layer_.as<float>() + (static_cast<std::ptrdiff_t>(row) * num_layers() + layer) * size;
  float* token = per_layer_scratch_.as<float>() + static_cast<std::ptrdiff_t>(worker) * size;
  kernels_.ops.scale(context, 1.0f / std::sqrt(static_cast<float>(shape_.hidden_size)), size);
  kernels_.ops.rms_norm(context, per_layer_projection_norm_, shape_.rms_norm_eps, size, context);
  kernels_.ops.embed(per_layer_rows_.type,
                     bytes + source_row_bytes(per_layer_rows_.type, layer * size),
                     shape_.per_layer_scale, size, token);
  kernels_.ops.add(token, kPerLayerSumScale, size, context);
}

// Rows with outputs move to the front, in order: none lands on one that is still to move.
void Target::keep_rows() {
  const auto move = [&](float* table, int size) {
    for (std::size_t i = 0; i < kept_.places.size(); ++i) {
      const auto from = static_cast<std::size_t>(kept_.places[i]);
      if (from == i) continue;
      const auto floats = static_cast<std::size_t>(size);
      std::copy_n(table + from * floats, floats, table + i * floats);
    }
  };
  move(workspace_.x(), shape_.hidden_size);
  move(sliding_rope_.as<float>(), static_cast<int>(2 * shape_.sliding_frequencies.size()));
  move(global_rope_.as<float>(), static_cast<int>(2 * shape_.global_frequencies.size()));
}

float* Target::rope(const LayerShape& layer) const {
  return (layer.sliding ? sliding_rope_ : global_rope_).as<float>();
}

NextNorm Target::norm_after(int layer) const {
  if (layer + 1 == num_layers()) return {norm_, is_quantized(head_.type)};
  const LayerWeights& next = layers_[static_cast<std::size_t>(layer + 1)];
  return {next.input_norm, next.reads_quantized()};
}

LayerCall Target::layer_call(const RowSet& set, int layer) const {
  const auto index = static_cast<std::size_t>(layer);
  LayerCall call;
  call.shape = &shape_;
  call.layer = &shape_.layers[index];
  call.weights = &layers_[index];
  call.next = norm_after(layer);
  call.num_rows = set.num_rows();
  call.rope = rope(*call.layer);
  call.spans = set.spans.data() + index * spans_.size();
  call.num_spans = static_cast<int>(spans_.size());
  call.per_layer = per_layer_.as<float>() + layer * shape_.per_layer_size;
  call.per_layer_stride = static_cast<std::ptrdiff_t>(num_layers()) * shape_.per_layer_size;
  return call;
}

void Target::write_outputs(Worker& worker, const PassOutput& output, int first_output) {
  const int rows = kept_.num_rows(), hidden = shape_.hidden_size;
  const Activations x = workspace_.normed().view(rows, hidden);
  const std::ptrdiff_t first = first_output;
  for (int row = worker.index(); row < rows; row += worker.num_workers()) {
    std::copy_n(x.values + static_cast<std::ptrdiff_t>(row) * hidden, hidden,
                output.hidden + (first + row) * hidden);
  }
  HeadCall call;
  call.weights = &head_;
  call.x = &x;
  call.softcap = shape_.logit_softcap;
  call.logits_stride = shape_.vocab_size;
  call.logits = output.logits + first * call.logits_stride;
  call.candidates_stride = output.num_candidates;
  if (output.num_candidates > 0) {
    call.num_candidates = num_candidates_.data();
    call.candidate_ids = output.candidate_ids + first * output.num_candidates;
    call.candidate_logits = output.candidate_logits + first * output.num_candidates;
  }
  call.scratch = &head_scratch_;
  output_head(worker, kernels_, call);
}

}  // namespace paceline
