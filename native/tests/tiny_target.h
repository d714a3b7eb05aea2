// Small random targets of every geometry, and their slow twin: scalar, in double, over whole
// sequences without any cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "paceline/gemma4.h"
#include "test.h"

namespace paceline::testing {

enum class Geometry { per_layer, dense, experts };

inline constexpr Geometry kGeometries[] = {Geometry::per_layer, Geometry::dense, Geometry::experts};
inline const char* kGeometryNames[] = {"per_layer", "dense", "experts"};

inline std::vector<float> frequencies(int head_dim, float base, double fraction) {
  std::vector<float> all(static_cast<std::size_t>(head_dim / 2), 0.0f);
  for (int i = 0; i < static_cast<int>(fraction * head_dim / 2); ++i) {
    all[static_cast<std::size_t>(i)] =
        static_cast<float>(std::pow(base, -2.0 * i / static_cast<double>(head_dim)));
  }
  return all;
}

// `even`: sizes that divide into blocks of 32; else sizes that fill neither blocks nor panels.
inline DecoderShape tiny_shape(Geometry geometry, bool even) {
  DecoderShape shape;
  shape.hidden_size = even ? 96 : 52;
  shape.vocab_size = 203;
  shape.num_heads = 4;
  const int sliding_dim = even ? 32 : 20, global_dim = even ? 64 : 34;
  const bool per_layer = geometry == Geometry::per_layer, dense = geometry == Geometry::dense;
  for (int i = 0; i < 6; ++i) {
    LayerShape layer;
    layer.sliding = i % 3 != 2;
    layer.window = layer.sliding ? 40 : 0;
    layer.head_dim = layer.sliding ? sliding_dim : global_dim;
    layer.num_kv_heads = per_layer ? 1 : layer.sliding ? 2 : 1;
    layer.values_from_keys = !per_layer && !layer.sliding;
    layer.owns_kv = !per_layer || i < 3;
    layer.kv_layer = layer.owns_kv ? i : layer.sliding ? 1 : 2;
    layer.ffn_size = (even ? 160 : 75) * (layer.owns_kv ? 1 : 2);
    shape.layers.push_back(layer);
  }
  if (dense) shape.layers.resize(4);
  shape.first_shared_layer = per_layer ? 3 : static_cast<int>(shape.layers.size());
  shape.sliding_frequencies = frequencies(sliding_dim, 1e4f, 1.0);
  shape.global_frequencies = frequencies(global_dim, 1e6f, 0.25);
  shape.logit_softcap = dense ? 0.0f : 30.0f;
  shape.embedding_scale = std::sqrt(static_cast<float>(shape.hidden_size));
  if (per_layer) {
    shape.per_layer_size = even ? 32 : 11;
    shape.per_layer_vocab_size = shape.vocab_size;
    shape.per_layer_scale = std::sqrt(static_cast<float>(shape.per_layer_size));
  }
  if (geometry == Geometry::experts) {
    shape.num_experts = 7;
    shape.num_experts_per_token = 3;
    shape.expert_ffn_size = even ? 64 : 45;
  }
  return shape;
}

struct NamedTensor {
  std::string name, dtype;
  int rows, columns;
  std::vector<std::uint8_t> bytes;
  std::vector<float> values;  // as the bytes say

  Tensor view() const { return {name, dtype, bytes.data(), bytes.size(), nullptr}; }
};

// A shape with random tensors. Matrices are stored as `dtype`, the rest as F32.
class TinyTarget {
 public:
  TinyTarget(Geometry geometry, const std::string& dtype, unsigned seed = 1)
      : shape(tiny_shape(geometry, dtype[0] == 'Q')), dtype_(dtype), seed_(seed) {
    const int hidden = shape.hidden_size, size = shape.per_layer_size;
    const int layers = static_cast<int>(shape.layers.size());
    matrix("embed_tokens.weight", shape.vocab_size, hidden, 0.3f);
    norm("norm.weight", hidden);
    if (size) {
      matrix("embed_tokens_per_layer.weight", shape.per_layer_vocab_size, layers * size, 0.3f);
      matrix("per_layer_model_projection.weight", layers * size, hidden);
      norm("per_layer_projection_norm.weight", size);
    }
    for (int i = 0; i < layers; ++i) layer("layers." + std::to_string(i) + ".", i);
  }

