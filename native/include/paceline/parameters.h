// The named tensors of a model: what is expected, checked and packed as it arrives, and what is
// missing. Names are those of src/paceline/checkpoint/names.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "paceline/decoder.h"
#include "paceline/errors.h"
#include "paceline/file_range.h"
#include "paceline/shapes.h"
#include "paceline/thread_pool.h"
#include "paceline/weights.h"

namespace paceline {

// One tensor as it lies in a file. `owner` keeps the memory; may be empty where nobody needs it
// after load(). Where there is a `file`, rows that are read on demand come from that.
struct Tensor {
  std::string name;
  std::string dtype;  // Q4_0, Q8_0, BF16, F16, F32 or I64
  const std::uint8_t* data = nullptr;
  std::size_t size = 0;
  std::shared_ptr<const void> owner;
  std::shared_ptr<const FileRange> file = nullptr;
};

// Rows that are read on demand, from a file or from memory.
struct RowTable {
  WeightType type = WeightType::f32;
  int num_rows = 0;
  int columns = 0;
  const std::uint8_t* data = nullptr;  // only where there is no file
  std::shared_ptr<const void> owner;
  std::shared_ptr<const FileRange> file = nullptr;

  bool is_loaded() const { return data != nullptr || file != nullptr; }
  std::size_t row_bytes() const { return source_row_bytes(type, columns); }
  // Copies a row. Throws ReadError.
  void read(std::int64_t index, std::uint8_t* to) const;
};

// The rows of a checked matrix.
RowTable rows_of(const Tensor& tensor, WeightType type, int num_rows, int columns);

// Throws std::invalid_argument for any other name.
WeightType parse_weight_type(const Tensor& tensor);
// Throws std::invalid_argument unless the tensor has as many bytes as rows of this type need.
WeightType check_matrix(const Tensor& tensor, std::int64_t rows, int columns);
// Whether no value, and no scale, of a row in a file is an infinity or NaN.
bool is_finite_row(WeightType type, const std::uint8_t* row, int count);

class Parameters {
 public:
  explicit Parameters(ThreadPool& pool) : pool_(pool) {}

  // What to expect. Places are filled in when the tensor is loaded, and must outlive that.
  void matrix(const std::string& name, int outputs, int inner, Matrix& to);
  // Several matrices [outputs, inner], one after the other in the file.
  void matrices(const std::string& name, int outputs, int inner, std::vector<Matrix*> to);
  // A matrix whose rows are also read one by one.
  void embedding(const std::string& name, int outputs, int inner, Matrix& to, RowTable& rows);
  // Rows only: not checked for infinities or NaN, for that would read all of it.
  void row_table(const std::string& name, int num_rows, int columns, RowTable& to);
  // Numbers [count], times `scale`.
  void vector(const std::string& name, int count, const float*& to, float scale = 1.0f);
  // `load` gets the tensor, checks and keeps what it needs, and returns the bytes that it holds.
  using Load = std::function<std::size_t(const Tensor& tensor)>;
  void custom(const std::string& name, Load load);
  // All tensors of the decoder layers, into one LayerWeights per layer.
  void layers(const DecoderShape& shape, std::vector<LayerWeights>& to);

  // Throws std::invalid_argument: an unknown name, given twice, of a wrong size or type; or
  // NotFiniteError.
  void load(const Tensor& tensor);
  // Throws std::invalid_argument that names what was not loaded.
  void finish() const;
  std::size_t weight_bytes() const { return weight_bytes_; }

  // Packs rows of a checked matrix in parallel, checking each: for custom loads.
  AlignedBytes pack(const Tensor& tensor, WeightType type, int outputs, int inner, int count = 1);

 private:
  ThreadPool& pool_;
  std::map<std::string, Load> expected_;
  std::vector<std::string> loaded_;
  std::vector<AlignedBytes> matrices_;
  std::vector<std::unique_ptr<float[]>> vectors_;
  std::size_t weight_bytes_ = 0;
};

}  // namespace paceline
