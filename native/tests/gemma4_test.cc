// The target: every geometry and weight type against a twin in double arithmetic, and equal bits
// however the rows are cut into passes and sequences, on any number of threads and instruction set.
#include "paceline/gemma4.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>

#include "paceline/errors.h"
#include "test.h"
#include "tiny_target.h"

using namespace paceline;
using namespace paceline::testing;

// Counts what the C++ allocator hands out. Inlined, GCC 12 would take free for a mistake.
static std::atomic<int> num_allocations = 0;
#ifndef __SANITIZE_ADDRESS__  // which has an allocator of its own
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++num_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif

namespace {

using Tokens = std::vector<std::int32_t>;

constexpr int kMaxLength = 700;

Tokens random_tokens(int count, unsigned seed) {
  std::mt19937 bits(seed);
  Tokens tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(std::uniform_int_distribution<std::int32_t>(0, 202)(bits));
  }
  return tokens;
}

// Outputs of a pass, with their memory.
struct Outputs {
  int rows = 0;
  std::vector<float> logits, hidden, candidate_logits;
  std::vector<std::int32_t> candidate_ids;

  Outputs() = default;
  Outputs(const DecoderShape& shape, int num_rows, int num_candidates)
      : rows(num_rows),
        logits(static_cast<std::size_t>(num_rows * shape.vocab_size), -1.0f),
        hidden(static_cast<std::size_t>(num_rows * shape.hidden_size), -1.0f),
        candidate_logits(static_cast<std::size_t>(num_rows * num_candidates), -1.0f),
        candidate_ids(candidate_logits.size(), -2) {}

  void append(const Outputs& other) {
    rows += other.rows;
    logits.insert(logits.end(), other.logits.begin(), other.logits.end());
    hidden.insert(hidden.end(), other.hidden.begin(), other.hidden.end());
  }
  Outputs last(int count) const {
    Outputs some;
    some.rows = count;
    const auto tail = [&](const std::vector<float>& all) {
      const std::size_t size = all.size() / static_cast<std::size_t>(rows);
      return std::vector<float>(all.end() - static_cast<std::ptrdiff_t>(size) * count, all.end());
    };
    some.logits = tail(logits);
    some.hidden = tail(hidden);
    return some;
  }
  bool equals(const Outputs& other) const {
    return same_bits(logits, other.logits) && same_bits(hidden, other.hidden);
  }
};

Outputs feed(Target& target, KVCache& cache, const Tokens& tokens, int first, int count,
             int num_outputs) {
  const SequenceRows rows = {&cache, tokens.data() + first, count, num_outputs, 0};
  Outputs out(target.shape(), num_outputs, 0);
  target.forward({&rows, 1}, {out.logits.data(), out.hidden.data(), nullptr, nullptr, 0});
  return out;
}

// All rows' outputs, `step` rows to a pass.
Outputs feed_in_steps(Target& target, KVCache& cache, const Tokens& tokens, int step) {
  Outputs all;
  const int count = static_cast<int>(tokens.size());
  for (int first = 0; first < count; first += step) {
    const int rows = std::min(step, count - first);
    all.append(feed(target, cache, tokens, first, rows, rows));
  }
  return all;
}

// What all owners of KV still hold of the last positions.
std::vector<float> contents(const Target& target, const KVCache& cache) {
  std::vector<float> all;
  for (int layer = 0; layer < target.shape().first_shared_layer; ++layer) {
    const std::int64_t last = cache.length() - 1;
    const bool sliding = target.shape().layers[static_cast<std::size_t>(layer)].sliding;
    const auto numbers =
        cache.store(layer).read(sliding ? std::max<std::int64_t>(0, last - 39) : 0, last);
    all.insert(all.end(), numbers.keys.begin(), numbers.keys.end());
    all.insert(all.end(), numbers.values.begin(), numbers.values.end());
  }
  return all;
}

std::string label(Geometry geometry, const char* dtype, const Kernels& k) {
  return std::string(kGeometryNames[static_cast<int>(geometry)]) + " " + dtype + " " + k.isa + " ";
}

