// Attention: values against double arithmetic; bits for every number of rows, threads and
// instruction set; what a row cannot see must not matter.
#include "paceline/attention.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "paceline/shapes.h"
#include "paceline/thread_pool.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr double kHalfUlp = 0x1p-24;  // of float32, relative
constexpr int kMostRows = 128;

struct Case {
  const char* name;
  int num_heads, num_kv_heads, head_dim;
  std::int64_t window;  // 0: all
  std::int64_t start;   // position of the first row
  float spread = 1.0f;  // of the queries: the larger, the more weights are zero
};

const Case kCases[] = {
    {"from the beginning", 4, 2, 64, 0, 0},
    {"table", 8, 1, 64, 0, 700},
    {"window across sections", 8, 1, 64, 300, 1500},
    {"short window", 6, 3, 16, 5, 250},
    {"window of one", 2, 1, 16, 1, 1000},
    {"odd sizes", 6, 2, 20, 130, 900},
    {"tiny heads", 2, 2, 4, 64, 500},
    {"many weights are zero", 4, 1, 128, 0, 600, 30.0f},
    {"twelve heads", 12, 1, 32, 0, 300},
};

struct Numbers {
  std::vector<float> key, value;
};

Numbers kv_of(const Case& c, std::int64_t position, int head, unsigned seed) {
  const auto size = static_cast<std::size_t>(c.head_dim);
  const unsigned at = static_cast<unsigned>(position * 16 + head) * 2 + seed * 1000003u;
  return {random_values(size, at, 0.5f), random_values(size, at + 1)};
}

void fill(const Case& c, const LayerStore& store, std::int64_t first, std::int64_t end,
          unsigned seed = 1) {
  for (std::int64_t position = first; position < end; ++position) {
    for (int head = 0; head < c.num_kv_heads; ++head) {
      const auto kv = kv_of(c, position, head, seed);
      store.write(kernels(), position, head, kv.key.data(), kv.value.data());
    }
  }
}

LayerStore new_store(const Case& c) {
  const std::int64_t length = c.start + kMostRows;
  LayerStore store(c.num_kv_heads, c.head_dim, c.window ? c.window + kMostRows : 0, length + 100);
  store.reserve(length);
  return store;
}

struct Visible {
  std::vector<std::int64_t> first, last;
};

Visible visible(const Case& c, int rows) {
  Visible v;
  for (std::int64_t p = c.start; p < c.start + rows; ++p) {
    v.first.push_back(c.window ? std::max<std::int64_t>(0, p - c.window + 1) : 0);
    v.last.push_back(p);
  }
  return v;
}

std::size_t query_size(const Case& c) {
  return static_cast<std::size_t>(c.num_heads) * static_cast<std::size_t>(c.head_dim);
}

std::vector<float> attend_all(ThreadPool& pool, const Kernels& k, const Case& c,
                              const std::vector<AttentionSpan>& spans,
                              const std::vector<float>& query) {
  std::vector<float> out(query.size(), -1.0f);
  std::vector<float> scratch(attention_scratch(pool.num_threads(), c.head_dim), std::nanf(""));
  AttentionCall call;
  call.spans = spans.data();
  call.num_spans = static_cast<int>(spans.size());
  call.num_heads = c.num_heads;
  call.num_kv_heads = c.num_kv_heads;
  call.head_dim = c.head_dim;
  call.query = query.data();
  call.out = out.data();
  call.scratch = scratch.data();
  pool.run([&](Worker& worker) { attend(worker, k, call); });
  return out;
}

// Rows row to row + rows - 1 of a case.
std::vector<float> attend_rows(ThreadPool& pool, const Kernels& k, const Case& c,
                               const LayerStore& store, const std::vector<float>& query, int row,
                               int rows) {
  const Visible v = visible(c, row + rows);
  const auto size = static_cast<std::ptrdiff_t>(query_size(c));
  const std::vector<float> some(query.begin() + row * size, query.begin() + (row + rows) * size);
  return attend_all(pool, k, c, {{&store, 0, rows, v.first.data() + row, v.last.data() + row}},
                    some);
}