  const NamedTensor& tensor(const std::string& name) const { return tensors.at(name); }
  NamedTensor& tensor(const std::string& name) { return tensors.at(name); }

  std::unique_ptr<Target> load(ThreadPool& pool, const Kernels& kernels) const {
    auto target = std::make_unique<Target>(pool, shape, kernels);
    for (const auto& [name, tensor] : tensors) target->load(tensor.view());
    target->finish();
    return target;
  }

  DecoderShape shape;
  std::map<std::string, NamedTensor> tensors;

 private:
  void add(const std::string& name, const std::string& dtype, int rows, int columns,
           const std::vector<float>& values) {
    NamedTensor tensor{name, dtype, rows, columns, {}, {}};
    const WeightType type = parse_weight_type({name, dtype, nullptr, 0, nullptr});
    for (int r = 0; r < rows; ++r) {
      const auto row = quantize_row(type, values.data() + r * columns, columns);
      const auto used = dequantize_row(type, row.data(), columns);
      tensor.bytes.insert(tensor.bytes.end(), row.begin(), row.end());
      tensor.values.insert(tensor.values.end(), used.begin(), used.end());
    }
    tensors.emplace(name, tensor);
  }
  void matrix(const std::string& name, int rows, int columns, float spread = 0.0f) {
    if (spread == 0.0f) spread = 1.0f / std::sqrt(static_cast<float>(columns));
    add(name, dtype_, rows, columns,
        random_values(static_cast<std::size_t>(rows * columns), seed_++, spread));
  }
  void norm(const std::string& name, int size, float mean = 1.0f) {
    auto values = random_values(static_cast<std::size_t>(size), seed_++, 0.1f * mean);
    for (float& value : values) value += mean;
    add(name, "F32", 1, size, values);
  }

  void layer(const std::string& prefix, int index) {
    const LayerShape& layer = shape.layers[static_cast<std::size_t>(index)];
    const int hidden = shape.hidden_size, query = shape.num_heads * layer.head_dim;
    const int kv = layer.num_kv_heads * layer.head_dim;
    for (const char* name : {"input_layernorm", "post_attention_layernorm",
                             "pre_feedforward_layernorm", "post_feedforward_layernorm"}) {
      norm(prefix + name + ".weight", hidden);
    }
    norm(prefix + "layer_scalar", 1);
    matrix(prefix + "self_attn.q_proj.weight", query, hidden);
    // Small, so that attention looks at many keys.
    norm(prefix + "self_attn.q_norm.weight", layer.head_dim, 0.3f);
    matrix(prefix + "self_attn.o_proj.weight", hidden, query);
    if (layer.owns_kv) {
      matrix(prefix + "self_attn.k_proj.weight", kv, hidden);
      norm(prefix + "self_attn.k_norm.weight", layer.head_dim);
      if (!layer.values_from_keys) matrix(prefix + "self_attn.v_proj.weight", kv, hidden);
    }
    matrix(prefix + "mlp.gate_proj.weight", layer.ffn_size, hidden);
    matrix(prefix + "mlp.up_proj.weight", layer.ffn_size, hidden);
    matrix(prefix + "mlp.down_proj.weight", hidden, layer.ffn_size);
    if (shape.per_layer_size) {
      matrix(prefix + "per_layer_input_gate.weight", shape.per_layer_size, hidden);
      matrix(prefix + "per_layer_projection.weight", hidden, shape.per_layer_size);
      norm(prefix + "post_per_layer_input_norm.weight", hidden);
    }
    if (shape.num_experts) experts(prefix);
  }
  void experts(const std::string& prefix) {
    const int hidden = shape.hidden_size, count = shape.num_experts, ffn = shape.expert_ffn_size;
    // Large, so that the last of the chosen weighs little: it may tie nearly with the next.
    matrix(prefix + "router.proj.weight", count, hidden, 5.0f);
    NamedTensor& router = tensors.at(prefix + "router.proj.weight");
    // Experts 2 and 5 always tie.
    const std::size_t row = router.bytes.size() / static_cast<std::size_t>(count);
    std::copy_n(router.bytes.begin() + static_cast<std::ptrdiff_t>(2 * row), row,
                router.bytes.begin() + static_cast<std::ptrdiff_t>(5 * row));
    std::copy_n(router.values.begin() + 2 * hidden, hidden, router.values.begin() + 5 * hidden);
    norm(prefix + "router.scale", hidden);
    norm(prefix + "router.per_expert_scale", count);
    matrix(prefix + "experts.gate_up_proj", count * 2 * ffn, hidden);
    matrix(prefix + "experts.down_proj", count * hidden, ffn);
    for (const char* name : {"pre_feedforward_layernorm_2", "post_feedforward_layernorm_1",
                             "post_feedforward_layernorm_2"}) {
      norm(prefix + name + ".weight", hidden);
    }
  }

