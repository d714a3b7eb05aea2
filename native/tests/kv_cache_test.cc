// The KV cache: what is read is what was written, rounded; growth, rings, truncation.
#include "paceline/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "paceline/shapes.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr float kHighestHalf = 65504.0f;

float as_stored(float x) {
  if (std::isnan(x)) return -kHighestHalf;
  return from_f16(to_f16(std::clamp(x, -kHighestHalf, kHighestHalf)));
}

LayerShape layer(int head_dim, int num_kv_heads, int window) {
  LayerShape shape;
  shape.head_dim = head_dim;
  shape.num_kv_heads = num_kv_heads;
  shape.sliding = window > 0;
  shape.window = window;
  return shape;
}

// Values that a (position, head) of a test gets, and their negatives as keys.
std::vector<float> value_of(std::int64_t position, int head, int head_dim) {
  return random_values(static_cast<std::size_t>(head_dim),
                       static_cast<unsigned>(position * 8 + head));
}

void write(const LayerStore& store, std::int64_t first, std::int64_t last) {
  for (std::int64_t position = first; position <= last; ++position) {
    for (int head = 0; head < store.num_kv_heads(); ++head) {
      const auto value = value_of(position, head, store.head_dim());
      auto key = value;
      for (float& x : key) x = -x;
      store.write(kernels(), position, head, key.data(), value.data());
    }
  }
}

void check_holds(const LayerStore& store, std::int64_t first, std::int64_t last) {
  const auto numbers = store.read(first, last);
  std::size_t i = 0;
  for (int head = 0; head < store.num_kv_heads(); ++head) {
    for (std::int64_t position = first; position <= last; ++position) {
      for (const float x : value_of(position, head, store.head_dim())) {
        CHECK(numbers.values.at(i) == as_stored(x) && numbers.keys.at(i) == as_stored(-x),
              std::to_string(position));
        ++i;
      }
    }
  }
  CHECK(i == numbers.keys.size() && i == numbers.values.size());
}

}  // namespace

TEST(halves_are_rounded_alike_everywhere_and_finite) {
  const float infinity = std::numeric_limits<float>::infinity();
  auto values = random_values(512, 1, 100.0f);
  const std::vector<float> corners = {
      0.0f,    -0.0f,     1e-9f,    -1e-7f,     6.1e-5f,  1.00048828125f, 1.00146484375f,
      2049.0f, 65519.99f, 65520.0f, -1e9f,      infinity, -infinity,      std::nanf(""),
      1e-40f,  5.96e-8f,  2.98e-8f, 2.9803e-8f, 3.05e-5f, -65504.0f};
  std::copy(corners.begin(), corners.end(), values.begin());
  for (const int head_dim : {1, 8, 16, 20, 256, 512}) {
    for (const Kernels* k : all_kernels()) {
      const LayerStore store(1, head_dim, 0, 64);
      store.write(*k, 37, 0, values.data(), values.data() + 512 - head_dim);
      const auto numbers = store.read(37, 37);
      for (int i = 0; i < head_dim; ++i) {
        const auto at = static_cast<std::size_t>(i);
        CHECK(numbers.keys[at] == as_stored(values[at]), k->isa);
        CHECK(std::signbit(numbers.keys[at]) == std::signbit(as_stored(values[at])), k->isa);
        CHECK(
            numbers.values[at] == as_stored(values[512 - static_cast<std::size_t>(head_dim) + at]),
            k->isa);
      }
      for (const float x : store.read(0, 36).keys) CHECK(x == 0.0f);
      for (const float x : store.read(38, 63).values) CHECK(x == 0.0f);
    }
  }
}

TEST(tables_grow_by_doubling_and_keep_what_they_hold) {
  LayerStore store(2, 20, 0, 500);
  CHECK(store.num_slots() == 64 && !store.is_ring());
  write(store, 0, 63);
  store.reserve(64);
  CHECK(store.num_slots() == 64);
  store.reserve(65);
  CHECK(store.num_slots() == 128);
  check_holds(store, 0, 63);
  for (const float x : store.read(64, 127).keys) CHECK(x == 0.0f);
  write(store, 64, 127);
  store.reserve(300);
  CHECK(store.num_slots() == 320);
  store.reserve(330);
  CHECK(store.num_slots() == 512);  // 500 needs no more
  check_holds(store, 0, 127);
  // 20 columns of keys, 32 of values, two bytes each, two heads
  CHECK(store.kv_bytes() == 512 * (20 + 32) * 2 * 2);
}