// Row by row, on the portable kernels and one thread.
std::vector<float> one_by_one(const Case& c, const LayerStore& store,
                              const std::vector<float>& query, int rows) {
  ThreadPool alone(1);
  std::vector<float> out;
  for (int row = 0; row < rows; ++row) {
    const auto one = attend_rows(alone, *all_kernels().front(), c, store, query, row, 1);
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

std::vector<float> queries(const Case& c, int rows) {
  return random_values(static_cast<std::size_t>(rows) * query_size(c), 77, c.spread);
}

std::vector<std::unique_ptr<ThreadPool>> pools() {
  std::vector<std::unique_ptr<ThreadPool>> all;
  for (const int threads : {1, 2, 3}) all.push_back(std::make_unique<ThreadPool>(threads));
  return all;
}

std::string label(const Case& c, const Kernels& k, const ThreadPool& pool, int rows) {
  return std::string(c.name) + ", " + k.isa + ", " + std::to_string(pool.num_threads()) +
         " threads, " + std::to_string(rows) + " rows";
}

// Softmax of scores times values in double, and a bound on what float32 may differ by.
struct Exact {
  std::vector<double> out, tolerance;
};

Exact attend_exactly(const float* query, const LayerStore::Numbers& kv, std::size_t head,
                     std::size_t length, std::size_t head_dim) {
  std::vector<double> weights;
  double highest = -1e300, total = 0, score_error = 0;
  for (std::size_t p = 0; p < length; ++p) {
    const float* key = &kv.keys[(head * length + p) * head_dim];
    double score = 0, magnitude = 0;
    for (std::size_t i = 0; i < head_dim; ++i) {
      score += double(query[i]) * key[i];
      magnitude += std::fabs(double(query[i]) * key[i]);
    }
    weights.push_back(score);
    highest = std::max(highest, score);
    // One rounding per column, and one of the difference to the highest score.
    score_error = std::max(score_error, (static_cast<double>(head_dim) + 2) * kHalfUlp * magnitude);
  }
  for (double& w : weights) total += w = std::exp(w - highest);
  Exact exact{std::vector<double>(head_dim, 0.0), std::vector<double>(head_dim, 0.0)};
  for (std::size_t i = 0; i < head_dim; ++i) {
    for (std::size_t p = 0; p < length; ++p) {
      const double term = weights[p] / total * kv.values[(head * length + p) * head_dim + i];
      exact.out[i] += term;
      exact.tolerance[i] += std::fabs(term);
    }
    // Scores count in the weights and in their sum; then exp, one rounding per position, and the
    // merges. Weights below exp(-64) are nothing.
    const double relative =
        2 * score_error + 2 * 1.2e-7 + (2 * static_cast<double>(length) + 20) * kHalfUlp;
    exact.tolerance[i] = exact.tolerance[i] * relative + static_cast<double>(length) * 2e-28;
  }
  return exact;
}

}  // namespace

TEST(attention_is_near_exact_arithmetic) {
  for (const Case& c : kCases) {
    const LayerStore store = new_store(c);
    fill(c, store, 0, c.start + 3);
    const auto query = queries(c, 3);
    const auto out = one_by_one(c, store, query, 3);
    const Visible v = visible(c, 3);
    const auto head_dim = static_cast<std::size_t>(c.head_dim);
    for (std::size_t row = 0; row < 3; ++row) {
      const auto kv = store.read(v.first[row], v.last[row]);
      const auto length = static_cast<std::size_t>(v.last[row] - v.first[row] + 1);
      for (std::size_t h = 0; h < static_cast<std::size_t>(c.num_heads); ++h) {
        const std::size_t at = row * query_size(c) + h * head_dim;
        const std::size_t kv_head = h / static_cast<std::size_t>(c.num_heads / c.num_kv_heads);
        const Exact exact = attend_exactly(&query[at], kv, kv_head, length, head_dim);
        for (std::size_t i = 0; i < head_dim; ++i) {
          CHECK(std::fabs(out[at + i] - exact.out[i]) <= exact.tolerance[i], c.name);
        }
      }
    }
  }
}

TEST(rows_do_not_depend_on_rows_threads_or_instruction_set) {
  const auto all_pools = pools();
  for (const Case& c : kCases) {
    const LayerStore store = new_store(c);
    fill(c, store, 0, c.start + kMostRows);  // a few rows so have keys of later ones before them
    const auto query = queries(c, kMostRows);
    const auto expected = one_by_one(c, store, query, kMostRows);
    for (const Kernels* k : all_kernels()) {
      for (const auto& pool : all_pools) {
        for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 128}) {
          if (rows > 17 && k == all_kernels().front() && pool != all_pools.back()) continue;
          const auto out = attend_rows(*pool, *k, c, store, query, 0, rows);
          CHECK(same_bits(out.data(), expected.data(), out.size()), label(c, *k, *pool, rows));
        }
      }
    }
  }
}