  std::string dtype_;
  unsigned seed_;
};

using Row = std::vector<double>;

// The arithmetic of reference section 2, one value after the other. With `disturb`, every result of
// an operation is off by a random part of what the operation may err in float32: how far that moves
// the outputs tells how near the runtime has to be.
class Twin {
 public:
  explicit Twin(const TinyTarget& model, std::optional<unsigned> disturb = {})
      : model_(model),
        shape_(model.shape),
        disturb_(disturb.has_value()),
        bits_(disturb.value_or(0)) {}

  struct Output {
    std::vector<Row> logits, hidden;
  };

  Output forward(const std::vector<std::int32_t>& tokens) {
    keys_.assign(shape_.layers.size(), {});
    values_.assign(shape_.layers.size(), {});
    Output output;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      Row x = decode(tokens[t], static_cast<int>(t));
      output.hidden.push_back(norm(x, "norm.weight"));
      Row logits = linear("embed_tokens.weight", output.hidden.back());
      if (shape_.logit_softcap > 0) {
        const double cap = shape_.logit_softcap;
        for (double& z : logits) z = cap * std::tanh(z / cap);
      }
      output.logits.push_back(logits);
    }
    return output;
  }

 private:
  static constexpr double kHalfUlp = 0x1p-24;

  // x, off by at most `steps` roundings of numbers as large as `magnitude`.
  double err(double x, double steps, double magnitude) {
    if (!disturb_) return x;
    return x + std::uniform_real_distribution<double>(-1, 1)(bits_) * steps * kHalfUlp * magnitude;
  }
  Row err(Row row, double steps) {
    for (double& x : row) x = err(x, steps, std::fabs(x));
    return row;
  }

  const std::vector<float>& values(const std::string& name) const {
    return model_.tensors.at(name).values;
  }

