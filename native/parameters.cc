#include "paceline/parameters.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

namespace paceline {
namespace {

[[noreturn]] void refuse(const Tensor& tensor, const std::string& what) {
  throw std::invalid_argument(tensor.name + " " + what);
}

[[noreturn]] void refuse_not_finite(const Tensor& tensor) {
  throw NotFiniteError(tensor.name + " holds an infinity or NaN");
}

// Whether one of `count` numbers of 2 or 4 bytes, `stride` bytes apart, has all of these bits set.
template <class Bits>
bool any_has(const std::uint8_t* from, std::size_t count, std::size_t stride, Bits bits) {
  bool found = false;
  for (std::size_t i = 0; i < count; ++i) {
    Bits value;
    std::memcpy(&value, from + i * stride, sizeof value);
    found |= (value & bits) == bits;
  }
  return found;
}

}  // namespace

RowTable rows_of(const Tensor& tensor, WeightType type, int num_rows, int columns) {
  if (tensor.file) return {type, num_rows, columns, nullptr, nullptr, tensor.file};
  return {type, num_rows, columns, tensor.data, tensor.owner};
}

void RowTable::read(std::int64_t index, std::uint8_t* to) const {
  const std::size_t size = row_bytes(), offset = static_cast<std::size_t>(index) * size;
  if (file) return file->read(offset, size, to);
  std::memcpy(to, data + offset, size);
}

WeightType parse_weight_type(const Tensor& tensor) {
  constexpr const char* kNames[] = {"Q4_0", "Q8_0", "BF16", "F16", "F32"};
  for (int i = 0; i < 5; ++i) {
    if (tensor.dtype == kNames[i]) return static_cast<WeightType>(i);
  }
  refuse(tensor, "is stored as " + tensor.dtype + ": expected Q4_0, Q8_0, BF16, F16 or F32");
}

WeightType check_matrix(const Tensor& tensor, std::int64_t rows, int columns) {
  const WeightType type = parse_weight_type(tensor);
  if (is_quantized(type) && columns % kBlockColumns != 0) {
    refuse(tensor, "is stored as " + tensor.dtype + ", but its rows of " + std::to_string(columns) +
                       " numbers are no multiple of " + std::to_string(kBlockColumns));
  }
  const std::size_t expected = static_cast<std::size_t>(rows) * source_row_bytes(type, columns);
  if (tensor.size != expected) {
    refuse(tensor, "has " + std::to_string(tensor.size) + " bytes, but [" + std::to_string(rows) +
                       ", " + std::to_string(columns) + "] in " + tensor.dtype + " is " +
                       std::to_string(expected));
  }
  return type;
}

bool is_finite_row(WeightType type, const std::uint8_t* row, int count) {
  constexpr std::uint16_t kHalfExponent = 0x7c00, kBf16Exponent = 0x7f80;
  const std::size_t size = source_row_bytes(type, count), numbers = static_cast<std::size_t>(count);
  switch (type) {
    case WeightType::q4_0:
    case WeightType::q8_0: {
      const std::size_t blocks = numbers / kBlockColumns;
      return blocks == 0 || !any_has(row, blocks, size / blocks, kHalfExponent);
    }
    case WeightType::bf16:
      return !any_has(row, numbers, 2, kBf16Exponent);
    case WeightType::f16:
      return !any_has(row, numbers, 2, kHalfExponent);
    case WeightType::f32:
      return !any_has(row, numbers, 4, std::uint32_t{0x7f800000});
  }
  return false;
}

AlignedBytes Parameters::pack(const Tensor& tensor, WeightType type, int outputs, int inner,
                              int count) {
  const int panels = num_panels(outputs);
  const std::size_t row_bytes = source_row_bytes(type, inner);
  const std::size_t matrix_bytes = static_cast<std::size_t>(panels) * panel_bytes(type, inner);
  AlignedBytes packed(matrix_bytes * static_cast<std::size_t>(count));
  std::atomic<bool> finite = true;
  const auto pack_one = [&](std::size_t matrix, int panel) {
    const std::uint8_t* rows = tensor.data + matrix * static_cast<std::size_t>(outputs) * row_bytes;
    for (int r = panel * kPanelRows; r < std::min(outputs, (panel + 1) * kPanelRows); ++r) {
      if (!is_finite_row(type, rows + static_cast<std::size_t>(r) * row_bytes, inner)) {
        finite.store(false, std::memory_order_relaxed);
      }
    }
    pack_panels(type, rows, outputs, inner, panel, panel + 1,
                packed.data() + matrix * matrix_bytes);
  };
  pool_.run([&](Worker& worker) {
    worker.for_each(panels * count, 1, [&](int first, int end) {
      for (int i = first; i < end; ++i) pack_one(static_cast<std::size_t>(i / panels), i % panels);
    });
  });
  if (!finite) refuse_not_finite(tensor);
  return packed;
}

void Parameters::matrix(const std::string& name, int outputs, int inner, Matrix& to) {
  matrices(name, outputs, inner, {&to});
}

void Parameters::matrices(const std::string& name, int outputs, int inner,
                          std::vector<Matrix*> to) {
  custom(name, [=, this, to = std::move(to)](const Tensor& tensor) {
    const int count = static_cast<int>(to.size());
    const WeightType type = check_matrix(tensor, std::int64_t{count} * outputs, inner);
    matrices_.push_back(pack(tensor, type, outputs, inner, count));
    const AlignedBytes& packed = matrices_.back();
    const std::uint8_t* panels = packed.data();
    for (Matrix* matrix : to) {
      *matrix = {type, outputs, inner, panels};
      panels += packed.size() / to.size();
    }
    return packed.size();
  });
}

void Parameters::embedding(const std::string& name, int outputs, int inner, Matrix& to,
                           RowTable& rows) {
  matrix(name, outputs, inner, to);
  custom(name, [=, pack_matrix = expected_[name], &rows](const Tensor& tensor) {
    const std::size_t bytes = pack_matrix(tensor);
    rows = rows_of(tensor, parse_weight_type(tensor), outputs, inner);
    return bytes;
  });
}

void Parameters::row_table(const std::string& name, int num_rows, int columns, RowTable& to) {
  custom(name, [=, &to](const Tensor& tensor) {
    to = rows_of(tensor, check_matrix(tensor, num_rows, columns), num_rows, columns);
    return std::size_t{0};
  });
}

void Parameters::vector(const std::string& name, int count, const float*& to, float scale) {
  custom(name, [=, this, &to](const Tensor& tensor) {
    const WeightType type = check_matrix(tensor, 1, count);
    if (!is_finite_row(type, tensor.data, count)) refuse_not_finite(tensor);
    const std::vector<float> values = dequantize_row(type, tensor.data, count);
    vectors_.push_back(std::make_unique<float[]>(values.size()));
    std::transform(values.begin(), values.end(), vectors_.back().get(),
                   [scale](float value) { return value * scale; });
    to = vectors_.back().get();
    return values.size() * sizeof(float);
  });
}

void Parameters::custom(const std::string& name, Load load) { expected_[name] = std::move(load); }

void Parameters::load(const Tensor& tensor) {
  if (std::find(loaded_.begin(), loaded_.end(), tensor.name) != loaded_.end()) {
    refuse(tensor, "was given twice");
  }
  const auto expected = expected_.find(tensor.name);
  if (expected == expected_.end()) refuse(tensor, "is no tensor of this model");
  weight_bytes_ += expected->second(tensor);
  loaded_.push_back(tensor.name);
  expected_.erase(expected);
}

void Parameters::finish() const {
  if (expected_.empty()) return;
  const std::size_t others = expected_.size() - 1;
  throw std::invalid_argument(expected_.begin()->first +
                              (others ? " and " + std::to_string(others) + " more were" : " was") +
                              " not loaded");
}

namespace {

// The tensors of one layer, by their names without "layers.N.".
class LayerNames {
 public:
  LayerNames(Parameters& parameters, const DecoderShape& shape, int layer)
      : parameters_(parameters),
        shape_(shape),
        layer_(shape.layers[static_cast<std::size_t>(layer)]),
        prefix_("layers." + std::to_string(layer) + ".") {}