TEST(rings_hold_the_newest_positions) {
  const LayerStore store(2, 16, 100, 10000);
  CHECK(store.num_slots() == 128 && store.is_ring());
  write(store, 0, 1000);
  check_holds(store, 1001 - 128, 1000);
}

TEST(rings_are_no_longer_than_the_sequence) {
  CHECK(LayerStore(1, 16, 640, 70).num_slots() == 128);
  CHECK(LayerStore(1, 16, 640, 10000).num_slots() == 640);
}

TEST(head_sizes_that_no_kernel_has_are_refused) {
  CHECK(refusal([] { LayerStore(1, 513, 0, 64); }).find("513") != std::string::npos);
  CHECK(!refusal([] { LayerStore(1, 0, 0, 64); }).empty());
}

TEST(layers_read_their_own_store_or_their_donors) {
  DecoderShape shape;
  shape.layers = {layer(16, 1, 100), layer(32, 1, 0), layer(16, 1, 100), layer(32, 1, 0)};
  shape.layers[2].owns_kv = shape.layers[3].owns_kv = false;
  shape.layers[2].kv_layer = 0;
  shape.layers[3].kv_layer = 1;
  KVCache cache(shape, 1000, 28);
  CHECK(&cache.store(2) == &cache.store(0) && &cache.store(3) == &cache.store(1));
  CHECK(cache.store(0).is_ring() && !cache.store(1).is_ring());
  CHECK(cache.kv_bytes() == cache.store(0).kv_bytes() + cache.store(1).kv_bytes());
  const std::size_t before = cache.kv_bytes();
  cache.reserve(500);
  CHECK(cache.kv_bytes() > before && cache.store(0).num_slots() == 128);
}

TEST(truncation_reaches_as_far_as_the_rings_remember) {
  DecoderShape shape;
  shape.layers = {layer(16, 1, 100), layer(16, 1, 0)};
  KVCache cache(shape, 1000, 28);  // rings of 128 slots
  cache.reserve(128);
  cache.advance(128);
  CHECK(cache.shortest_truncation() == 0);
  cache.truncate(1);
  CHECK(cache.length() == 1 && cache.shortest_truncation() == 0);
  cache.reserve(199);
  CHECK(cache.shortest_truncation() == 200 - 128 + 99);  // already before the pass has ended
  cache.advance(199);
  // The row at position 171 sees 72 to 171; slots hold 72 to 199.
  cache.truncate(171);
  CHECK(cache.length() == 171);
  const std::string reason = refusal([&] { cache.truncate(170); });
  CHECK(reason.find("to 170") != std::string::npos && reason.find("171") != std::string::npos);
  CHECK(!refusal([&] { cache.truncate(172); }).empty());
  CHECK(!refusal([&] { cache.truncate(-1); }).empty());
  CHECK(cache.length() == 171);
  cache.truncate(0);
  CHECK(cache.length() == 0 && cache.shortest_truncation() == 0);
}

TEST(a_pass_of_slack_rows_can_be_taken_back) {
  DecoderShape shape;
  shape.layers = {layer(16, 1, 100)};
  for (const int slack : {1, 28, 29, 128}) {
    KVCache cache(shape, 100000, slack);
    while (cache.length() < 1000) {
      const std::int64_t before = cache.length();
      cache.reserve(slack);
      cache.advance(slack);
      CHECK(before == 0 || cache.shortest_truncation() <= before, std::to_string(slack));
    }
  }
}

TEST(a_cache_refuses_more_than_it_was_made_for) {
  DecoderShape shape;
  shape.layers = {layer(16, 1, 0)};
  KVCache cache(shape, 100, 8);
  cache.reserve(100);
  cache.advance(100);
  CHECK(refusal([&] { cache.reserve(1); }).find("101") != std::string::npos);
  CHECK(cache.length() == 100 && cache.max_length() == 100);
}
