// What this processor can do: instruction sets, threads, and products to look at and to measure.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings.h"
#include "paceline/bandwidth.h"
#include "paceline/errors.h"
#include "paceline/kernels.h"
#include "paceline/thread_pool.h"
#include "paceline/weights.h"

namespace paceline {
namespace {

using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int kMaxThreads = 1024;
constexpr std::int64_t kMaxReadBytes = std::int64_t{1} << 36;
constexpr int kMaxMeasuredRows = 512;

WeightType weight_type(const std::string& dtype) {
  if (dtype == "Q4_0") return WeightType::q4_0;
  if (dtype == "Q8_0") return WeightType::q8_0;
  if (dtype == "BF16") return WeightType::bf16;
  if (dtype == "F16") return WeightType::f16;
  if (dtype == "F32") return WeightType::f32;
  refuse("dtype '" + dtype + "' is unknown: expected Q4_0, Q8_0, BF16, F16 or F32.");
}

void check_bytes(WeightType type, const Bytes& data, int outputs, int inner) {
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
NewRows<float> multiply(const std::string& dtype, const Bytes& data, int outputs, int inner,
                        const FloatRows& x) {
  const WeightType type = weight_type(dtype);
  check_bytes(type, data, outputs, inner);
  if (x.shape(1) != static_cast<std::size_t>(inner)) {
    refuse("x has " + std::to_string(x.shape(1)) + " columns, the matrix " + std::to_string(inner) +
           ".");
  }
  const int num_rows = static_cast<int>(x.shape(0));
  const auto out = new_numbers<float>(x.shape(0) * static_cast<std::size_t>(outputs));
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
    linear.multiply(weights.view(), rows, 0, num_panels(outputs), out.get(), outputs);
  }
  return to_rows(out, 0, x.shape(0), static_cast<std::size_t>(outputs));
}

void make_pool(ThreadPool* pool, int threads, bool pin) {
  check_range("threads", threads, 1, kMaxThreads);
  new (pool) ThreadPool(threads, pin);
}

double measure_bandwidth(ThreadPool& pool, std::int64_t num_bytes) {
  check_range("num_bytes", num_bytes, 1, kMaxReadBytes);
  nb::gil_scoped_release unlocked;
  return read_bandwidth(pool, static_cast<std::size_t>(num_bytes));
}

double measure_products(ThreadPool& pool, const std::string& dtype, int num_rows) {
  check_range("num_rows", num_rows, 1, kMaxMeasuredRows);
  const WeightType type = weight_type(dtype);
  nb::gil_scoped_release unlocked;
  return product_rate(pool, type, num_rows);
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Kernels* candidate : all_kernels()) names.emplace_back(candidate->isa);
  return names;
}

}  // namespace

void bind_machine(nb::module_& module) {
  module.def(
      "isa_name", [] { return kernels().isa; },
      "Instruction set in use: the processor's best, or what PACELINE_ISA names.");
  module.def("isa_names", &isa_names, "What this processor can run, the slowest first.");
  module.def("multiply", &multiply, "dtype"_a, "data"_a.noconvert(), "outputs"_a, "inner"_a,
             "x"_a.noconvert(), "Outputs [M, outputs] of one linear layer for rows x [M, inner].");
  nb::class_<ThreadPool>(module, "Pool",
                         "Threads that run a pass together; the caller is one of them.")
      .def("__init__", &make_pool, "threads"_a, "pin"_a = true)
      .def_prop_ro("threads", &ThreadPool::num_threads);
  module.def("read_bandwidth", &measure_bandwidth, "pool"_a, "num_bytes"_a,
             "Bytes a second that a plain loop reads of freshly allocated memory.");
  module.def("product_rate", &measure_products, "pool"_a, "dtype"_a, "num_rows"_a,
             "Multiplications a second of linear layers whose weights stay in the cache.");
}

}  // namespace paceline