TEST(large_heads_of_e2b) {
  const auto all_pools = pools();
  for (const Case& c : {Case{"sliding", 8, 1, 256, 512, 1000}, Case{"global", 8, 1, 512, 0, 600}}) {
    const LayerStore store = new_store(c);
    fill(c, store, 0, c.start + 5);
    const auto query = queries(c, 5);
    const auto expected = one_by_one(c, store, query, 5);
    for (const Kernels* k : all_kernels()) {
      for (const auto& pool : all_pools) {
        const auto out = attend_rows(*pool, *k, c, store, query, 0, 5);
        CHECK(same_bits(out, expected), label(c, *k, *pool, 5));
      }
    }
  }
}

TEST(long_contexts_are_merged_in_several_waves) {
  const Case c = {"long", 2, 1, 16, 0, 9000};
  const auto all_pools = pools();
  const LayerStore store = new_store(c);
  fill(c, store, 0, c.start + 17);
  const auto query = queries(c, 17);
  const auto expected = one_by_one(c, store, query, 17);
  for (const Kernels* k : all_kernels()) {
    for (const auto& pool : all_pools) {
      for (const int rows : {1, 4, 17}) {
        const auto out = attend_rows(*pool, *k, c, store, query, 0, rows);
        CHECK(same_bits(out.data(), expected.data(), out.size()), label(c, *k, *pool, rows));
      }
    }
  }
}

TEST(what_a_row_cannot_see_does_not_matter) {
  for (const Case& c : kCases) {
    const LayerStore clean = new_store(c), dirty = new_store(c);
    fill(c, clean, 0, c.start + 1);
    fill(c, dirty, 0, c.start + kMostRows, 9);  // other values in every slot first
    fill(c, dirty, c.window ? std::max<std::int64_t>(0, c.start - c.window + 1) : 0, c.start + 1);
    const std::vector<float> worst(static_cast<std::size_t>(c.head_dim), -std::nanf(""));
    for (int head = 0; head < c.num_kv_heads; ++head) {
      dirty.write(kernels(), c.start + 1, head, worst.data(), worst.data());
      if (c.window && c.start >= c.window) {
        dirty.write(kernels(), c.start - c.window, head, worst.data(), worst.data());
      }
    }
    const auto query = queries(c, 2);
    for (const Kernels* k : all_kernels()) {
      ThreadPool pool(2);
      const auto expected = attend_rows(pool, *k, c, clean, query, 0, 1);
      const auto alone = attend_rows(pool, *k, c, dirty, query, 0, 1);
      const auto with_next = attend_rows(pool, *k, c, dirty, query, 0, 2);
      CHECK(same_bits(alone, expected), label(c, *k, pool, 1));
      CHECK(same_bits(with_next.data(), expected.data(), expected.size()), label(c, *k, pool, 2));
    }
  }
}