template <class Body>
void for_models(Body&& body) {
  for (const Geometry geometry : kGeometries) {
    for (const char* dtype : kDtypes) body(TinyTarget(geometry, dtype), geometry, dtype);
  }
}

// With bytes and without, sizes that divide into panels and ones that do not.
template <class Body>
void for_few_models(Body&& body) {
  for (const Geometry geometry : kGeometries) {
    for (const char* dtype : {"Q4_0", "F32"}) body(TinyTarget(geometry, dtype), geometry, dtype);
  }
}

double distance(const Row& a, const Row& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(a[i] - b[i]));
  return most;
}

Row to_row(const std::vector<float>& all, std::size_t row, std::size_t size) {
  return {all.begin() + static_cast<std::ptrdiff_t>(row * size),
          all.begin() + static_cast<std::ptrdiff_t>((row + 1) * size)};
}

}  // namespace

TEST(outputs_are_near_those_of_the_twin) {
  ThreadPool pool(2);
  const Tokens tokens = random_tokens(60, 1);  // past the window of 40
  for_models([&](const TinyTarget& model, Geometry geometry, const char* dtype) {
    const auto exact = Twin(model).forward(tokens);
    std::vector<Twin::Output> disturbed;
    for (unsigned seed = 0; seed < 4; ++seed)
      disturbed.push_back(Twin(model, seed).forward(tokens));
    for (const Kernels* k : all_kernels()) {
      auto target = model.load(pool, *k);
      auto cache = target->new_cache(kMaxLength, 1);
      const Outputs out = feed(*target, *cache, tokens, 0, 60, 60);
      for (std::size_t row = 0; row < tokens.size(); ++row) {
        double logits = 0, hidden = 0;  // how far operations that err as ours may move this row
        for (const auto& other : disturbed) {
          logits = std::max(logits, distance(other.logits[row], exact.logits[row]));
          hidden = std::max(hidden, distance(other.hidden[row], exact.hidden[row]));
        }
        const auto size = [&](const Row& x) { return x.size(); };
        const double off =
            distance(to_row(out.logits, row, size(exact.logits[row])), exact.logits[row]);
        const double off_hidden =
            distance(to_row(out.hidden, row, size(exact.hidden[row])), exact.hidden[row]);
        // Four samples of the disturbance; a factor for the ones not drawn.
        CHECK(off <= 4 * logits, label(geometry, dtype, *k) + std::to_string(row) + ": " +
                                     std::to_string(off) + " of " + std::to_string(logits));
        CHECK(off_hidden <= 4 * hidden, label(geometry, dtype, *k) + std::to_string(row));
        // Or it would show nothing. Bytes amplify: one that rounds the other way moves many more.
        const Row nothing(exact.logits[row].size(), 0.0);
        CHECK(4 * logits < (dtype[0] == 'Q' ? 1.0 : 0.01) * distance(exact.logits[row], nothing),
              label(geometry, dtype, *k) + std::to_string(logits));
      }
    }
  });
}

TEST(rows_do_not_depend_on_how_many_share_the_pass) {
  ThreadPool one(1), two(2), three(3);
  const Tokens tokens = random_tokens(33, 2);
  for_models([&](const TinyTarget& model, Geometry geometry, const char* dtype) {
    Outputs expected;
    std::vector<float> kept;
    const auto check = [&](Target& target, int step, const std::string& what) {
      auto cache = target.new_cache(kMaxLength, 16);
      const Outputs out = feed_in_steps(target, *cache, tokens, step);
      if (expected.rows == 0) {
        expected = out;
        kept = contents(target, *cache);
      }
      CHECK(out.equals(expected), what + " step " + std::to_string(step));
      CHECK(same_bits(contents(target, *cache), kept), what + " step " + std::to_string(step));
    };
    for (const Kernels* k : all_kernels()) {
      auto target = model.load(one, *k);
      for (int step = 1; step <= 16; ++step) {
        // Every number of rows on the best instruction set, and some on the others.
        if (k == all_kernels().back() || step < 4 || step % 5 == 0 || step == 16) {
          check(*target, step, label(geometry, dtype, *k));
        }
      }
    }
    for (ThreadPool* pool : {&two, &three}) {
      auto target = model.load(*pool, kernels());
      for (const int step : {3, 16, 33}) {
        check(*target, step, label(geometry, dtype, kernels()) + "with more threads");
      }
    }
  });
}

