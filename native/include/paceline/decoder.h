// One decoder layer over a few rows, inside a pool program: the same code for target and drafter.
//
// A caller puts the rows into Workspace::x, norms them for the first layer with norm_rows, and
// calls run_layer once per layer. Every layer leaves the rows in x, and in `normed` what the next
// reader wants: the next layer's input norm, or at the end the decoder's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "paceline/attention.h"
#include "paceline/kernels.h"
#include "paceline/linear.h"
#include "paceline/shapes.h"
#include "paceline/thread_pool.h"

namespace paceline {

inline constexpr int kMaxRows = 128;  // rows that go through the layers together

// Mixture of experts beside the dense feed-forward. [E] experts of width F.
struct ExpertWeights {
  Matrix router;                            // [E, D]
  const float* router_scale = nullptr;      // [D]
  const float* per_expert_scale = nullptr;  // [E]
  std::vector<Matrix> gate_up;         // [2 E] gate and up of expert 0, of expert 1, ... [F, D]
  std::vector<Matrix> down;            // [E] [D, F]
  const float* input_norm = nullptr;   // pre_feedforward_layernorm_2
  const float* dense_norm = nullptr;   // post_feedforward_layernorm_1
  const float* sparse_norm = nullptr;  // post_feedforward_layernorm_2
};

// Somebody else owns the memory (Parameters in parameters.h).
struct LayerWeights {
  const float* input_norm = nullptr;           // [D], like all norms but query's and key's
  const float* post_attention_norm = nullptr;  //
  const float* pre_ffn_norm = nullptr;
  const float* post_ffn_norm = nullptr;
  const float* query_norm = nullptr;  // [H]
  const float* key_norm = nullptr;    // [H], where the layer owns KV
  const float* scalar = nullptr;      // [1]
  Matrix query, key, value, output;   // key and value where the layer owns them
  Matrix gate, up, down;
  Matrix per_layer_gate, per_layer_projection;  // where the target has per-layer embeddings
  const float* per_layer_norm = nullptr;
  ExpertWeights experts;  // where the target has them

  bool reads_quantized() const {  // whether the layer's input is wanted in bytes
    return is_quantized(query.type) || is_quantized(key.type) || is_quantized(value.type);
  }
};

// Memory for the rows that a linear layer reads.
class ActivationBuffer {
 public:
  ActivationBuffer() = default;
  ActivationBuffer(int max_rows, int max_inner);
  Activations view(int num_rows, int inner) const;

 private:
  AlignedBytes values_, quants_, scales_, minus_8_sums_;
};

// What the workers of one run share, for up to `max_rows` rows. No pass allocates.
class Workspace {
 public:
  Workspace(const DecoderShape& shape, int num_workers, int max_rows);

  float* x() const { return x_.as<float>(); }                 // [rows][D] the residual stream
  const ActivationBuffer& normed() const { return normed_; }  // [rows][D]

 private:
  friend class LayerRun;
  AlignedBytes x_, query_, key_, value_, projected_, gate_up_, attention_;
  ActivationBuffer normed_, mixed_, gated_;
  // A mixture of experts' only.
  void reserve_experts(const DecoderShape& shape, int max_rows);
  AlignedBytes router_logits_, plan_, sparse_;
  ActivationBuffer router_input_, expert_input_, gathered_, expert_gated_;
};

// The norm that follows a layer, into Workspace::normed().
struct NextNorm {
  const float* weight = nullptr;  // [D]
  bool quantize = false;          // also as bytes
};

struct LayerCall {
  const DecoderShape* shape = nullptr;
  const LayerShape* layer = nullptr;
  const LayerWeights* weights = nullptr;
  NextNorm next;
  int num_rows = 0;
  // Per row the cosines [H / 2], then the sines [H / 2], of the layer's kind.
  const float* rope = nullptr;
  // Where each row's queries look. A layer that owns KV stores a row's key and value at the last
  // position which that row sees, its own, before any row reads.
  const AttentionSpan* spans = nullptr;
  int num_spans = 0;
  const float* per_layer = nullptr;  // the layer's input of row r at per_layer + r * stride
  std::ptrdiff_t per_layer_stride = 0;
  bool keys_stored = false;  // store_keys was called for these rows, among others
};

// Called by every worker of a pool run. Each ends with a barrier.
// normed() = rms_norm(x()) of rows 0 to num_rows - 1.
void norm_rows(Worker& worker, const Kernels& kernels, const Workspace& workspace,
               const DecoderShape& shape, int num_rows, NextNorm norm);
void run_layer(Worker& worker, const Kernels& kernels, const Workspace& workspace,
               const LayerCall& call);
// Only the keys and values of a layer that owns them. Leaves x() and normed() alone.
void store_keys(Worker& worker, const Kernels& kernels, const Workspace& workspace,
                const LayerCall& call);

// cos and sin of float(position) * frequency, rounded from double: [H / 2] of each, into `rope`.
void rope_row(std::int64_t position, const std::vector<float>& frequencies, float* rope);

}  // namespace paceline
