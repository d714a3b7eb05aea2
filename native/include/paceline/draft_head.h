// The drafter's output head: scores of all tokens, or of the tokens of the clusters whose centroids
// fit best (reference section 3.6), and the draw of one token from them.
//
// The matrix lies in the order of `order`: token order[p] at place p, a cluster's tokens next to
// each other, so that a cluster is one contiguous read. Without centroids all tokens are one
// cluster, in the order of their ids. Places are scored in pieces, the unit of work.
#pragma once

#include <cstdint>
#include <vector>

#include "paceline/draw.h"
#include "paceline/head.h"
#include "paceline/kernels.h"
#include "paceline/parameters.h"
#include "paceline/shapes.h"
#include "paceline/thread_pool.h"

namespace paceline {

// What a drafter draws with. No penalties and no filters (sampling.DrawRule).
struct DrawRule {
  double temperature = 0.0;  // 0 takes the highest value
  std::uint64_t seed = 0;
  std::vector<std::int64_t> bias_ids;  // each once
  std::vector<double> biases;          // -infinity suppresses
};

class DraftHead {
 public:
  // Throws std::invalid_argument unless the clusters are equal and as many as are kept.
  DraftHead(ThreadPool& pool, const DecoderShape& shape);

  // Tells `parameters` which tensors to expect; must outlive it.
  void expect(Parameters& parameters);
  const Matrix& matrix() const { return matrix_; }
  const Matrix& centroids() const { return centroids_; }

  // For tokens of one draft. Not inside a pool run. Throws std::invalid_argument for a bias of a
  // token that is not in the vocabulary.
  void set_rule(const DrawRule& rule);

  // Called by every worker of a pool run: draws the token at `position` from the scores of row x
  // (one, quantised where weights are). then(Drawn) runs once; nobody goes on before it has.
  template <class Then>
  void draw(Worker& worker, const Kernels& kernels, const Activations& x, std::uint64_t position,
            Then&& then) {
    choose_clusters(worker, kernels, x);
    worker.for_each(
        num_pieces(), 1,
        [&](int first, int end) { score_pieces(worker.index(), kernels, x, first, end); },
        [&] {
          merge_scored();
          if (!wants_noise_) then(leaders_.drawn());
        });
    if (!wants_noise_) return;
    worker.for_each(
        num_pieces(), 1,
        [&](int first, int end) { put_noise(worker.index(), position, first, end); },
        [&] { then(merge_noised().drawn()); });
  }

 private:
  struct alignas(kAlignment) PerWorker {
    Leaders scored, noised;
  };
  struct Piece {
    int first, count;  // places
  };

  std::size_t load_embedding(const Tensor& tensor);
  std::size_t load_order(const Tensor& tensor);
  std::size_t pack_in_order(const Tensor& tensor);
  int num_pieces() const { return num_chosen_ * pieces_per_cluster_; }
  Piece piece(int index) const;
  double* values(int index) const;
  void choose_clusters(Worker& worker, const Kernels& kernels, const Activations& x);
  void score_pieces(int worker, const Kernels& kernels, const Activations& x, int first, int end);
  void put_noise(int worker, std::uint64_t position, int first, int end);
  void merge_scored();
  Leaders merge_noised();

  ThreadPool& pool_;
  const int vocab_size_, hidden_size_, num_centroids_, top_k_;  // top_k_: clusters kept
  const int cluster_size_, pieces_per_cluster_;
  Matrix matrix_;     // [V, D] in order
  Matrix centroids_;  // [clusters, D]
  AlignedBytes bytes_;
  std::vector<std::int32_t> order_, places_;  // token of a place, and place of a token
  bool is_ordered_;                           // order_ is known
  Tensor waiting_;                            // the embedding, until it is

  double temperature_ = 0.0;
  std::uint64_t seed_ = 0;
  PlacedBiases biases_;

  // Of the draw in progress.
  std::vector<float> centroid_scores_;
  HeadScratch scratch_;
  std::vector<std::int32_t> chosen_;  // clusters, [top_k_]
  std::vector<float> chosen_scores_;
  int num_chosen_;
  std::vector<PerWorker> workers_;
  Leaders leaders_;  // of all values
  bool wants_noise_ = false;
  AlignedBytes values_;  // [pieces][kPiecePlaces] double
};

}  // namespace paceline