TEST(whole_and_chunked_prefill_agree_across_chunks_and_ring_ends) {
  ThreadPool pool(2);
  const Tokens tokens = random_tokens(470, 3);  // more than two rings of 40 + 128 slots
  for_few_models([&](const TinyTarget& model, Geometry geometry, const char* dtype) {
    const std::string what = label(geometry, dtype, kernels());
    auto target = model.load(pool, kernels());
    auto whole = target->new_cache(kMaxLength, 1);
    const Outputs all = feed(*target, *whole, tokens, 0, 470, 470);
    const auto kept = contents(*target, *whole);
    for (const int num_outputs : {0, 1, 3, 100}) {  // rows without outputs skip layers
      auto cache = target->new_cache(kMaxLength, 1);
      const Outputs out = feed(*target, *cache, tokens, 0, 470, num_outputs);
      CHECK(num_outputs == 0 || out.equals(all.last(num_outputs)), what);
      CHECK(same_bits(contents(*target, *cache), kept), what);
    }
    for (const int step : {128, 129, 37}) {
      auto cache = target->new_cache(kMaxLength, 1);
      CHECK(feed_in_steps(*target, *cache, tokens, step).equals(all), what + std::to_string(step));
    }
    auto mixed = target->new_cache(kMaxLength, 1);
    feed(*target, *mixed, tokens, 0, 301, 0);
    feed(*target, *mixed, tokens, 301, 100, 1);
    CHECK(feed(*target, *mixed, tokens, 401, 69, 2).equals(all.last(2)), what);
    CHECK(same_bits(contents(*target, *mixed), kept), what);
  });
}

TEST(sequences_do_not_notice_each_other) {
  ThreadPool pool(2);
  struct Share {
    int history, rows, num_outputs;
  };
  constexpr Share kShares[] = {{0, 150, 1}, {9, 1, 1}, {60, 5, 5}, {0, 3, 0}, {200, 90, 40}};
  for_few_models([&](const TinyTarget& model, Geometry geometry, const char* dtype) {
    auto target = model.load(pool, kernels());
    std::vector<Tokens> tokens;
    std::vector<std::unique_ptr<KVCache>> caches;
    std::vector<SequenceRows> rows;
    Outputs expected;
    std::vector<std::vector<float>> kept;
    for (const Share share : kShares) {
      tokens.push_back(random_tokens(share.history + share.rows, 10 + unsigned(tokens.size())));
      auto alone = target->new_cache(kMaxLength, 1);
      caches.push_back(target->new_cache(kMaxLength, 1));
      for (KVCache* cache : {alone.get(), caches.back().get()}) {
        if (share.history) feed(*target, *cache, tokens.back(), 0, share.history, 0);
      }
      expected.append(
          feed(*target, *alone, tokens.back(), share.history, share.rows, share.num_outputs));
      kept.push_back(contents(*target, *alone));
    }
    for (std::size_t i = 0; i < caches.size(); ++i) {
      const Share share = kShares[i];
      rows.push_back(
          {caches[i].get(), tokens[i].data() + share.history, share.rows, share.num_outputs, 0});
    }
    Outputs out(model.shape, expected.rows, 0);
    target->forward(rows, {out.logits.data(), out.hidden.data(), nullptr, nullptr, 0});
    CHECK(out.equals(expected), label(geometry, dtype, kernels()));
    for (std::size_t i = 0; i < caches.size(); ++i) {
      CHECK(same_bits(contents(*target, *caches[i]), kept[i]), label(geometry, dtype, kernels()));
    }
  });
}

