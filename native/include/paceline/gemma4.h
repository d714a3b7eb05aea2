// The target: passes over rows of one or more sequences.
//
// Up to kMaxRows rows go through the layers together, in one pool run; longer passes in several.
// Rows whose outputs nobody wants stop where the last layer that owns KV has stored their keys.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "paceline/decoder.h"
#include "paceline/head.h"
#include "paceline/kv_cache.h"
#include "paceline/parameters.h"

namespace paceline {

// One sequence's share of a pass: tokens at positions cache->length(), + 1, ...
struct SequenceRows {
  KVCache* cache = nullptr;
  const std::int32_t* token_ids = nullptr;  // [num_rows]
  int num_rows = 0;                         // at least 1
  int num_outputs = 0;                      // outputs are wanted for this many last rows
  int num_candidates = 0;                   // best tokens wanted per output row
};

// Where outputs go, rows of the first sequence first. R is the sum of all num_outputs.
struct PassOutput {
  float* logits = nullptr;                // [R, V], after the soft-cap
  float* hidden = nullptr;                // [R, D] final-normed
  std::int32_t* candidate_ids = nullptr;  // [R, num_candidates]; id -1 where there is none
  float* candidate_logits = nullptr;      // the same
  int num_candidates = 0;                 // the most that a sequence wants
};

class Target {
 public:
  // Throws std::invalid_argument for a shape that no Gemma 4 has. The pool must outlive the target.
  Target(ThreadPool& pool, DecoderShape shape, const Kernels& kernels = paceline::kernels());

  // Load every tensor, then finish. See Parameters.
  void load(const Tensor& tensor) { parameters_.load(tensor); }
  void finish();
  std::size_t weight_bytes() const { return parameters_.weight_bytes(); }
  const DecoderShape& shape() const { return shape_; }
  const RowTable& embeddings() const { return embedding_rows_; }

  // An empty cache whose rings survive the rejection of `slack` positions.
  std::unique_ptr<KVCache> new_cache(std::int64_t max_length, std::int64_t slack) const;

  // Appends keys and values of all rows; a row's bits depend on its own tokens and cache only (C1).
  // Throws std::invalid_argument for bad arguments and CacheError where a sequence outgrows its
  // cache: nothing has changed then; NotFiniteError where a token's per-layer row is bad, and
  // ReadError where its rows cannot be read: caches count whole positions only. Callers take turns.
  void forward(std::span<const SequenceRows> sequences, const PassOutput& output);

 private:
  // Consecutive rows of one sequence inside a chunk.
  struct Span {
    KVCache* cache;
    std::int64_t position;  // of its first row
    int first_row, num_rows;
    int first_kept, num_kept;  // of its rows, the last num_kept have outputs
  };
  // What the rows of a chunk are: all of them, or the kept ones.
  struct RowSet {
    std::vector<std::int32_t> token_ids;
    std::vector<std::int64_t> positions;
    std::vector<int> places;                               // among all rows of the chunk
    std::vector<std::vector<std::int64_t>> first_visible;  // by window
    std::vector<AttentionSpan> spans;                      // [layers][spans]
    int num_rows() const { return static_cast<int>(token_ids.size()); }
  };

  void expect_parameters();
  void check(std::span<const SequenceRows> sequences, const PassOutput& output) const;
  void check_tokens(const SequenceRows& rows) const;

  // Before the pool runs: what the chunk consists of.
  void start_chunk();
  int add_rows(const SequenceRows& rows, int begin);
  void add_row(RowSet& set, std::int32_t token_id, std::int64_t position) const;
  void point_spans(RowSet& set, int first_layer, int end_layer, bool kept);
  void read_rows();
  void run_chunk(const PassOutput& output, int first_output);

  // On every worker.
  void run_layers(Worker& worker);
  void start_rows(Worker& worker, const RowSet& set, bool with_rope, int norm_layer);
  void embed_row(int row, const RowSet& set, int norm_layer) const;
  void rope_rows(int row, const RowSet& set);
  void per_layer_inputs(Worker& worker, const RowSet& set, int first_layer, int end_layer);
  void per_layer_input(int row, const RowSet& set, int layer, int worker) const;
  void keep_rows();
  LayerCall layer_call(const RowSet& set, int layer) const;
  NextNorm norm_after(int layer) const;
  void write_outputs(Worker& worker, const PassOutput& output, int first_output);

  bool drops_rows() const { return kept_.num_rows() < all_.num_rows(); }
  int num_layers() const { return static_cast<int>(shape_.layers.size()); }
  int last_owner() const { return shape_.first_shared_layer - 1; }
  int window_index(const LayerShape& layer) const;
  float* rope(const LayerShape& layer) const;

  const DecoderShape shape_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  Parameters parameters_;
  std::vector<LayerWeights> layers_;
  Matrix head_, per_layer_model_projection_;
  RowTable embedding_rows_, per_layer_rows_;
  const float* norm_ = nullptr;
  const float* per_layer_projection_norm_ = nullptr;
  bool is_complete_ = false;

  std::mutex turn_;
  Workspace workspace_;
  ActivationBuffer embedded_;                       // [rows][D] layer 0's input
  AlignedBytes sliding_rope_, global_rope_;         // [rows][H]
  AlignedBytes embedding_bytes_, per_layer_bytes_;  // [rows] of the chunk's tokens, as in the file
  AlignedBytes per_layer_, per_layer_scratch_;      // [rows][L P]; [workers][P]
  HeadScratch head_scratch_;
  std::vector<int> windows_;  // the different ones
  std::vector<Span> spans_;
  RowSet all_, kept_;
  std::vector<int> num_candidates_;  // per kept row
};

}  // namespace paceline
