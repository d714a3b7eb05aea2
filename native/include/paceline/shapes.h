// The geometry of a decoder, as the configuration gives it.
#pragma once

#include <vector>

namespace paceline {

struct LayerShape {
  bool sliding = false;
  int head_dim = 0;
  int num_kv_heads = 0;
  int ffn_size = 0;
  bool owns_kv = true;
  int kv_layer = 0;               // whose keys and values it reads: its own index, or the donor's
  bool values_from_keys = false;  // values are the keys' projection, normed without a weight
  int window = 0;                 // keys that a row sees, its own among them; 0 means all
};

struct DecoderShape {
  int hidden_size = 0;
  int vocab_size = 0;
  int num_heads = 0;
  float rms_norm_eps = 1e-6f;
  std::vector<LayerShape> layers;
  int first_shared_layer = 0;              // from here on no layer owns KV
  std::vector<float> sliding_frequencies;  // [H/2], one per pair (i, i + H/2)
  std::vector<float> global_frequencies;

  // A target's only.
  int per_layer_size = 0;  // 0: no per-layer embeddings
  int per_layer_vocab_size = 0;
  float logit_softcap = 0.0f;  // 0: none
  int num_experts = 0;         // 0: no mixture of experts
  int num_experts_per_token = 0;
  int expert_ffn_size = 0;
  float embedding_scale = 1.0f;
  float per_layer_scale = 1.0f;

  // A drafter's only.
  int target_hidden_size = 0;
  int num_centroids = 0;  // 0: the head scores every token
  int centroid_top_k = 0;
};

}  // namespace paceline