  void expect(LayerWeights& to) {
    attention(to);
    norm("pre_feedforward_layernorm.weight", to.pre_ffn_norm);
    norm("post_feedforward_layernorm.weight", to.post_ffn_norm);
    matrix("mlp.gate_proj.weight", layer_.ffn_size, shape_.hidden_size, to.gate);
    matrix("mlp.up_proj.weight", layer_.ffn_size, shape_.hidden_size, to.up);
    matrix("mlp.down_proj.weight", shape_.hidden_size, layer_.ffn_size, to.down);
    vector("layer_scalar", 1, to.scalar);
    if (shape_.per_layer_size) per_layer(to);
    if (shape_.num_experts) experts(to.experts);
  }

 private:
  void attention(LayerWeights& to) {
    const int hidden = shape_.hidden_size, query_size = shape_.num_heads * layer_.head_dim;
    norm("input_layernorm.weight", to.input_norm);
    norm("post_attention_layernorm.weight", to.post_attention_norm);
    matrix("self_attn.q_proj.weight", query_size, hidden, to.query);
    vector("self_attn.q_norm.weight", layer_.head_dim, to.query_norm);
    matrix("self_attn.o_proj.weight", hidden, query_size, to.output);
    if (!layer_.owns_kv) return;
    const int kv_size = layer_.num_kv_heads * layer_.head_dim;
    matrix("self_attn.k_proj.weight", kv_size, hidden, to.key);
    vector("self_attn.k_norm.weight", layer_.head_dim, to.key_norm);
    if (!layer_.values_from_keys) matrix("self_attn.v_proj.weight", kv_size, hidden, to.value);
  }