TEST(rejected_drafts_leave_no_trace) {
  ThreadPool pool(2);
  const Tokens tokens = random_tokens(230, 4);  // past the ring's 192 slots
  for_few_models([&](const TinyTarget& model, Geometry geometry, const char* dtype) {
    auto target = model.load(pool, kernels());
    auto plain = target->new_cache(kMaxLength, 8);
    const Outputs expected = feed_in_steps(*target, *plain, tokens, 128).last(1);
    auto cache = target->new_cache(kMaxLength, 8);
    std::mt19937 bits(5);
    Outputs out;
    feed(*target, *cache, tokens, 0, 170, 0);
    for (int length = 170; length < 230;) {
      // Some right tokens, then wrong ones.
      const int right = std::min(230 - length, std::uniform_int_distribution<int>(1, 5)(bits));
      Tokens draft(tokens.begin() + length, tokens.begin() + length + right);
      const Tokens wrong = random_tokens(3, bits());
      draft.insert(draft.end(), wrong.begin(), wrong.end());
      out = feed(*target, *cache, draft, 0, static_cast<int>(draft.size()),
                 static_cast<int>(draft.size()));
      length += right;
      CHECK(cache->shortest_truncation() <= length);
      cache->truncate(length);
    }
    const Outputs last_right = [&] {
      Outputs some = out.last(4);
      const auto head = [](std::vector<float>& v) { v.resize(v.size() / 4); };
      head(some.logits);
      head(some.hidden);
      return some;
    }();
    CHECK(last_right.equals(expected), label(geometry, dtype, kernels()));
    CHECK(same_bits(contents(*target, *cache), contents(*target, *plain)),
          label(geometry, dtype, kernels()));
  });
}

TEST(candidates_are_the_best_logits_of_their_own_rows) {
  ThreadPool pool(3);
  const TinyTarget model(Geometry::per_layer, "Q8_0");
  auto target = model.load(pool, kernels());
  const Tokens tokens = random_tokens(200, 6);
  auto first = target->new_cache(kMaxLength, 1), second = target->new_cache(kMaxLength, 1);
  const SequenceRows rows[] = {{first.get(), tokens.data(), 150, 3, 2},
                               {second.get(), tokens.data() + 150, 7, 4, 5}};
  Outputs out(model.shape, 7, 5);
  target->forward(rows, {out.logits.data(), out.hidden.data(), out.candidate_ids.data(),
                         out.candidate_logits.data(), 5});
  const auto vocabulary = static_cast<std::size_t>(model.shape.vocab_size);
  for (std::size_t row = 0; row < 7; ++row) {
    const float* logits = out.logits.data() + row * vocabulary;
    std::vector<std::int32_t> order(vocabulary);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
    for (std::size_t place = 0; place < 5; ++place) {
      const std::int32_t id = out.candidate_ids[row * 5 + place];
      CHECK(id == (row < 3 && place >= 2 ? -1 : order[place]));
      if (id >= 0) CHECK(out.candidate_logits[row * 5 + place] == logits[id]);
    }
  }
}

TEST(a_pass_allocates_nothing_once_it_has_run) {
  ThreadPool pool(2);
  for_few_models([&](const TinyTarget& model, Geometry geometry, const char* dtype) {
    auto target = model.load(pool, kernels());
    auto cache = target->new_cache(kMaxLength, 1);
    const Tokens tokens = random_tokens(200, 9);
    Outputs out(model.shape, 8, 3);
    const auto pass = [&](int count) {
      const SequenceRows rows = {cache.get(), tokens.data(), count, std::min(count, 8), 3};
      target->forward({&rows, 1}, {out.logits.data(), out.hidden.data(), out.candidate_ids.data(),
                                   out.candidate_logits.data(), 3});
    };
    for (const int count : {200, 200, 8}) pass(count);
    const int before = num_allocations;
    for (const int count : {1, 5, 8, 100}) pass(count);
    CHECK(num_allocations == before, label(geometry, dtype, kernels()));
  });
}

namespace {

template <class Error, class Body>
std::string complaint(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string& text, const char* words) {
  return text.find(words) != std::string::npos;
}

}  // namespace

