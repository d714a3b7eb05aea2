#include "paceline/decoder.h"

#include <cmath>

#include "layer_run.h"

namespace paceline {
namespace {

std::size_t floats(std::size_t rows, int size) {
  return rows * static_cast<std::size_t>(size) * sizeof(float);
}

template <class Size>
int largest(const DecoderShape& shape, Size&& size) {
  int most = 1;
  for (const LayerShape& layer : shape.layers) most = std::max(most, size(layer));
  return most;
}

// Matrices that read the same rows, in one loop.
void multiply_all(Worker& worker, const Kernels& kernels, const Activations& x,
                  const Product* products, int count, const auto& row, int num_rows) {
  int total = 0;
  for (int i = 0; i < count; ++i) total += num_panels(products[i].weights->outputs);
  const auto body = [&](int first, int end) {
    int begin = 0;
    for (const Product* p = products; p < products + count; ++p) {
      const int panels = num_panels(p->weights->outputs);
      const int from = std::max(first - begin, 0), until = std::min(end - begin, panels);
      if (from < until) kernels.linear.multiply(*p->weights, x, from, until, p->out, p->stride);
      begin += panels;
    }
  };
  for_each_then_rows(worker, total, grain_of(*products[0].weights), body, num_rows, row);
}

}  // namespace

ActivationBuffer::ActivationBuffer(int max_rows, int max_inner)
    : values_(floats(static_cast<std::size_t>(max_rows), max_inner)),
      quants_(static_cast<std::size_t>(max_rows) *
              static_cast<std::size_t>(num_blocks(max_inner) * kBlockColumns)),
      scales_(floats(static_cast<std::size_t>(max_rows), num_blocks(max_inner))),
      minus_8_sums_(scales_.size()) {}

Activations ActivationBuffer::view(int num_rows, int inner) const {
  return {num_rows,
          inner,
          values_.as<float>(),
          quants_.as<std::int8_t>(),
          scales_.as<float>(),
          minus_8_sums_.as<std::int32_t>()};
}

Workspace::Workspace(const DecoderShape& shape, int num_workers, int max_rows) {
  const auto rows = static_cast<std::size_t>(max_rows);
  const int hidden = shape.hidden_size;
  const int head = largest(shape, [](const LayerShape& l) { return l.head_dim; });
  const int query = shape.num_heads * head;
  const int kv = largest(shape, [](const LayerShape& l) { return l.num_kv_heads * l.head_dim; });
  const int ffn = largest(shape, [](const LayerShape& l) { return l.ffn_size; });
  x_ = AlignedBytes(floats(rows, hidden));
  query_ = AlignedBytes(floats(rows, query));
  key_ = AlignedBytes(floats(rows, kv));
  value_ = AlignedBytes(floats(rows, kv));
  projected_ = AlignedBytes(floats(rows, hidden));
  gate_up_ = AlignedBytes(floats(static_cast<std::size_t>(num_workers), 2 * kScratchFloats));
  attention_ = AlignedBytes(attention_scratch(num_workers, head) * sizeof(float));
  normed_ = ActivationBuffer(max_rows, hidden);
  mixed_ = ActivationBuffer(max_rows, query);
  gated_ = ActivationBuffer(max_rows, std::max(ffn, shape.per_layer_size));
  if (shape.num_experts) reserve_experts(shape, max_rows);
}

// ---- Attention ----

void LayerRun::project(bool queries, bool keys) {
  Product products[3];
  int count = 0;
  const auto add = [&](const Matrix& weights, const AlignedBytes& out, int size) {
    products[count++] = {&weights, out.as<float>(), size};
  };
  if (queries) add(weights_.query, ws_.query_, query_size());
  if (keys) add(weights_.key, ws_.key_, kv_size());
  if (keys && !layer_.values_from_keys) add(weights_.value, ws_.value_, kv_size());
  const int groups = keys ? num_key_groups() : 0;
  const auto nothing = [](int) {};
  if (num_rows_ == 1) {
    return multiply_all(
        worker_, kernels_, normed(), products, count,
        [&](int row) {
          for (int group = 0; group < groups; ++group) store_key_group(group);
          if (queries) turn_queries(row);
        },
        1);
  }
  multiply_all(worker_, kernels_, normed(), products, count, nothing, 0);
  worker_.for_each(groups + (queries ? num_rows_ : 0), 1, [&](int first, int end) {
    for (int i = first; i < end; ++i) i < groups ? store_key_group(i) : turn_queries(i - groups);
  });
}

void LayerRun::turn_queries(int row) const {
  const int size = layer_.head_dim;
  const float* cosines = call_.rope + static_cast<std::ptrdiff_t>(row) * size;
  float* head = row_of(ws_.query_, row, query_size());
  for (int h = 0; h < shape_.num_heads; ++h, head += size) {
    ops_.rms_norm(head, weights_.query_norm, shape_.rms_norm_eps, size, head);
    ops_.rope(head, cosines, cosines + size / 2, size);
  }
}

namespace {

// Neighbouring positions whose keys share cache lines; one worker stores them all.
constexpr int kGroupPositions = 16;

std::int64_t group_of(std::int64_t position) { return position / kGroupPositions; }

int groups_of(const AttentionSpan& span) {
  if (span.num_rows == 0) return 0;
  return static_cast<int>(group_of(span.last_visible[span.num_rows - 1]) -
                          group_of(span.last_visible[0]) + 1);
}

}  // namespace

int LayerRun::num_key_groups() const {
  int count = 0;
  for (int s = 0; s < call_.num_spans; ++s) count += groups_of(call_.spans[s]);
  return count * layer_.num_kv_heads;
}

void LayerRun::store_key_group(int group) const {
  const AttentionSpan* span = call_.spans;
  for (int groups; group >= (groups = groups_of(*span) * layer_.num_kv_heads); ++span) {
    group -= groups;
  }
  const std::int64_t start = span->last_visible[0];
  const std::int64_t begin = (group_of(start) + group / layer_.num_kv_heads) * kGroupPositions;
  const std::int64_t first = std::max<std::int64_t>(begin - start, 0);
  const std::int64_t end = std::min<std::int64_t>(begin + kGroupPositions - start, span->num_rows);
  store_key_rows(*span, group % layer_.num_kv_heads, static_cast<int>(first),
                 static_cast<int>(end));
}

void LayerRun::store_key_rows(const AttentionSpan& span, int kv_head, int first, int end) const {
  const int size = layer_.head_dim;
  const float eps = shape_.rms_norm_eps;
  for (int i = first; i < end; ++i) {
    const int row = span.first_row + i;
    const float* cosines = call_.rope + static_cast<std::ptrdiff_t>(row) * size;
    float* key = row_of(ws_.key_, row, kv_size()) + kv_head * size;
    float* value = row_of(ws_.value_, row, kv_size()) + kv_head * size;
    ops_.rms_norm(layer_.values_from_keys ? key : value, nullptr, eps, size, value);
    ops_.rms_norm(key, weights_.key_norm, eps, size, key);
    ops_.rope(key, cosines, cosines + size / 2, size);
    span.store->write(kernels_, span.last_visible[i], kv_head, key, value);
  }
}

void LayerRun::attend_and_project() {
  const Activations mixed = ws_.mixed_.view(num_rows_, query_size());
  attend(worker_, kernels_,
         {call_.spans, call_.num_spans, shape_.num_heads, layer_.num_kv_heads, layer_.head_dim,
          ws_.query_.as<float>(), mixed.values, ws_.attention_.as<float>()});
  if (is_quantized(weights_.output.type)) {
    for_each_then_rows(
        worker_, 0, 1, [](int, int) {}, num_rows_, [&](int row) { quantize_row(mixed, row); });
  }
  const Product output = {&weights_.output, ws_.projected_.as<float>(), hidden_};
  const bool quantize = is_quantized(weights_.gate.type) || is_quantized(weights_.up.type);
  multiply_all(
      worker_, kernels_, mixed, &output, 1,
      [&](int row) {
        ops_.add_rms_norm(projected(row), weights_.post_attention_norm, shape_.rms_norm_eps, 1.0f,
                          hidden_, x(row));
        norm_row(kernels_, x(row), weights_.pre_ffn_norm, shape_.rms_norm_eps, normed(), row,
                 quantize);
        if (shape_.num_experts) norm_for_experts(row);
      },
      num_rows_);
}

// ---- Feed-forward ----

void LayerRun::gate_blocks(const Matrix& gate, const Matrix* up, const float* up_rows,
                           std::ptrdiff_t up_stride, const Activations& x, int first, int end,
                           const Activations& out, WeightType reader) const {
  constexpr int kPanels = kBlockColumns / kPanelRows;
  const int step = std::max(1, kScratchFloats / (kBlockColumns * x.num_rows));
  float *opened = scratch(), *raised = opened + kScratchFloats;
  for (int block = first; block < end; block += step) {
    const int at = block * kBlockColumns;
    const int columns = std::min(std::min(block + step, end) * kBlockColumns, gate.outputs) - at;
    const int panels = num_panels(columns);
    multiply(slice(gate, block * kPanels), x, 0, panels, opened, columns);
    if (up) multiply(slice(*up, block * kPanels), x, 0, panels, raised, columns);
    // Bytes of these columns as activations of their own, with the scratch for numbers.
    const std::ptrdiff_t place = static_cast<std::ptrdiff_t>(block) * out.num_rows;
    const Activations bytes = {out.num_rows,
                               columns,
                               opened,
                               out.quants + place * kBlockColumns,
                               out.scales + place,
                               out.minus_8_sums + place};
    for (int row = 0; row < x.num_rows; ++row) {
      float* g = opened + static_cast<std::ptrdiff_t>(row) * columns;
      const float* u =
          up ? raised + static_cast<std::ptrdiff_t>(row) * columns : up_rows + row * up_stride + at;
      if (is_quantized(reader)) {
        ops_.gelu_gate(g, u, columns, g);
        quantize_row(bytes, row);
      } else {
        ops_.gelu_gate(g, u, columns,
                       out.values + static_cast<std::ptrdiff_t>(row) * out.inner + at);
      }
    }
  }
}

void LayerRun::feed_forward() {
  const Activations in = normed(), out = gated();
  worker_.for_each(num_blocks(layer_.ffn_size), 1, [&](int first, int end) {
    gate_blocks(weights_.gate, &weights_.up, nullptr, 0, in, first, end, out, weights_.down.type);
  });
  const Product down = {&weights_.down, ws_.projected_.as<float>(), hidden_};
  multiply_all(
      worker_, kernels_, out, &down, 1,
      [&](int row) {
        const float scalar = shape_.per_layer_size ? 1.0f : *weights_.scalar;
        ops_.add_rms_norm(projected(row), weights_.post_ffn_norm, shape_.rms_norm_eps, scalar,
                          hidden_, x(row));
        finish_row(row);
      },
      num_rows_);
}

// What the row's next reader wants: the per-layer gate reads the row itself.
void LayerRun::finish_row(int row) const {
  if (!shape_.per_layer_size) {
    if (call_.next.weight) {
      norm_row(kernels_, x(row), call_.next.weight, shape_.rms_norm_eps, normed(), row,
               call_.next.quantize);
    }
  } else if (is_quantized(weights_.per_layer_gate.type)) {
    Activations bytes = normed();
    bytes.values = ws_.x();
    quantize_row(bytes, row);
  }
}

void LayerRun::add_per_layer() {
  Activations in = normed();
  in.values = ws_.x();
  const Activations out = ws_.gated_.view(num_rows_, shape_.per_layer_size);
  worker_.for_each(num_blocks(shape_.per_layer_size), 1, [&](int first, int end) {
    gate_blocks(weights_.per_layer_gate, nullptr, call_.per_layer, call_.per_layer_stride, in,
                first, end, out, weights_.per_layer_projection.type);
  });
  const Product projection = {&weights_.per_layer_projection, ws_.projected_.as<float>(), hidden_};
  multiply_all(
      worker_, kernels_, out, &projection, 1,
      [&](int row) {
        ops_.add_rms_norm(projected(row), weights_.per_layer_norm, shape_.rms_norm_eps,
                          *weights_.scalar, hidden_, x(row));
        if (call_.next.weight) {
          norm_row(kernels_, x(row), call_.next.weight, shape_.rms_norm_eps, normed(), row,
                   call_.next.quantize);
        }
      },
      num_rows_);
}

void LayerRun::run() {
  if (num_rows_ == 0) return;
  project(true, layer_.owns_kv && !call_.keys_stored);
  attend_and_project();
  shape_.num_experts ? feed_forward_with_experts() : feed_forward();
  if (shape_.per_layer_size) add_per_layer();
}

void LayerRun::store_keys() {
  if (num_rows_ > 0) project(false, true);
}

// ---- The interface ----

void norm_rows(Worker& worker, const Kernels& kernels, const Workspace& workspace,
               const DecoderShape& shape, int num_rows, NextNorm norm) {
  const Activations out = workspace.normed().view(num_rows, shape.hidden_size);
  for_each_then_rows(
      worker, 0, 1, [](int, int) {}, num_rows,
      [&](int row) {
        norm_row(kernels, workspace.x() + static_cast<std::ptrdiff_t>(row) * shape.hidden_size,
                 norm.weight, shape.rms_norm_eps, out, row, norm.quantize);
      });
}

void run_layer(Worker& worker, const Kernels& kernels, const Workspace& workspace,
               const LayerCall& call) {
  LayerRun(worker, kernels, workspace, call).run();
}

void store_keys(Worker& worker, const Kernels& kernels, const Workspace& workspace,
                const LayerCall& call) {
  LayerRun(worker, kernels, workspace, call).store_keys();
}

void rope_row(std::int64_t position, const std::vector<float>& frequencies, float* rope) {
  const std::size_t half = frequencies.size();
  for (std::size_t i = 0; i < half; ++i) {
    const double angle = static_cast<float>(position) * frequencies[i];
    rope[i] = angle == 0.0 ? 1.0f : static_cast<float>(std::cos(angle));
    rope[half + i] = angle == 0.0 ? 0.0f : static_cast<float>(std::sin(angle));
  }
}

}  // namespace paceline