  // Rows first to first + count - 1 of a matrix times x, which quantised weights see as bytes.
  Row linear(const std::string& name, Row x, int first = 0, int count = 0) {
    const NamedTensor& w = model_.tensors.at(name);
    const bool quantized = w.dtype[0] == 'Q';
    if (quantized) x = as_bytes(x);
    if (count == 0) count = w.rows;
    Row out;
    for (int r = first; r < first + count; ++r) {
      double sum = 0, magnitude = 0;
      for (int c = 0; c < w.columns; ++c) {
        const double term = double(w.values[static_cast<std::size_t>(r * w.columns + c)]) *
                            x[static_cast<std::size_t>(c)];
        sum += term;
        magnitude += std::fabs(term);
      }
      // One rounding per step of the chain.
      out.push_back(err(sum, quantized ? w.columns / 32 + 3 : w.columns, magnitude));
    }
    return out;
  }
  static Row as_bytes(Row x) {
    for (std::size_t b = 0; b < x.size(); b += 32) {
      double largest = 0;
      for (std::size_t i = b; i < b + 32; ++i) largest = std::max(largest, std::fabs(x[i]));
      for (std::size_t i = b; i < b + 32 && largest > 0; ++i) {
        x[i] = std::nearbyint(x[i] * 127 / largest) * largest / 127;
      }
    }
    return x;
  }
  Row norm(const Row& x, const std::string& weight) {
    Row out = plain_norm(x);
    const auto& w = values(weight);
    for (std::size_t i = 0; i < x.size(); ++i) out[i] *= w[i];
    return err(out, 1);
  }
  Row plain_norm(const Row& x) {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double root = std::sqrt(squares / static_cast<double>(x.size()) + shape_.rms_norm_eps);
    Row out = x;
    for (double& value : out) value /= root;
    return err(out, 8);
  }
  static Row part(const Row& x, int first, int count) {
    return {x.begin() + first, x.begin() + first + count};
  }
  Row gelu_gate(const Row& gate, const Row& up) {
    Row out;
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double x = gate[i];
      const double u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
      out.push_back(0.5 * x * (1 + std::tanh(u)) * up[i]);
    }
    return err(out, 16);
  }
  void add(Row& x, const Row& y, double scale = 1) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = err((x[i] + y[i]) * scale, 2, std::fabs(x[i] * scale));
    }
  }
  void rope(Row& head, int position, bool sliding) {
    const auto& all = sliding ? shape_.sliding_frequencies : shape_.global_frequencies;
    const std::size_t half = head.size() / 2;
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = static_cast<float>(position) * all[i];  // a float by definition
      const double a = head[i], b = head[i + half];
      head[i] = a * std::cos(angle) - b * std::sin(angle);
      head[i + half] = b * std::cos(angle) + a * std::sin(angle);
      head[i] = err(head[i], 3, std::fabs(a) + std::fabs(b));
      head[i + half] = err(head[i + half], 3, std::fabs(a) + std::fabs(b));
    }
  }
  static double half(double x) { return from_f16(to_f16(static_cast<float>(x))); }

  Row decode(std::int32_t token, int position) {
    const int hidden = shape_.hidden_size;
    const auto& table = values("embed_tokens.weight");
    Row x;
    for (int i = 0; i < hidden; ++i) {
      x.push_back(double(table[static_cast<std::size_t>(token * hidden + i)]) *
                  shape_.embedding_scale);
    }
    x = err(x, 1);
    const Row extra = per_layer_inputs(token, x);
    for (std::size_t l = 0; l < shape_.layers.size(); ++l) {
      const std::string prefix = "layers." + std::to_string(l) + ".";
      add(x, norm(attention(norm(x, prefix + "input_layernorm.weight"), prefix, l, position),
                  prefix + "post_attention_layernorm.weight"));
      add(x, norm(feed_forward(x, prefix), prefix + "post_feedforward_layernorm.weight"));
      if (shape_.per_layer_size) {
        const Row gate = linear(prefix + "per_layer_input_gate.weight", x);
        const Row gated = gelu_gate(
            gate, part(extra, static_cast<int>(l) * shape_.per_layer_size, shape_.per_layer_size));
        add(x, norm(linear(prefix + "per_layer_projection.weight", gated),
                    prefix + "post_per_layer_input_norm.weight"));
      }
      for (double& value : x) value *= values(prefix + "layer_scalar")[0];
      x = err(x, 1);
    }
    return x;
  }
  Row per_layer_inputs(std::int32_t token, const Row& x) {
    const int size = shape_.per_layer_size;
    if (!size) return {};
    const int packed = size * static_cast<int>(shape_.layers.size());
    const Row projected = linear("per_layer_model_projection.weight", x);
    const auto& table = values("embed_tokens_per_layer.weight");
    Row all;
    for (int first = 0; first < packed; first += size) {
      Row context = part(projected, first, size);
      for (double& value : context) value /= std::sqrt(static_cast<double>(shape_.hidden_size));
      context = norm(context, "per_layer_projection_norm.weight");
      for (int i = 0; i < size; ++i) {
        const double row = table[static_cast<std::size_t>(token * packed + first + i)];
        const double sum = context[static_cast<std::size_t>(i)] + row * shape_.per_layer_scale;
        all.push_back(err(sum * std::sqrt(0.5), 4, std::fabs(sum)));
      }
    }
    return all;
  }
  Row attention(const Row& x, const std::string& prefix, std::size_t l, int position) {
    const LayerShape& layer = shape_.layers[l];
    const int size = layer.head_dim;
    if (layer.owns_kv) {
      const Row keys = linear(prefix + "self_attn.k_proj.weight", x);
      const Row raw = layer.values_from_keys ? keys : linear(prefix + "self_attn.v_proj.weight", x);
      Row stored_keys, stored_values;
      for (int g = 0; g < layer.num_kv_heads; ++g) {
        Row key = norm(part(keys, g * size, size), prefix + "self_attn.k_norm.weight");
        rope(key, position, layer.sliding);
        for (const double k : key) stored_keys.push_back(half(k));
        for (const double v : plain_norm(part(raw, g * size, size))) {
          stored_values.push_back(half(v));
        }
      }
      keys_[l].push_back(stored_keys);
      values_[l].push_back(stored_values);
    }
    const auto donor = static_cast<std::size_t>(layer.kv_layer);
    const Row queries = linear(prefix + "self_attn.q_proj.weight", x);
    const int first = layer.window ? std::max(0, position - layer.window + 1) : 0;
    Row mixed;
    for (int h = 0; h < shape_.num_heads; ++h) {
      Row query = norm(part(queries, h * size, size), prefix + "self_attn.q_norm.weight");
      rope(query, position, layer.sliding);
      const int group = h / (shape_.num_heads / layer.num_kv_heads);
      const Row out = mix(query, keys_[donor], values_[donor], group * size, first, position);
      mixed.insert(mixed.end(), out.begin(), out.end());
    }
    return linear(prefix + "self_attn.o_proj.weight", mixed);
  }
  Row mix(const Row& query, const std::vector<Row>& keys, const std::vector<Row>& stored, int at,
          int first, int last) {
    const std::size_t size = query.size();
    Row weights, out(size, 0.0);
    for (int p = first; p <= last; ++p) {
      double score = 0, magnitude = 0;
      for (std::size_t i = 0; i < size; ++i) {
        const double term =
            query[i] * keys[static_cast<std::size_t>(p)][static_cast<std::size_t>(at) + i];
        score += term;
        magnitude += std::fabs(term);
      }
      weights.push_back(err(score, static_cast<double>(size), magnitude));
    }
    const double best = *std::max_element(weights.begin(), weights.end());
    double total = 0;
    for (double& w : weights) total += w = std::exp(w - best);
    for (std::size_t i = 0; i < size; ++i) {
      double magnitude = 0;
      for (int p = first; p <= last; ++p) {
        const double term = weights[static_cast<std::size_t>(p - first)] *
                            stored[static_cast<std::size_t>(p)][static_cast<std::size_t>(at) + i];
        out[i] += term;
        magnitude += std::fabs(term);
      }
      out[i] = err(out[i] / total, last - first + 8, magnitude / total);
    }
    return out;
  }
  Row feed_forward(const Row& x, const std::string& prefix) {
    const Row in = norm(x, prefix + "pre_feedforward_layernorm.weight");
    const Row gated = gelu_gate(linear(prefix + "mlp.gate_proj.weight", in),
                                linear(prefix + "mlp.up_proj.weight", in));
    Row dense = linear(prefix + "mlp.down_proj.weight", gated);
    if (!shape_.num_experts) return dense;
    dense = norm(dense, prefix + "post_feedforward_layernorm_1.weight");
    add(dense, norm(experts(x, prefix), prefix + "post_feedforward_layernorm_2.weight"));
    return dense;
  }
  Row experts(const Row& x, const std::string& prefix) {
    Row in = norm(x, prefix + "router.scale");
    for (double& value : in) value /= std::sqrt(static_cast<double>(shape_.hidden_size));
    Row probabilities = linear(prefix + "router.proj.weight", in);
    // Equal rows of the router stay equal.
    probabilities[5] = probabilities[2];
    const double best = *std::max_element(probabilities.begin(), probabilities.end());
    for (double& p : probabilities) p = std::exp(p - best);
    std::vector<int> order(probabilities.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return probabilities[static_cast<std::size_t>(a)] >
             probabilities[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(shape_.num_experts_per_token));
    double total = 0;
    for (const int e : order) total += probabilities[static_cast<std::size_t>(e)];
    const Row z = norm(x, prefix + "pre_feedforward_layernorm_2.weight");
    const int ffn = shape_.expert_ffn_size;
    Row sum(x.size(), 0.0);
    for (const int e : order) {
      const auto index = static_cast<std::size_t>(e);
      const Row gated =
          gelu_gate(linear(prefix + "experts.gate_up_proj", z, 2 * e * ffn, ffn),
                    linear(prefix + "experts.gate_up_proj", z, (2 * e + 1) * ffn, ffn));
      const Row out =
          linear(prefix + "experts.down_proj", gated, e * shape_.hidden_size, shape_.hidden_size);
      const double weight =
          probabilities[index] / total * values(prefix + "router.per_expert_scale")[index];
      for (std::size_t i = 0; i < out.size(); ++i) {
        sum[i] = err(sum[i] + out[i] * weight, 16, std::fabs(sum[i]) + std::fabs(out[i] * weight));
      }
    }
    return sum;
  }

  const TinyTarget& model_;
  const DecoderShape& shape_;
  const bool disturb_;
  std::mt19937 bits_;
  std::vector<std::vector<Row>> keys_, values_;  // [layers][positions][G H]
};

}  // namespace paceline::testing
