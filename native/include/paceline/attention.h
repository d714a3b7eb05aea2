// Attention with scale 1 over KV caches, on the pool.
//
// Order of accumulation, the same for every number of rows, thread count and instruction set (C1).
// A section is 256 consecutive positions that begin at a multiple of 256. Each section of which a
// (row, head) sees a key gives a state: the highest visible score m, the sum of weights
// exp(score - m), and the values times these weights. A score is one chain of fused multiply-adds
// over the head's columns; each column of the values is one over the positions, lowest first; the
// weights are added 16 lanes apart. Weights below exp(-64) are zero, and so are those of invisible
// keys: all products are multiples of 2^-140, nothing rounds to -0, and a zero weight changes no
// bit. States are merged from the lowest section up, the lower one on the left.
#pragma once

#include <cstddef>
#include <cstdint>

#include "paceline/kv_cache.h"

namespace paceline {

class Worker;

inline constexpr int kSectionPositions = 256;
inline constexpr int kSectionBlocks = kSectionPositions / kBlockPositions;
inline constexpr int kTileQueries = 8;  // (row, head) pairs of one KV head that share loads of keys

// Rows of one sequence. They are rows first_row, + 1, ... of the call's query and out.
struct AttentionSpan {
  const LayerStore* store = nullptr;
  int first_row = 0;
  int num_rows = 0;
  // Per row of the span, inclusive, absolute positions. Every row sees at least one key, and a ring
  // still holds all that its rows see.
  const std::int64_t* first_visible = nullptr;
  const std::int64_t* last_visible = nullptr;
};

struct AttentionCall {
  const AttentionSpan* spans = nullptr;
  int num_spans = 0;
  int num_heads = 0;     // a multiple of num_kv_heads; head h reads KV head h / (heads per KV head)
  int num_kv_heads = 0;  // of every span's store, and so head_dim
  int head_dim = 0;
  const float* query = nullptr;  // [rows][num_heads][head_dim]
  float* out = nullptr;          // the same; must not overlap the query
  float* scratch = nullptr;      // attention_scratch() floats
};

// Floats of scratch that a call needs, whatever its rows.
std::size_t attention_scratch(int num_workers, int head_dim);

// Called by every worker of a pool run, with K and V of all rows stored. Ends with a barrier.
void attend(Worker& worker, const Kernels& kernels, const AttentionCall& call);

// ---- What the kernels do, for attention.cc and kv_cache.cc ----

// Up to kTileQueries queries of one KV head over one section.
struct SectionTile {
  int num_queries = 0;
  int head_dim = 0;
  const float* queries[kTileQueries];
  // Visible positions of the section, [first, end) counted from its start; first >= end: none.
  int first[kTileQueries];
  int end[kTileQueries];
  const std::uint16_t* keys[kSectionBlocks];  // of blocks in which some query sees a position
  const std::uint16_t* values[kSectionBlocks];
};

// What a query knows of some sections, with its weighted values, which are not yet divided by the
// sum. A sum of 0 means that it saw none.
struct AttentionState {
  float highest = 0.0f;
  float sum = 0.0f;
};

struct AttentionKernels {
  // K and V of one head into slot `slot` of a block.
  void (*store)(const float* key, const float* value, int head_dim, int slot, std::uint16_t* keys,
                std::uint16_t* values);
  // The state of each query over one section; those of queries that see none of it mean nothing.
  void (*attend_section)(const SectionTile& tile, AttentionState* states, float* const* values);
  // Merges the state of higher sections into that of lower ones. Both have seen some.
  void (*merge)(AttentionState& state, float* values, const AttentionState& higher,
                const float* higher_values, int head_dim);
  // values = values / sum
  void (*finish)(const AttentionState& state, int head_dim, float* values);
};

}  // namespace paceline
