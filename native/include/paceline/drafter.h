// The drafter: K steps of a few query-only layers over the target's KV cache, in one pool run
// (reference section 3). Nothing here can change the text, only how much of a draft is accepted.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "paceline/decoder.h"
#include "paceline/draft_head.h"
#include "paceline/errors.h"
#include "paceline/kv_cache.h"
#include "paceline/parameters.h"

namespace paceline {

inline constexpr int kMaxDraftTokens = 256;

// Continue `last_token`, which sits at position cache.length().
struct DraftRequest {
  std::int64_t last_token = 0;
  const float* hidden = nullptr;  // [D of the target] its final-normed row that gave last_token
  int max_draft_tokens = 0;
  std::int64_t place = 0;  // rotary position of all steps
  DrawRule rule;
  // A token whose confidence is below its step's bound ends the draft and is not kept.
  std::vector<double> min_confidences;
  std::vector<std::int64_t> end_token_ids;  // a token that ends the draft and is kept
};

struct Draft {
  std::vector<std::int32_t> tokens;
  std::vector<double> confidences;
};

class Drafter {
 public:
  // Reads the target's token embeddings and, in draft(), the KV of its donor layers. `pool`, which
  // may be smaller than the target's, and the table must outlive the drafter. Throws
  // std::invalid_argument where the shapes do not fit.
  Drafter(ThreadPool& pool, const DecoderShape& shape, const DecoderShape& target_shape,
          const RowTable& target_embeddings, const Kernels& kernels = paceline::kernels());

  // As Parameters: load every tensor, then finish. The token ordering before the embedding saves
  // keeping that until both are there.
  void load(const Tensor& tensor) { parameters_.load(tensor); }
  void finish() const { parameters_.finish(); }
  std::size_t weight_bytes() const { return parameters_.weight_bytes(); }
  const DecoderShape& shape() const { return shape_; }

  // `cache` is one of the target's. Throws std::invalid_argument for a token outside the
  // vocabulary, an empty cache or too long a draft, and ReadError where a token's embedding cannot
  // be read. Callers take turns.
  Draft draft(const KVCache& cache, const DraftRequest& request);

 private:
  void check(const KVCache& cache, const DraftRequest& request) const;
  void look_at(const KVCache& cache, std::int64_t place);
  void embed(std::int64_t token);
  void quantize_input();  // where pre_projection wants it
  void run_layers(Worker& worker);
  void norm_first();
  LayerCall layer_call(std::size_t index) const;
  void project_back(Worker& worker);
  void take(Drawn drawn, const DraftRequest& request, Draft& draft);

  const DecoderShape shape_;
  const float embedding_scale_;
  const RowTable& embeddings_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  DraftHead head_;
  Parameters parameters_;
  std::vector<LayerWeights> layers_;
  const float* norm_ = nullptr;
  Matrix pre_projection_, post_projection_;

  std::mutex turn_;
  Workspace workspace_;
  ActivationBuffer input_;  // [1][2 x D of the target]: embedding, then hidden
  std::vector<std::uint8_t> embedding_bytes_;  // of one token, as in the file
  std::vector<float> sliding_rope_, global_rope_;
  std::vector<AttentionSpan> spans_;         // by layer
  std::vector<std::int64_t> first_visible_;  // by layer
  std::int64_t last_visible_ = 0;
  bool stopped_ = false;
  Failure failure_;
};

}  // namespace paceline
