// A small random drafter with its target's keys, values and embeddings, for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>

#include "paceline/drafter.h"
#include "test.h"

namespace paceline::testing {

// Rows as they lie in a file, and the numbers that they hold.
struct FileMatrix {
  WeightType type;
  int rows, columns;
  std::vector<std::uint8_t> bytes;
  std::vector<float> numbers;

  FileMatrix(WeightType kind, int num_rows, int num_columns, const std::vector<float>& values)
      : type(kind), rows(num_rows), columns(num_columns) {
    for (int r = 0; r < rows; ++r) {
      const auto row = quantize_row(type, values.data() + r * columns, columns);
      const auto used = dequantize_row(type, row.data(), columns);
      bytes.insert(bytes.end(), row.begin(), row.end());
      numbers.insert(numbers.end(), used.begin(), used.end());
    }
  }
  Tensor tensor(const std::string& name) const {
    return {name, kDtypes[static_cast<int>(type)], bytes.data(), bytes.size(), nullptr};
  }
};

inline DecoderShape draft_shape(int num_centroids, int top_k, int vocabulary) {
  DecoderShape shape;
  shape.hidden_size = 64;
  shape.vocab_size = vocabulary;
  shape.num_heads = 4;
  shape.target_hidden_size = 96;
  shape.num_centroids = num_centroids;
  shape.centroid_top_k = top_k;
  LayerShape sliding;
  sliding.sliding = true;
  sliding.head_dim = 16;
  sliding.num_kv_heads = 2;
  sliding.ffn_size = 96;
  sliding.owns_kv = false;
  sliding.kv_layer = 1;
  sliding.window = 24;
  LayerShape global = sliding;
  global.sliding = false;
  global.head_dim = 32;
  global.num_kv_heads = 1;
  global.kv_layer = 2;
  global.window = 0;
  shape.layers = {sliding, global};
  for (int i = 0; i < 8; ++i) shape.sliding_frequencies.push_back(1.0f / float(1 << i));
  shape.global_frequencies.assign(16, 0.0f);
  for (std::size_t i = 0; i < 4; ++i) shape.global_frequencies[i] = 1.0f / float(1 << 2 * i);
  return shape;
}

// Layer 0 is nobody's donor.
inline DecoderShape target_shape(const DecoderShape& drafter) {
  DecoderShape shape = drafter;
  shape.hidden_size = drafter.target_hidden_size;
  shape.target_hidden_size = 0;
  shape.embedding_scale = 3.5f;
  shape.layers.insert(shape.layers.begin(), drafter.layers[0]);
  for (int i = 0; i < 3; ++i) {
    shape.layers[static_cast<std::size_t>(i)].owns_kv = true;
    shape.layers[static_cast<std::size_t>(i)].kv_layer = i;
  }
  shape.first_shared_layer = 3;
  return shape;
}

struct DraftModel {
  DecoderShape shape, target;
  std::map<std::string, FileMatrix> tensors;
  std::vector<std::int64_t> ordering;  // empty: dense head
  FileMatrix embeddings;               // the target's
  std::vector<float> hidden;

