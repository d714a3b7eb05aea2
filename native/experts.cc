// The mixture of experts of one layer. Each expert's weights are read once, for all rows that chose
// it; a row's bits do not depend on what its neighbours chose, for experts add in their own order.
#include <cstring>

#include "layer_run.h"

namespace paceline {

// Rows that chose one expert: slots `first` to `first` + `count` - 1.
struct ActiveExpert {
  int expert, first, count;
};

// What the rows of a layer chose. A slot is one (expert, row); slots go by expert, then by row.
struct ExpertPlan {
  int num_active;
  ActiveExpert* active;  // [E]
  int* experts;          // [rows][k] as the router ranks them
  float* weights;        // [rows][k]
  int* slot_rows;        // [rows x k]
  float* slot_weights;   // [rows x k]
};

namespace {

constexpr std::size_t kPlanBytes = kAlignment;
static_assert(sizeof(ExpertPlan) <= kPlanBytes);

// Rows `first` to `first` + `count` - 1 of a buffer of slots, as activations of their own.
Activations slots_of(const ActivationBuffer& buffer, int first, int count, int inner) {
  Activations view = buffer.view(count, inner);
  const std::ptrdiff_t blocks = static_cast<std::ptrdiff_t>(first) * num_blocks(inner);
  view.values += static_cast<std::ptrdiff_t>(first) * inner;
  view.quants += blocks * kBlockColumns;
  view.scales += blocks;
  view.minus_8_sums += blocks;
  return view;
}

}  // namespace

void Workspace::reserve_experts(const DecoderShape& shape, int max_rows) {
  const int slots = max_rows * shape.num_experts_per_token;
  const auto count = static_cast<std::size_t>(slots);
  const auto experts = static_cast<std::size_t>(shape.num_experts);
  router_logits_ = AlignedBytes(static_cast<std::size_t>(max_rows) * experts * sizeof(float));
  plan_ = AlignedBytes(kPlanBytes + experts * sizeof(ActiveExpert) +
                       count * (2 * sizeof(int) + 2 * sizeof(float)));
  auto* plan = plan_.as<ExpertPlan>();
  plan->active = reinterpret_cast<ActiveExpert*>(plan_.data() + kPlanBytes);
  plan->experts = reinterpret_cast<int*>(plan->active + experts);
  plan->slot_rows = plan->experts + slots;
  plan->weights = reinterpret_cast<float*>(plan->slot_rows + slots);
  plan->slot_weights = plan->weights + slots;
  sparse_ = AlignedBytes(x_.size());
  router_input_ = ActivationBuffer(max_rows, shape.hidden_size);
  expert_input_ = ActivationBuffer(max_rows, shape.hidden_size);
  gathered_ = ActivationBuffer(slots, shape.hidden_size);
  expert_gated_ = ActivationBuffer(slots, shape.expert_ffn_size);
}

void LayerRun::norm_for_experts(int row) const {
  const ExpertWeights& experts = weights_.experts;
  norm_row(kernels_, x(row), experts.router_scale, shape_.rms_norm_eps,
           ws_.router_input_.view(num_rows_, hidden_), row, is_quantized(experts.router.type));
  norm_row(kernels_, x(row), experts.input_norm, shape_.rms_norm_eps,
           ws_.expert_input_.view(num_rows_, hidden_), row, is_quantized(experts.gate_up[0].type));
}

// The best experts of one row, the lowest of equals first, and their weights.
void LayerRun::route(int row) const {
  const auto& plan = *ws_.plan_.as<ExpertPlan>();
  const int count = shape_.num_experts, top = shape_.num_experts_per_token;
  float* probabilities = row_of(ws_.router_logits_, row, count);
  int* chosen = plan.experts + row * top;
  float* weights = plan.weights + row * top;
  ops_.softmax(probabilities, count);
  float total = 0.0f;
  for (int rank = 0; rank < top; ++rank) {
    int best = -1;
    for (int e = 0; e < count; ++e) {
      const bool taken = std::find(chosen, chosen + rank, e) != chosen + rank;
      if (!taken && (best < 0 || probabilities[e] > probabilities[best])) best = e;
    }
    chosen[rank] = best;
    weights[rank] = probabilities[best];
    total += weights[rank];
  }
  for (int rank = 0; rank < top; ++rank) {
    weights[rank] = weights[rank] / total * weights_.experts.per_expert_scale[chosen[rank]];
  }
}

// Sorts (row, expert) pairs by expert, rows in order.
void LayerRun::plan_experts() const {
  auto& plan = *ws_.plan_.as<ExpertPlan>();
  const int pairs = num_rows_ * shape_.num_experts_per_token;
  plan.num_active = 0;
  int slot = 0;
  for (int e = 0; e < shape_.num_experts; ++e) {
    const int first = slot;
    for (int i = 0; i < pairs; ++i) {
      if (plan.experts[i] != e) continue;
      plan.slot_rows[slot] = i / shape_.num_experts_per_token;
      plan.slot_weights[slot++] = plan.weights[i];
    }
    if (slot > first) plan.active[plan.num_active++] = {e, first, slot - first};
  }
}

// Where all rows chose the expert there is nothing to gather.
Activations LayerRun::expert_input(int active) const {
  const ActiveExpert& chosen = ws_.plan_.as<ExpertPlan>()->active[active];
  if (chosen.count == num_rows_) return ws_.expert_input_.view(num_rows_, hidden_);
  return slots_of(ws_.gathered_, chosen.first, chosen.count, hidden_);
}

Activations LayerRun::expert_gated(int active) const {
  const ActiveExpert& chosen = ws_.plan_.as<ExpertPlan>()->active[active];
  return slots_of(ws_.expert_gated_, chosen.first, chosen.count, shape_.expert_ffn_size);
}

void LayerRun::gather_expert_inputs() {
  const auto& plan = *ws_.plan_.as<ExpertPlan>();
  const Activations from = ws_.expert_input_.view(num_rows_, hidden_);
  const bool bytes = is_quantized(weights_.experts.gate_up[0].type);
  const auto gather_row = [&](const Activations& to, int place, int row) {
    if (!bytes) {
      std::copy_n(from.values + static_cast<std::ptrdiff_t>(row) * hidden_, hidden_,
                  to.values + static_cast<std::ptrdiff_t>(place) * hidden_);
      return;
    }
    for (std::ptrdiff_t b = 0; b < hidden_ / kBlockColumns; ++b) {
      const std::ptrdiff_t source = b * from.num_rows + row, target = b * to.num_rows + place;
      std::memcpy(to.quants + target * kBlockColumns, from.quants + source * kBlockColumns,
                  kBlockColumns);
      to.scales[target] = from.scales[source];
      to.minus_8_sums[target] = from.minus_8_sums[source];
    }
  };
  worker_.for_each(plan.num_active, 1, [&](int first, int end) {
    for (int a = first; a < end; ++a) {
      const ActiveExpert& chosen = plan.active[a];
      if (chosen.count == num_rows_) continue;
      const Activations to = expert_input(a);
      for (int i = 0; i < chosen.count; ++i) {
        gather_row(to, i, plan.slot_rows[chosen.first + i]);
      }
    }
  });
}

// Items `first` to `end` - 1 of (active expert, block of 32 outputs).
void LayerRun::gate_experts(int first, int end) const {
  const ExpertWeights& experts = weights_.experts;
  const auto& plan = *ws_.plan_.as<ExpertPlan>();
  const int blocks = num_blocks(shape_.expert_ffn_size);
  while (first < end) {
    const int active = first / blocks, block = first % blocks;
    const int until = std::min(blocks, block + end - first);
    const auto pair = 2 * static_cast<std::size_t>(plan.active[active].expert);
    gate_blocks(experts.gate_up[pair], &experts.gate_up[pair + 1], nullptr, 0, expert_input(active),
                block, until, expert_gated(active), experts.down[0].type);
    first += until - block;
  }
}

// Panels `first` to `end` - 1 of the sum over all active experts, in their order.
void LayerRun::add_experts(int first, int end) const {
  const auto& plan = *ws_.plan_.as<ExpertPlan>();
  const int step = std::max(1, kScratchFloats / (kPanelRows * num_rows_));
  for (int panel = first; panel < end; panel += step) {
    const int at = panel * kPanelRows, until = std::min(panel + step, end);
    const int columns = std::min(until * kPanelRows, hidden_) - at;
    for (int row = 0; row < num_rows_; ++row) {
      std::fill_n(row_of(ws_.sparse_, row, hidden_) + at, columns, 0.0f);
    }
    for (int a = 0; a < plan.num_active; ++a) {
      const ActiveExpert& chosen = plan.active[a];
      const Matrix& down = weights_.experts.down[static_cast<std::size_t>(chosen.expert)];
      multiply(slice(down, panel), expert_gated(a), 0, until - panel, scratch(), columns);
      for (int i = 0; i < chosen.count; ++i) {
        const int slot = chosen.first + i;
        ops_.add_multiple(scratch() + static_cast<std::ptrdiff_t>(i) * columns,
                          plan.slot_weights[slot], columns,
                          row_of(ws_.sparse_, plan.slot_rows[slot], hidden_) + at);
      }
    }
  }
}

void LayerRun::combine(int row) const {
  const float eps = shape_.rms_norm_eps;
  float *dense = projected(row), *sparse = row_of(ws_.sparse_, row, hidden_);
  ops_.rms_norm(dense, weights_.experts.dense_norm, eps, hidden_, dense);
  ops_.add_rms_norm(sparse, weights_.experts.sparse_norm, eps, 1.0f, hidden_, dense);
  const float scalar = shape_.per_layer_size ? 1.0f : *weights_.scalar;
  ops_.add_rms_norm(dense, weights_.post_ffn_norm, eps, scalar, hidden_, x(row));
  finish_row(row);
}

void LayerRun::feed_forward_with_experts() {
  const ExpertWeights& experts = weights_.experts;
  const Activations in = normed(), out = gated();
  const Activations router_in = ws_.router_input_.view(num_rows_, hidden_);
  const int dense_blocks = num_blocks(layer_.ffn_size);
  for_each_then_rows(
      worker_, dense_blocks + num_panels(shape_.num_experts), 1,
      [&](int first, int end) {
        if (first < dense_blocks) {
          gate_blocks(weights_.gate, &weights_.up, nullptr, 0, in, first,
                      std::min(end, dense_blocks), out, weights_.down.type);
        }
        if (end > dense_blocks) {
          multiply(experts.router, router_in, std::max(first - dense_blocks, 0), end - dense_blocks,
                   ws_.router_logits_.as<float>(), shape_.num_experts);
        }
      },
      num_rows_,
      [&](int row) {
        route(row);
        if (num_rows_ == 1) plan_experts();
      });
  if (num_rows_ > 1) {
    worker_.barrier([&] { plan_experts(); });
    gather_expert_inputs();
  }
  const int expert_blocks =
      ws_.plan_.as<ExpertPlan>()->num_active * num_blocks(shape_.expert_ffn_size);
  worker_.for_each(expert_blocks + num_panels(hidden_), 1, [&](int first, int end) {
    if (first < expert_blocks) gate_experts(first, std::min(end, expert_blocks));
    if (end > expert_blocks) {
      multiply(weights_.down, out, std::max(first - expert_blocks, 0), end - expert_blocks,
               ws_.projected_.as<float>(), hidden_);
    }
  });
  for_each_then_rows(
      worker_, num_panels(hidden_), 1, [&](int first, int end) { add_experts(first, end); },
      num_rows_, [&](int row) { combine(row); });
}

}  // namespace paceline
