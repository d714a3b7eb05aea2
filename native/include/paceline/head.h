// The output head: logits of a few rows over the whole vocabulary, and each row's best candidates,
// found while the panels pass so that nobody scans a row again.
//
// Candidates are ordered by (logit descending, id ascending), a total order: which ones are kept
// and where they stand does not depend on how the panels were split. A row that holds an infinity
// or NaN after the soft-cap has no candidates (every id is -1), so that its reader looks at the
// whole row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "paceline/linear.h"

namespace paceline {

struct Kernels;
class Worker;

inline constexpr int kMaxCandidates = 256;

struct Candidate {
  float logit;
  std::int32_t id;
};

// The best candidates of one row that one worker has seen. Somebody else owns the memory.
struct alignas(kAlignment) CandidateList {
  Candidate* kept = nullptr;  // [capacity] a heap, the worst on top
  int capacity = 0;
  int count = 0;
  float bound = -std::numeric_limits<float>::infinity();  // lower logits cannot enter
  bool all_finite = true;
};

// Keep a candidate if it is among the list's best. Its logit must not be NaN.
void offer(CandidateList& list, Candidate candidate);

// The best of all `num_lists` lists, best first, into `ids` and `logits` [count]. Places that none
// fills get id -1 and logit -infinity. Uses the lists up. Does not look at all_finite.
void merge_candidates(CandidateList* lists, int num_lists, int count, std::int32_t* ids,
                      float* logits);

struct HeadKernels {
  // Offer logits[0 .. count - 1], whose ids are first_id, + 1, ..., to a list, and note whether one
  // is not finite. NaN is not offered.
  void (*collect)(const float* logits, int count, std::int32_t first_id, CandidateList& list);
};

// Memory for the lists of all workers and rows. Grows; reserve() before a pool run.
class HeadScratch {
 public:
  void reserve(int num_workers, int num_rows, int num_candidates);
  // The list of one worker and row, emptied, keeping `count` candidates.
  CandidateList& reset(int worker, int row, int count);
  // The lists of a row, by worker.
  CandidateList* lists(int row) const;

 private:
  AlignedBytes lists_, kept_;
  int num_workers_ = 0, num_candidates_ = 0;
};

struct HeadCall {
  const Matrix* weights = nullptr;  // [V, D]
  const Activations* x = nullptr;   // quantised where the weights are
  float softcap = 0.0f;             // 0 = none
  float* logits = nullptr;          // [num_rows][logits_stride]
  std::ptrdiff_t logits_stride = 0;
  // How many candidates each row wants, 0 to candidates_stride; nullptr means none anywhere.
  const int* num_candidates = nullptr;
  int candidates_stride = 0;              // at most kMaxCandidates
  std::int32_t* candidate_ids = nullptr;  // [num_rows][candidates_stride]
  float* candidate_logits = nullptr;      // the same
  HeadScratch* scratch = nullptr;         // reserved for this call; unused without candidates
};

// Called by every worker of a pool run; all of x must be there. Ends with a barrier.
void output_head(Worker& worker, const Kernels& kernels, const HeadCall& call);

}  // namespace paceline
