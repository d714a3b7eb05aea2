// The geometry of a target or a drafter.
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

#include "bindings.h"
#include "paceline/shapes.h"

namespace paceline {

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

}  // namespace paceline
