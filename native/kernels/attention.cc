// One section of attention, and the merging of sections (include/paceline/attention.h).
#include "paceline/attention.h"

#include "math.h"
#include "panels.h"

namespace paceline::PACELINE_ISA_NAME {
namespace {

constexpr int kBlockPanels = kBlockPositions / kLanes;
constexpr int kColumnPanel = kBlockPositions * kLanes;  // halves of 16 columns of a block's values

// ---- Storing ----

// Always finite: beyond the largest half becomes that, NaN the lowest (max and min give their
// second operand for NaN).
PACELINE_INLINE F32x16 within_halves(F32x16 x) {
  return min(max(x, splat(-65504.0f)), splat(65504.0f));
}

void store_kv(const float* key, const float* value, int head_dim, int slot, std::uint16_t* keys,
              std::uint16_t* values) {
  std::uint16_t* to = keys + slot / kLanes * (head_dim * kLanes) + slot % kLanes;
  for (int at = 0; at < head_dim; at += kLanes) {
    const int lanes = smaller(kLanes, head_dim - at);
    std::uint16_t halves[kLanes];
    store_f16(within_halves(load_first(key + at, lanes)), halves);
    for (int i = 0; i < lanes; ++i) to[(at + i) * kLanes] = halves[i];
    store_f16(within_halves(load_first(value + at, lanes)),
              values + at * kBlockPositions + slot * kLanes);
  }
}

// ---- One section ----

// Distances between rows are constants, so that one register addresses all of them; the 16 more
// spread the rows over the sets of the cache.
constexpr int kQueryStride = kMaxHeadDim + 16;
constexpr int kWeightStride = kSectionPositions + 16;

struct Work {
  alignas(64) float queries[kTileQueries * kQueryStride];
  alignas(64) float weights[kTileQueries * kWeightStride];  // first the scores
};

constexpr int kTileRows = kMaxFloatRows >= kTileQueries ? kTileQueries : 4;

// The positions that queries row to row + M - 1 see between them.
struct Range {
  int first, end;
};

Range seen_together(const SectionTile& tile, int row, int rows) {
  Range all = {kSectionPositions, 0};
  for (int m = row; m < row + rows; ++m) {
    if (tile.first[m] >= tile.end[m]) continue;
    all = {smaller(all.first, tile.first[m]), larger(all.end, tile.end[m])};
  }
  return all;
}

// The part of a range that lies in a block, counted from its start.
PACELINE_INLINE Range in_block(Range range, int block) {
  const int start = block * kBlockPositions;
  return {larger(range.first - start, 0), smaller(range.end - start, kBlockPositions)};
}

template <int M, int P>
PACELINE_INLINE void score_panels(const std::uint16_t* panel, int head_dim, const float* queries,
                                  float* scores) {
  F32x16 out[M][P];
  multiply_tile<F16, M, P>(panel, static_cast<std::ptrdiff_t>(head_dim) * kLanes, head_dim, queries,
                           kQueryStride, out);
  PACELINE_UNROLL
  for (int m = 0; m < M; ++m) {
    PACELINE_UNROLL
    for (int p = 0; p < P; ++p) store(out[m][p], scores + m * kWeightStride + p * kLanes);
  }
}

template <int M>
void score(const SectionTile& tile, Range range, const float* queries, float* scores) {
  constexpr int P = kPanelsAtOnce<M>;
  const int panel_step = tile.head_dim * kLanes;
  for (int block = 0; block < kSectionBlocks; ++block) {
    const Range part = in_block(range, block);
    if (part.first >= part.end) continue;
    const int end = (part.end + kLanes - 1) / kLanes;
    float* to = scores + block * kBlockPositions;
    int p = part.first / kLanes;
    for (; p + P <= end; p += P) {
      score_panels<M, P>(tile.keys[block] + p * panel_step, tile.head_dim, queries,
                         to + p * kLanes);
    }
    for (; p < end; ++p) {
      score_panels<M, 1>(tile.keys[block] + p * panel_step, tile.head_dim, queries,
                         to + p * kLanes);
    }
  }
}

// Turns scores into weights in place. Positions of `all` that the query does not see get zero.
AttentionState weigh(float* scores, Range seen, Range all) {
  const F32x16 zero = splat(0.0f), lowest = splat(-__builtin_inff());
  F32x16 best = lowest, sums = zero;
  const int first_panel = seen.first / kLanes, end_panel = (seen.end + kLanes - 1) / kLanes;
  const auto visible = [&](int p, F32x16 inside, F32x16 outside) {
    const int first = larger(seen.first - p * kLanes, 0);
    const int end = smaller(seen.end - p * kLanes, kLanes);
    if (first == 0 && end == kLanes) return inside;
    return select_range(first, end, inside, outside);
  };
  for (int p = first_panel; p < end_panel; ++p) {
    best = max(best, visible(p, load(scores + p * kLanes), lowest));
  }
  const float highest_score = highest(best);
  for (int p = all.first / kLanes; p * kLanes < all.end; ++p) {
    F32x16 weights = zero;
    if (first_panel <= p && p < end_panel) {
      weights = visible(p, weight_exp(load(scores + p * kLanes) - splat(highest_score)), zero);
      sums = sums + weights;
    }
    store(weights, scores + p * kLanes);
  }
  return {highest_score, sum(sums)};
}

template <int M, int P>
PACELINE_INLINE void mix_columns(const SectionTile& tile, Range range, int column,
                                 const float* weights, float* const* values) {
  F32x16 out[M][P];
  clear_tile(out);
  for (int block = 0; block < kSectionBlocks; ++block) {
    const Range part = in_block(range, block);
    if (part.first >= part.end) continue;
    add_tile<F16, M, P>(tile.values[block] + column * kBlockPositions + part.first * kLanes,
                        kColumnPanel, part.end - part.first,
                        weights + block * kBlockPositions + part.first, kWeightStride, out);
  }
  PACELINE_UNROLL
  for (int m = 0; m < M; ++m) {
    PACELINE_UNROLL
    for (int p = 0; p < P; ++p) {
      const int at = column + p * kLanes;
      store_first(out[m][p], values[m] + at, tile.head_dim - at);
    }
  }
}

template <int M>
void mix(const SectionTile& tile, Range range, const float* weights, float* const* values) {
  constexpr int P = kPanelsAtOnce<M>;
  int column = 0;
  for (; column + (P - 1) * kLanes < tile.head_dim; column += P * kLanes) {
    mix_columns<M, P>(tile, range, column, weights, values);
  }
  for (; column < tile.head_dim; column += kLanes) {
    mix_columns<M, 1>(tile, range, column, weights, values);
  }
}

// Queries row to row + M - 1.
template <int M>
void attend_rows(const SectionTile& tile, int row, Work& work, AttentionState* states,
                 float* const* values) {
  const Range all = seen_together(tile, row, M);
  if (all.first >= all.end) return;
  for (int m = 0; m < M; ++m) {
    std::memcpy(work.queries + m * kQueryStride, tile.queries[row + m],
                static_cast<std::size_t>(tile.head_dim) * sizeof(float));
  }
  score<M>(tile, all, work.queries, work.weights);
  for (int m = 0; m < M; ++m) {
    const Range seen = {tile.first[row + m], tile.end[row + m]};
    float* scores = work.weights + m * kWeightStride;
    states[row + m] = seen.first < seen.end ? weigh(scores, seen, all) : weigh(scores, {0, 0}, all);
  }
  mix<M>(tile, all, work.weights, values + row);
}

template <int M>
void attend_some_rows(const SectionTile& tile, int row, int rows, Work& work,
                      AttentionState* states, float* const* values) {
  if constexpr (M > 1) {
    if (rows < M) return attend_some_rows<M - 1>(tile, row, rows, work, states, values);
  }
  attend_rows<M>(tile, row, work, states, values);
}

void attend_section(const SectionTile& tile, AttentionState* states, float* const* values) {
  Work work;
  for (int row = 0; row < tile.num_queries; row += kTileRows) {
    const int rows = smaller(kTileRows, tile.num_queries - row);
    attend_some_rows<kTileRows>(tile, row, rows, work, states, values);
  }
}

// ---- Merging ----

float weight_of(float score, float highest_score) {
  float lanes[kLanes];
  store(weight_exp(splat(score - highest_score)), lanes);
  return lanes[0];
}

void merge(AttentionState& state, float* values, const AttentionState& higher,
           const float* higher_values, int head_dim) {
  const float best = state.highest > higher.highest ? state.highest : higher.highest;
  const float low = weight_of(state.highest, best), high = weight_of(higher.highest, best);
  state = {best, state.sum * low + higher.sum * high};
  for (int at = 0; at < head_dim; at += kLanes) {
    const int lanes = smaller(kLanes, head_dim - at);
    const F32x16 kept = load_first(values + at, lanes) * splat(low);
    store_first(fma(load_first(higher_values + at, lanes), splat(high), kept), values + at, lanes);
  }
}

void finish(const AttentionState& state, int head_dim, float* values) {
  const F32x16 inverse = splat(1.0f / state.sum);
  for (int at = 0; at < head_dim; at += kLanes) {
    const int lanes = smaller(kLanes, head_dim - at);
    store_first(load_first(values + at, lanes) * inverse, values + at, lanes);
  }
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {store_kv, attend_section, merge, finish};

}  // namespace paceline::PACELINE_ISA_NAME