  explicit DraftModel(WeightType type, int num_centroids = 0, int top_k = 0, int vocabulary = 300)
      : shape(draft_shape(num_centroids, top_k, vocabulary)),
        target(target_shape(shape)),
        embeddings(type, vocabulary, target.hidden_size,
                   random_values(static_cast<std::size_t>(vocabulary * target.hidden_size), 900)),
        hidden(random_values(static_cast<std::size_t>(target.hidden_size), 901)) {
    const int d = shape.hidden_size, wide = shape.target_hidden_size;
    add(type, "pre_projection.weight", d, 2 * wide);
    add(type, "post_projection.weight", wide, d);
    add(type, "embed_tokens.weight", vocabulary, d);
    vector("norm.weight", d);
    for (std::size_t i = 0; i < shape.layers.size(); ++i) {
      const LayerShape& layer = shape.layers[i];
      const std::string in = "layers." + std::to_string(i) + ".";
      for (const char* norm : {"input_layernorm", "post_attention_layernorm",
                               "pre_feedforward_layernorm", "post_feedforward_layernorm"}) {
        vector(in + norm + ".weight", d);
      }
      vector(in + "layer_scalar", 1);
      vector(in + "self_attn.q_norm.weight", layer.head_dim);
      add(type, in + "self_attn.q_proj.weight", shape.num_heads * layer.head_dim, d);
      add(type, in + "self_attn.o_proj.weight", d, shape.num_heads * layer.head_dim);
      add(type, in + "mlp.gate_proj.weight", layer.ffn_size, d);
      add(type, in + "mlp.up_proj.weight", layer.ffn_size, d);
      add(type, in + "mlp.down_proj.weight", d, layer.ffn_size);
    }
    if (num_centroids == 0) return;
    add(type, "masked_embedding.centroids.weight", num_centroids, d);
    ordering.resize(static_cast<std::size_t>(vocabulary));
    std::iota(ordering.begin(), ordering.end(), 0);
    std::shuffle(ordering.begin(), ordering.end(), std::mt19937(902));
  }

  void add(WeightType type, const std::string& name, int rows, int columns) {
    const auto seed = static_cast<unsigned>(tensors.size() + 1);
    const float spread = 1.0f / std::sqrt(static_cast<float>(columns));
    const auto count = static_cast<std::size_t>(rows * columns);
    tensors.insert_or_assign(name,
                             FileMatrix(type, rows, columns, random_values(count, seed, spread)));
  }

  // Norms and scalars, around 1.
  void vector(const std::string& name, int count) {
    auto values = random_values(static_cast<std::size_t>(count),
                                static_cast<unsigned>(tensors.size() + 1), 0.2f);
    for (float& value : values) value += 1.0f;
    tensors.insert_or_assign(name, FileMatrix(WeightType::f32, 1, count, values));
  }

  const std::vector<float>& numbers(const std::string& name) const {
    return tensors.at(name).numbers;
  }

  Tensor ordering_tensor() const {
    return {"masked_embedding.token_ordering", "I64",
            reinterpret_cast<const std::uint8_t*>(ordering.data()),
            ordering.size() * sizeof(std::int64_t), nullptr};
  }

  RowTable rows() const {
    return {embeddings.type, embeddings.rows, embeddings.columns, embeddings.bytes.data(), {}};
  }

  void load_into(Drafter& drafter, bool ordering_first = false) const {
    if (ordering_first && !ordering.empty()) drafter.load(ordering_tensor());
    for (const auto& [name, matrix] : tensors) drafter.load(matrix.tensor(name));
    if (!ordering_first && !ordering.empty()) drafter.load(ordering_tensor());
    drafter.finish();
  }

  // A cache of random keys and values.
  std::unique_ptr<KVCache> cache(std::int64_t length, const Kernels& kernels) const {
    auto filled = std::make_unique<KVCache>(target, 400, 64);
    filled->reserve(length);
    for (const int layer : {1, 2}) {
      const LayerStore& store = filled->store(layer);
      const auto size = static_cast<std::size_t>(store.head_dim());
      const auto rows = static_cast<std::size_t>(length * store.num_kv_heads());
      const auto keys = random_values(rows * size, 950 + static_cast<unsigned>(layer), 0.5f);
      const auto values = random_values(rows * size, 960 + static_cast<unsigned>(layer));
      for (std::size_t row = 0; row < rows; ++row) {
        const auto heads = static_cast<std::size_t>(store.num_kv_heads());
        store.write(kernels, static_cast<std::int64_t>(row / heads), static_cast<int>(row % heads),
                    keys.data() + row * size, values.data() + row * size);
      }
    }
    filled->advance(length);
    return filled;
  }
};

}  // namespace paceline::testing