TEST(wrong_tensors_are_refused_by_name) {
  ThreadPool pool(2);
  const TinyTarget model(Geometry::per_layer, "BF16");
  Target target(pool, model.shape);
  using Invalid = std::invalid_argument;
  const NamedTensor& good = model.tensor("layers.1.mlp.up_proj.weight");
  CHECK(mentions(complaint<Invalid>([&] { target.finish(); }), "embed_tokens.weight and"));
  Tensor tensor = good.view();
  tensor.size -= 2;
  CHECK(mentions(complaint<Invalid>([&] { target.load(tensor); }), "up_proj.weight has"));
  tensor = good.view();
  tensor.dtype = "Q4_K";
  CHECK(mentions(complaint<Invalid>([&] { target.load(tensor); }), "Q4_K"));
  tensor.dtype = "Q8_0";
  CHECK(mentions(complaint<Invalid>([&] { target.load(tensor); }), "no multiple of 32"));
  tensor = good.view();
  tensor.name = "layers.4.self_attn.k_proj.weight";
  CHECK(mentions(complaint<Invalid>([&] { target.load(tensor); }), "is no tensor of this model"));
  NamedTensor bad = good;
  bad.bytes[bad.bytes.size() - 1] = 0x7f;  // the last number: NaN or infinity
  bad.bytes[bad.bytes.size() - 2] = 0x80;
  CHECK(mentions(complaint<NotFiniteError>([&] { target.load(bad.view()); }), "up_proj"));
  target.load(good.view());
  CHECK(mentions(complaint<Invalid>([&] { target.load(good.view()); }), "twice"));
  for (const auto& [name, any] : model.tensors) {
    if (name != good.name) target.load(any.view());
  }
  target.finish();
  std::size_t numbers = 0;
  for (const auto& [name, any] : model.tensors) {
    if (name != "embed_tokens_per_layer.weight") numbers += any.bytes.size();
  }
  // Matrices are padded to whole panels.
  CHECK(target.weight_bytes() >= numbers && target.weight_bytes() < 2 * numbers);
}

TEST(every_kind_of_bad_number_is_found) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (int t = 0; t < 5; ++t) {
    const auto type = static_cast<WeightType>(t);
    auto row = quantize_row(type, random_values(64, 1).data(), 64);
    CHECK(is_finite_row(type, row.data(), 64));
    if (is_quantized(type)) {
      const std::uint16_t half = to_f16(-infinity);
      std::memcpy(row.data() + row.size() / 2, &half, sizeof half);  // the second block's scale
    } else {
      std::vector<float> values = random_values(64, 1);
      values[63] = infinity;
      row = quantize_row(type, values.data(), 64);
    }
    CHECK(!is_finite_row(type, row.data(), 64), std::to_string(t));
  }
}

TEST(a_bad_row_of_the_per_layer_table_stops_the_pass_that_reads_it) {
  ThreadPool pool(2);
  TinyTarget model(Geometry::per_layer, "F32");
  NamedTensor& table = model.tensor("embed_tokens_per_layer.weight");
  const float infinity = std::numeric_limits<float>::infinity();
  std::memcpy(table.bytes.data() + (77 * table.columns + 3) * 4, &infinity, 4);
  auto target = model.load(pool, kernels());
  auto cache = target->new_cache(kMaxLength, 1);
  Tokens tokens = random_tokens(20, 7);
  std::replace(tokens.begin(), tokens.end(), 77, 78);
  const Outputs before = feed(*target, *cache, tokens, 0, 10, 1);
  Tokens bad = tokens;
  bad[14] = 77;
  CHECK(mentions(complaint<NotFiniteError>([&] { feed(*target, *cache, bad, 10, 10, 1); }),
                 "embed_tokens_per_layer"));
  CHECK(cache->length() == 10);
  const Outputs after = feed(*target, *cache, tokens, 10, 10, 1);
  auto fresh = target->new_cache(kMaxLength, 1);
  CHECK(after.equals(feed(*target, *fresh, tokens, 0, 20, 1)));
}