  void per_layer(LayerWeights& to) {
    const int hidden = shape_.hidden_size, size = shape_.per_layer_size;
    matrix("per_layer_input_gate.weight", size, hidden, to.per_layer_gate);
    matrix("per_layer_projection.weight", hidden, size, to.per_layer_projection);
    norm("post_per_layer_input_norm.weight", to.per_layer_norm);
  }

  void experts(ExpertWeights& to) {
    const int hidden = shape_.hidden_size, ffn = shape_.expert_ffn_size;
    const auto count = static_cast<std::size_t>(shape_.num_experts);
    to.gate_up.resize(2 * count);
    to.down.resize(count);
    matrix("router.proj.weight", shape_.num_experts, hidden, to.router);
    // The router's input is scaled by hidden^-0.5 besides.
    vector("router.scale", hidden, to.router_scale, 1.0f / std::sqrt(static_cast<float>(hidden)));
    vector("router.per_expert_scale", shape_.num_experts, to.per_expert_scale);
    parameters_.matrices(prefix_ + "experts.gate_up_proj", ffn, hidden, pointers(to.gate_up));
    parameters_.matrices(prefix_ + "experts.down_proj", hidden, ffn, pointers(to.down));
    norm("pre_feedforward_layernorm_2.weight", to.input_norm);
    norm("post_feedforward_layernorm_1.weight", to.dense_norm);
    norm("post_feedforward_layernorm_2.weight", to.sparse_norm);
  }

  static std::vector<Matrix*> pointers(std::vector<Matrix>& all) {
    std::vector<Matrix*> to;
    for (Matrix& one : all) to.push_back(&one);
    return to;
  }
  void matrix(const char* name, int outputs, int inner, Matrix& to) {
    parameters_.matrix(prefix_ + name, outputs, inner, to);
  }
  void vector(const char* name, int count, const float*& to, float scale = 1.0f) {
    parameters_.vector(prefix_ + name, count, to, scale);
  }
  void norm(const char* name, const float*& to) { vector(name, shape_.hidden_size, to); }

  Parameters& parameters_;
  const DecoderShape& shape_;
  const LayerShape& layer_;
  const std::string prefix_;
};

}  // namespace

void Parameters::layers(const DecoderShape& shape, std::vector<LayerWeights>& to) {
  to.resize(shape.layers.size());
  for (std::size_t i = 0; i < to.size(); ++i) {
    LayerNames(*this, shape, static_cast<int>(i)).expect(to[i]);
  }
}

}  // namespace paceline
