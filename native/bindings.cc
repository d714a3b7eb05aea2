// The Python module paceline._native. The only file that knows Python.
//
// Arrays come from files: every dtype, shape and range is checked here or in the class behind, and
// what is wrong is a ValueError. Long calls run without the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "paceline/bandwidth.h"
#include "paceline/errors.h"
#include "paceline/kernels.h"
#include "paceline/shapes.h"
#include "paceline/thread_pool.h"
#include "paceline/weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace paceline {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using NewFloatRows = nb::ndarray<float, nb::numpy, nb::ndim<2>, nb::c_contig>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

WeightType weight_type(const std::string& dtype) {
  if (dtype == "Q4_0") return WeightType::q4_0;
  if (dtype == "Q8_0") return WeightType::q8_0;
  if (dtype == "BF16") return WeightType::bf16;
  if (dtype == "F16") return WeightType::f16;
  if (dtype == "F32") return WeightType::f32;
  refuse("dtype '" + dtype + "' is unknown: expected Q4_0, Q8_0, BF16, F16 or F32.");
}

// Gives numbers to NumPy without a copy: the array frees them when it goes.
NewFloatRows to_rows(std::vector<float>&& values, std::size_t rows, std::size_t columns) {
  auto* kept = new std::vector<float>(std::move(values));
  nb::capsule owner(kept, [](void* it) noexcept { delete static_cast<std::vector<float>*>(it); });
  return NewFloatRows(kept->data(), {rows, columns}, owner);
}

void check_matrix(WeightType type, const Bytes& data, int outputs, int inner) {
  if (outputs < 1 || inner < 1) refuse("a matrix needs at least one output and one column.");
  if (is_quantized(type) && inner % kBlockColumns != 0) {
    refuse("rows of " + std::to_string(inner) + " columns do not divide into blocks of 32.");
  }
  const std::size_t expected = outputs * source_row_bytes(type, inner);
  if (data.size() != expected) {
    refuse("the matrix has " + std::to_string(data.size()) + " bytes, its shape implies " +
           std::to_string(expected) + ".");
  }
}

// One linear layer, for tests: y = W x.
NewFloatRows multiply(const std::string& dtype, const Bytes& data, int outputs, int inner,
                      const FloatRows& x) {
  const WeightType type = weight_type(dtype);
  check_matrix(type, data, outputs, inner);
  if (x.shape(1) != static_cast<std::size_t>(inner)) {
    refuse("x has " + std::to_string(x.shape(1)) + " columns, the matrix " + std::to_string(inner) +
           ".");
  }
  const int num_rows = static_cast<int>(x.shape(0));
  std::vector<float> out(static_cast<std::size_t>(num_rows) * outputs);
  if (num_rows > 0) {
    nb::gil_scoped_release unlocked;
    const PackedMatrix weights(type, data.data(), outputs, inner);
    std::vector<float> values(x.data(), x.data() + x.size());
    std::vector<std::int8_t> quants(x.size());
    const std::size_t blocks = is_quantized(type) ? inner / kBlockColumns : 0;
    std::vector<float> scales(blocks * num_rows);
    std::vector<std::int32_t> sums(blocks * num_rows);
    const Activations rows{num_rows,      inner,         values.data(),
                           quants.data(), scales.data(), sums.data()};
    const LinearKernels& linear = kernels().linear;
    for (int row = 0; blocks > 0 && row < num_rows; ++row) {
      linear.quantize(rows, row, 0, static_cast<int>(blocks));
    }
    linear.multiply(weights.view(), rows, 0, num_panels(outputs), out.data(), outputs);
  }
  return to_rows(std::move(out), num_rows, outputs);
}

constexpr int kMaxThreads = 1024;
constexpr std::size_t kMaxReadBytes = std::size_t{1} << 36;

void make_pool(ThreadPool* pool, int threads, bool pin) {
  if (threads < 1 || threads > kMaxThreads) {
    refuse("threads=" + std::to_string(threads) + " is out of range: expected 1 to " +
           std::to_string(kMaxThreads) + ".");
  }
  new (pool) ThreadPool(threads, pin);
}

double measure_bandwidth(ThreadPool& pool, std::size_t num_bytes) {
  if (num_bytes < 1 || num_bytes > kMaxReadBytes) {
    refuse("num_bytes=" + std::to_string(num_bytes) + " is out of range: expected 1 to " +
           std::to_string(kMaxReadBytes) + ".");
  }
  nb::gil_scoped_release unlocked;
  return read_bandwidth(pool, num_bytes);
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Kernels* candidate : all_kernels()) names.emplace_back(candidate->isa);
  return names;
}

void bind_pool(nb::module_& module) {
  nb::class_<ThreadPool>(module, "Pool",
                         "Threads that run a pass together; the caller is one of them.")
      .def("__init__", &make_pool, "threads"_a, "pin"_a = true)
      .def_prop_ro("threads", &ThreadPool::num_threads);
  module.def("read_bandwidth", &measure_bandwidth, "pool"_a, "num_bytes"_a,
             "Bytes a second that a plain loop reads of freshly allocated memory.");
}

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
             float per_layer_scale, int target_hidden_size, int num_centroids,
             int centroid_top_k) {
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

}  // namespace
}  // namespace paceline

NB_MODULE(_native, module) {
  using namespace paceline;
  module.doc() = "The native CPU runtime: see native/README.md.";
  module.def(
      "isa_name", [] { return kernels().isa; },
      "Instruction set in use: the processor's best, or what PACELINE_ISA names.");
  module.def("isa_names", &isa_names, "What this processor can run, the slowest first.");
  module.def("multiply", &multiply, "dtype"_a, "data"_a.noconvert(), "outputs"_a, "inner"_a,
             "x"_a.noconvert(),
             "Outputs [M, outputs] of one linear layer for rows x [M, inner].");
  nb::exception<NotFiniteError>(module, "NotFiniteError", PyExc_ValueError);
  bind_pool(module);
  bind_shapes(module);
}