TEST(bad_passes_are_refused_and_change_nothing) {
  ThreadPool pool(2);
  const TinyTarget model(Geometry::dense, "F32"), other(Geometry::experts, "F32");
  auto target = model.load(pool, kernels());
  auto cache = target->new_cache(40, 1), roomy = target->new_cache(100, 1);
  auto foreign = other.load(pool, kernels())->new_cache(40, 1);
  const Tokens tokens = random_tokens(60, 8);
  const auto refusal = [&](std::vector<SequenceRows> rows, int num_candidates = 0) {
    return complaint<std::invalid_argument>([&] {
      Outputs out(model.shape, 60, 0);
      target->forward(rows,
                      {out.logits.data(), out.hidden.data(), nullptr, nullptr, num_candidates});
    });
  };
  CHECK(mentions(
      refusal({{roomy.get(), tokens.data(), 9, 1, 0}, {cache.get(), tokens.data(), 41, 1, 0}}),
      "41 positions do not fit"));
  CHECK(roomy->length() == 0 && cache->length() == 0);
  for (const std::int32_t id : {-1, 203, std::numeric_limits<std::int32_t>::max()}) {
    CHECK(mentions(refusal({{cache.get(), &id, 1, 1, 0}}), "is not in the vocabulary"));
  }
  CHECK(mentions(refusal({{cache.get(), tokens.data(), 0, 0, 0}}), "without tokens"));
  CHECK(mentions(refusal({{cache.get(), tokens.data(), 3, 4, 0}}), "num_outputs"));
  CHECK(mentions(refusal({{cache.get(), tokens.data(), 3, 1, 2}}, 1), "num_candidates"));
  CHECK(mentions(refusal({{cache.get(), tokens.data(), 3, 1, 0}}, 100000), "num_candidates"));
  CHECK(mentions(refusal({{foreign.get(), tokens.data(), 3, 1, 0}}), "another model"));
  CHECK(mentions(
      refusal({{cache.get(), tokens.data(), 3, 1, 0}, {cache.get(), tokens.data(), 3, 1, 0}}),
      "share a KV cache"));
  CHECK(cache->length() == 0);
}

TEST(shapes_that_do_not_fit_together_are_refused) {
  ThreadPool pool(1);
  const auto refused = [&](auto&& change) {
    DecoderShape shape = tiny_shape(Geometry::per_layer, true);
    change(shape);
    return !complaint<std::invalid_argument>([&] { Target(pool, shape); }).empty();
  };
  CHECK(!refused([](DecoderShape&) {}));
  CHECK(refused([](DecoderShape& s) { s.hidden_size = 0; }));
  CHECK(refused([](DecoderShape& s) { s.layers.clear(); }));
  CHECK(refused([](DecoderShape& s) { s.layers[4].kv_layer = 2; }));
  CHECK(refused([](DecoderShape& s) { s.layers[4].kv_layer = 99; }));
  CHECK(refused([](DecoderShape& s) { s.layers[4].kv_layer = -1; }));
  CHECK(refused([](DecoderShape& s) { s.layers[0].head_dim = 33; }));
  CHECK(refused([](DecoderShape& s) { s.layers[1].num_kv_heads = 3; }));
  CHECK(refused([](DecoderShape& s) { s.first_shared_layer = 4; }));
  CHECK(refused([](DecoderShape& s) { s.sliding_frequencies.pop_back(); }));
  CHECK(refused([](DecoderShape& s) { s.per_layer_vocab_size = 0; }));
  CHECK(refused([](DecoderShape& s) { s.num_experts = 2; }));
}

TEST(large_memory_is_zero_and_aligned_to_huge_pages) {
  for (const std::size_t size : {(std::size_t{2} << 20) + 1, std::size_t{5} << 20}) {
    const AlignedBytes bytes(size);
    CHECK(bytes.size() == size && reinterpret_cast<std::uintptr_t>(bytes.data()) % 64 == 0);
    CHECK(bytes.data()[0] == 0 && bytes.data()[size - 1] == 0);
    bytes.data()[size - 1] = 1;
    AlignedBytes moved;
    {
      AlignedBytes from(size);
      from.data()[7] = 3;
      moved = std::move(from);
    }
    CHECK(moved.data()[7] == 3);
  }
}
