// One worker's part in one layer. Private to decoder.cc and experts.cc.
#pragma once

#include <algorithm>
#include <cstddef>

#include "paceline/decoder.h"

namespace paceline {

// Smallest chunk of weights that a worker takes: below it the counter costs more than it balances.
inline constexpr std::size_t kGrainBytes = 16 << 10;
// Floats of a worker's scratch for outputs that it reads again itself at once; stays in the cache.
inline constexpr int kScratchFloats = 16 << 10;

// Outputs of one matrix; out[row * stride + output].
struct Product {
  const Matrix* weights;
  float* out;
  std::ptrdiff_t stride;
};

// Panels from `first` on as a matrix of their own.
inline Matrix slice(const Matrix& matrix, int first) {
  const std::size_t bytes = panel_bytes(matrix.type, matrix.inner);
  return {matrix.type, matrix.outputs - first * kPanelRows, matrix.inner,
          matrix.panels + static_cast<std::size_t>(first) * bytes};
}

inline int grain_of(const Matrix& matrix) {
  const std::size_t bytes = std::max(std::size_t{1}, panel_bytes(matrix.type, matrix.inner));
  return static_cast<int>(std::max(std::size_t{1}, kGrainBytes / bytes));
}

// body(first, end) in chunks, then row(r) for every row, with as few barriers as that takes.
template <class Body, class Row>
void for_each_then_rows(Worker& worker, int count, int grain, Body&& body, int num_rows,
                        Row&& row) {
  if (num_rows == 1) return worker.for_each(count, grain, body, [&] { row(0); });
  if (count > 0) worker.for_each(count, grain, body);
  if (num_rows == 0) return;
  worker.for_each(num_rows, 1, [&](int first, int end) {
    for (int r = first; r < end; ++r) row(r);
  });
}

class LayerRun {
 public:
  LayerRun(Worker& worker, const Kernels& kernels, const Workspace& workspace,
           const LayerCall& call)
      : worker_(worker),
        kernels_(kernels),
        ops_(kernels.ops),
        ws_(workspace),
        call_(call),
        shape_(*call.shape),
        layer_(*call.layer),
        weights_(*call.weights),
        num_rows_(call.num_rows),
        hidden_(shape_.hidden_size) {}

  void run();
  void store_keys();

 private:
  // Attention.
  void project(bool queries, bool keys);
  void turn_queries(int row) const;
  int num_key_groups() const;
  void store_key_group(int group) const;
  void store_key_rows(const AttentionSpan& span, int kv_head, int first, int end) const;
  void attend_and_project();

  // Dense feed-forward and per-layer embedding.
  void feed_forward();
  void add_per_layer();
  void finish_row(int row) const;

  // Blocks of 32 outputs of `gate`, through GELU, times the same outputs of `up`, or else times
  // up_rows, into `out`: as bytes where `reader` is quantised, as numbers otherwise.
  void gate_blocks(const Matrix& gate, const Matrix* up, const float* up_rows,
                   std::ptrdiff_t up_stride, const Activations& x, int first, int end,
                   const Activations& out, WeightType reader) const;

  // Mixture of experts (experts.cc).
  void feed_forward_with_experts();
  void norm_for_experts(int row) const;
  void route(int row) const;
  void plan_experts() const;
  void gather_expert_inputs();
  Activations expert_input(int active) const;
  Activations expert_gated(int active) const;
  void gate_experts(int first, int end) const;
  void add_experts(int first, int end) const;
  void combine(int row) const;

  void multiply(const Matrix& weights, const Activations& x, int first, int end, float* out,
                std::ptrdiff_t stride) const {
    kernels_.linear.multiply(weights, x, first, end, out, stride);
  }
  void quantize_row(const Activations& x, int row) const {
    kernels_.linear.quantize(x, row, 0, x.inner / kBlockColumns);
  }
  float* row_of(const AlignedBytes& bytes, int row, int size) const {
    return bytes.as<float>() + static_cast<std::ptrdiff_t>(row) * size;
  }
  float* x(int row) const { return row_of(ws_.x_, row, hidden_); }
  float* projected(int row) const { return row_of(ws_.projected_, row, hidden_); }
  float* scratch() const { return row_of(ws_.gate_up_, worker_.index(), 2 * kScratchFloats); }
  Activations normed() const { return ws_.normed_.view(num_rows_, hidden_); }
  Activations gated() const { return ws_.gated_.view(num_rows_, layer_.ffn_size); }
  int query_size() const { return shape_.num_heads * layer_.head_dim; }
  int kv_size() const { return layer_.num_kv_heads * layer_.head_dim; }

  Worker& worker_;
  const Kernels& kernels_;
  const OpsKernels& ops_;
  const Workspace& ws_;
  const LayerCall& call_;
  const DecoderShape& shape_;
  const LayerShape& layer_;
  const LayerWeights& weights_;
  const int num_rows_, hidden_;
};

// A block of 32 outputs is whole panels.
static_assert(kBlockColumns % kPanelRows == 0);
inline int num_blocks(int outputs) { return (outputs + kBlockColumns - 1) / kBlockColumns; }

// The norm of one row of x() into `out`, also as bytes where that is wanted.
inline void norm_row(const Kernels& kernels, const float* x, const float* weight, float eps,
                     const Activations& out, int row, bool quantize) {
  kernels.ops.rms_norm(x, weight, eps, out.inner,
                       out.values + static_cast<std::ptrdiff_t>(row) * out.inner);
  if (quantize) kernels.linear.quantize(out, row, 0, out.inner / kBlockColumns);
}

}  // namespace paceline