TEST(spans_of_several_sequences_do_not_mix) {
  const Case c = {"spans", 4, 2, 32, 100, 300};
  const Case other = {"spans", 4, 2, 32, 100, 20};
  const LayerStore a = new_store(c), b = new_store(other);
  fill(c, a, 0, c.start + 5, 3);
  fill(other, b, 0, other.start + 2, 4);
  const auto query = queries(c, 7);
  const Visible of_a = visible(c, 5), of_b = visible(other, 2);
  const std::vector<float> query_b(query.begin() + static_cast<std::ptrdiff_t>(5 * query_size(c)),
                                   query.end());
  auto expected = one_by_one(c, a, query, 5);
  const auto expected_b = one_by_one(other, b, query_b, 2);
  expected.insert(expected.end(), expected_b.begin(), expected_b.end());
  for (const auto& pool : pools()) {
    for (const Kernels* k : all_kernels()) {
      const auto out = attend_all(*pool, *k, c,
                                  {{&b, 5, 2, of_b.first.data(), of_b.last.data()},
                                   {&a, 0, 5, of_a.first.data(), of_a.last.data()}},
                                  query);
      CHECK(same_bits(out, expected), label(c, *k, *pool, 7));
    }
  }
}

TEST(a_cache_that_was_truncated_and_rewritten_equals_a_fresh_one) {
  DecoderShape shape;
  const Case cases[] = {{"ring", 4, 1, 16, 100, 555}, {"table", 4, 1, 32, 0, 555}};
  for (const Case& c : cases) {
    LayerShape layer;
    layer.head_dim = c.head_dim;
    layer.num_kv_heads = c.num_kv_heads;
    layer.window = static_cast<int>(c.window);
    shape.layers.push_back(layer);
  }
  KVCache used(shape, 1000, 64), fresh(shape, 1000, 64);
  const auto pass = [&](KVCache& cache, int rows, unsigned seed) {
    const std::int64_t start = cache.length();
    cache.reserve(rows);
    for (int i = 0; i < 2; ++i) fill(cases[i], cache.store(i), start, start + rows, seed);
    cache.advance(rows);
  };
  for (int i = 0; i < 9; ++i) pass(used, 60, 1);
  for (int i = 0; i < 9; ++i) pass(fresh, 60, 1);
  for (const int rejected : {7, 40, 64}) {  // drafts that are taken back
    pass(used, rejected, 5);
    used.truncate(540);
  }
  pass(used, 16, 2);
  pass(fresh, 16, 2);
  for (int i = 0; i < 2; ++i) {
    const auto query = queries(cases[i], 1);
    for (const Kernels* k : all_kernels()) {
      ThreadPool pool(2);
      const auto out = attend_rows(pool, *k, cases[i], used.store(i), query, 0, 1);
      const auto expected = attend_rows(pool, *k, cases[i], fresh.store(i), query, 0, 1);
      CHECK(same_bits(out, expected), label(cases[i], *k, pool, 1));
    }
  }
}

TEST(what_is_not_a_number_stays_with_its_query) {
  const Case c = {"NaN", 8, 1, 16, 0, 300};
  const LayerStore store = new_store(c);
  fill(c, store, 0, c.start + 2);
  auto query = queries(c, 2);
  for (const Kernels* k : all_kernels()) {
    ThreadPool pool(2);
    const auto expected = attend_rows(pool, *k, c, store, query, 0, 2);
    const float kept = query[3 * 16 + 5];
    query[3 * 16 + 5] = std::nanf("");
    const auto out = attend_rows(pool, *k, c, store, query, 0, 2);
    query[3 * 16 + 5] = kept;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const bool poisoned = i / 16 == 3;
      CHECK(poisoned ? std::isnan(out[i]) : out[i] == expected[i], k->isa);
    }
  }
}
