#include "paceline/head.h"

#include <algorithm>
#include <cassert>
#include <new>

#include "paceline/kernels.h"
#include "paceline/thread_pool.h"

namespace paceline {
namespace {

constexpr int kPanelsAtOnce = 8;  // logits of a row that are still in the cache when looked at

bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

int wanted(const HeadCall& call, int row) {
  return call.num_candidates != nullptr ? call.num_candidates[row] : 0;
}

void clear(std::int32_t* ids, float* logits, int count) {
  std::fill_n(ids, count, -1);
  std::fill_n(logits, count, -std::numeric_limits<float>::infinity());
}

// One run of panels for all rows: a row's logits are looked at before they leave the cache.
void score_panels(const Kernels& kernels, const HeadCall& call, int worker, int first, int end) {
  kernels.linear.multiply(*call.weights, *call.x, first, end, call.logits, call.logits_stride);
  const int from = first * kPanelRows;
  const int count = std::min(end * kPanelRows, call.weights->outputs) - from;
  for (int row = 0; row < call.x->num_rows; ++row) {
    float* logits = call.logits + row * call.logits_stride + from;
    if (call.softcap != 0.0f) kernels.ops.soft_cap(logits, count, call.softcap);
    if (wanted(call, row) > 0) {
      kernels.head.collect(logits, count, from, call.scratch->lists(row)[worker]);
    }
  }
}

void merge_row(const HeadCall& call, int row, int num_workers) {
  const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(row) * call.candidates_stride;
  std::int32_t* ids = call.candidate_ids + at;
  float* logits = call.candidate_logits + at;
  CandidateList* lists = call.scratch->lists(row);
  int count = wanted(call, row);
  for (int w = 0; w < num_workers; ++w) count = lists[w].all_finite ? count : 0;
  merge_candidates(lists, num_workers, count, ids, logits);
  clear(ids + count, logits + count, call.candidates_stride - count);
}

}  // namespace

void offer(CandidateList& list, Candidate candidate) {
  Candidate* const begin = list.kept;
  if (list.count == list.capacity) {
    if (list.capacity == 0 || !better(candidate, *begin)) return;
    std::pop_heap(begin, begin + list.count, better);
    --list.count;
  }
  begin[list.count++] = candidate;
  std::push_heap(begin, begin + list.count, better);
  if (list.count == list.capacity) list.bound = begin->logit;
}

void merge_candidates(CandidateList* lists, int num_lists, int count, std::int32_t* ids,
                      float* logits) {
  for (int l = 0; l < num_lists; ++l) {
    std::sort(lists[l].kept, lists[l].kept + lists[l].count, better);
  }
  for (int place = 0; place < count; ++place) {
    CandidateList* best = nullptr;
    for (int l = 0; l < num_lists; ++l) {
      if (lists[l].count == 0) continue;
      if (best == nullptr || better(*lists[l].kept, *best->kept)) best = lists + l;
    }
    if (best == nullptr) return clear(ids + place, logits + place, count - place);
    ids[place] = best->kept->id;
    logits[place] = best->kept->logit;
    ++best->kept;
    --best->count;
  }
}

void HeadScratch::reserve(int num_workers, int num_rows, int num_candidates) {
  num_workers_ = num_workers;
  num_candidates_ = num_candidates;
  const std::size_t lists =
      static_cast<std::size_t>(num_workers) * static_cast<std::size_t>(num_rows);
  const std::size_t kept = lists * static_cast<std::size_t>(num_candidates) * sizeof(Candidate);
  if (lists * sizeof(CandidateList) > lists_.size()) {
    lists_ = AlignedBytes(lists * sizeof(CandidateList));
  }
  if (kept > kept_.size()) kept_ = AlignedBytes(kept);
}

CandidateList& HeadScratch::reset(int worker, int row, int count) {
  assert(count <= num_candidates_);
  const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(row) * num_workers_ + worker;
  CandidateList* list = lists_.as<CandidateList>() + at;
  return *new (list)
      CandidateList{.kept = kept_.as<Candidate>() + at * num_candidates_, .capacity = count};
}

CandidateList* HeadScratch::lists(int row) const {
  return lists_.as<CandidateList>() + static_cast<std::ptrdiff_t>(row) * num_workers_;
}

void output_head(Worker& worker, const Kernels& kernels, const HeadCall& call) {
  const int rows = call.x->num_rows;
  for (int row = 0; row < rows; ++row) {
    if (wanted(call, row) > 0) call.scratch->reset(worker.index(), row, wanted(call, row));
  }
  worker.for_each(num_panels(call.weights->outputs), kPanelsAtOnce, [&](int first, int end) {
    for (int p = first; p < end; p += kPanelsAtOnce) {
      score_panels(kernels, call, worker.index(), p, std::min(p + kPanelsAtOnce, end));
    }
  });
  if (call.candidates_stride == 0) return;
  worker.for_each(rows, 1, [&](int first, int end) {
    for (int row = first; row < end; ++row) merge_row(call, row, worker.num_workers());
  });
}

}  // namespace paceline
