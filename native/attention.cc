// Shares attention out among the workers. However it is shared, each section of each query is
// computed alone and merged in order, so the bits are the same.
#include "paceline/attention.h"

#include <algorithm>

#include "paceline/kernels.h"
#include "paceline/thread_pool.h"

namespace paceline {
namespace {

// Tiles that pass over a section while its keys and values are in the cache.
constexpr int kGroupTiles = 8;
// With fewer tiles per worker, sections are shared out too.
constexpr int kTilesPerWorker = 4;
// States of a tile over one section that may wait for their merging, per worker.
constexpr int kSlotsPerWorker = 8;

std::size_t slot_floats(int head_dim) {
  const std::size_t columns = (static_cast<std::size_t>(head_dim) + 15) / 16 * 16;
  return kTileQueries * (columns + sizeof(AttentionState) / sizeof(float));
}

// Queries of one KV head: (row, head) pairs, heads of a row next to each other.
class Tile {
 public:
  Tile() = default;
  // The tile of that number among all tiles of a call.
  Tile(const AttentionCall& call, int number) : call_(&call) {
    const int heads = call.num_heads / call.num_kv_heads;
    for (int s = 0; s < call.num_spans; ++s) {
      span_ = &call.spans[s];
      const int num_queries = span_->num_rows * heads;
      const int tiles = (num_queries + kTileQueries - 1) / kTileQueries;
      if (number < tiles * call.num_kv_heads) {
        kv_head_ = number / tiles;
        first_query_ = number % tiles * kTileQueries;
        num_queries_ = std::min(kTileQueries, num_queries - first_query_);
        break;
      }
      number -= tiles * call.num_kv_heads;
    }
    first_section_ = section_of(span_->first_visible[row(0)]);
    last_section_ = section_of(span_->last_visible[row(0)]);
    for (int q = 1; q < num_queries_; ++q) {
      first_section_ = std::min(first_section_, section_of(span_->first_visible[row(q)]));
      last_section_ = std::max(last_section_, section_of(span_->last_visible[row(q)]));
    }
  }

  int num_queries() const { return num_queries_; }
  std::int64_t first_section() const { return first_section_; }
  std::int64_t last_section() const { return last_section_; }
  bool shares_keys_with(const Tile& other) const {
    return span_ == other.span_ && kv_head_ == other.kv_head_;
  }

  float* out(int q) const { return call_->out + place(q); }

  bool sees(int q, std::int64_t section) const {
    return section_of(span_->first_visible[row(q)]) <= section &&
           section <= section_of(span_->last_visible[row(q)]);
  }

  SectionTile over(std::int64_t section) const {
    SectionTile tile;
    tile.num_queries = num_queries_;
    tile.head_dim = call_->head_dim;
    const std::int64_t start = section * kSectionPositions;
    int first = kSectionPositions, end = 0;
    for (int q = 0; q < num_queries_; ++q) {
      tile.queries[q] = call_->query + place(q);
      tile.first[q] = within(span_->first_visible[row(q)] - start);
      tile.end[q] = within(span_->last_visible[row(q)] + 1 - start);
      first = std::min(first, tile.first[q]);
      end = std::max(end, tile.end[q]);
    }
    for (int block = first / kBlockPositions; block * kBlockPositions < end; ++block) {
      tile.keys[block] = span_->store->keys(start + block * kBlockPositions, kv_head_);
      tile.values[block] = span_->store->values(start + block * kBlockPositions, kv_head_);
    }
    return tile;
  }

 private:
  static std::int64_t section_of(std::int64_t position) { return position / kSectionPositions; }
  static int within(std::int64_t position) {
    return static_cast<int>(std::clamp<std::int64_t>(position, 0, kSectionPositions));
  }
  int heads() const { return call_->num_heads / call_->num_kv_heads; }
  int row(int q) const { return (first_query_ + q) / heads(); }
  std::ptrdiff_t place(int q) const {
    const int head = kv_head_ * heads() + (first_query_ + q) % heads();
    const std::ptrdiff_t number =
        static_cast<std::ptrdiff_t>(span_->first_row + row(q)) * call_->num_heads + head;
    return number * call_->head_dim;
  }

  const AttentionCall* call_ = nullptr;
  const AttentionSpan* span_ = nullptr;
  int kv_head_ = 0, first_query_ = 0, num_queries_ = 0;
  std::int64_t first_section_ = 0, last_section_ = 0;
};

int count_tiles(const AttentionCall& call) {
  const int heads = call.num_heads / call.num_kv_heads;
  int tiles = 0;
  for (int s = 0; s < call.num_spans; ++s) {
    tiles += (call.spans[s].num_rows * heads + kTileQueries - 1) / kTileQueries;
  }
  return tiles * call.num_kv_heads;
}

// Room for the state of one tile over one section.
struct Slot {
  Slot(const AttentionCall& call, int number)
      : states(reinterpret_cast<AttentionState*>(call.scratch + static_cast<std::size_t>(number) *
                                                                    slot_floats(call.head_dim))) {
    float* next = reinterpret_cast<float*>(states + kTileQueries);
    for (float*& each : values) {
      each = next;
      next += (call.head_dim + 15) / 16 * 16;
    }
  }
  AttentionState* states;
  float* values[kTileQueries];
};

// ---- Whole tiles ----

// The next section of a tile, merged into what the tile knows; its values are kept in `out`.
void add_section(const Kernels& kernels, const AttentionCall& call, const Tile& tile,
                 std::int64_t section, const Slot& slot, AttentionState* states) {
  float* values[kTileQueries];
  for (int q = 0; q < tile.num_queries(); ++q) {
    values[q] = states[q].sum == 0.0f ? tile.out(q) : slot.values[q];
  }
  kernels.attention.attend_section(tile.over(section), slot.states, values);
  for (int q = 0; q < tile.num_queries(); ++q) {
    if (!tile.sees(q, section)) continue;
    if (values[q] == tile.out(q)) {
      states[q] = slot.states[q];
    } else {
      kernels.attention.merge(states[q], tile.out(q), slot.states[q], values[q], call.head_dim);
    }
  }
}

// A few tiles that share their keys, section by section.
void attend_group(const Kernels& kernels, const AttentionCall& call, const Tile* tiles, int count,
                  const Slot& slot) {
  AttentionState states[kGroupTiles][kTileQueries];
  std::int64_t first = tiles[0].first_section(), last = tiles[0].last_section();
  for (int t = 1; t < count; ++t) {
    first = std::min(first, tiles[t].first_section());
    last = std::max(last, tiles[t].last_section());
  }
  for (std::int64_t section = first; section <= last; ++section) {
    for (int t = 0; t < count; ++t) {
      if (tiles[t].first_section() > section || section > tiles[t].last_section()) continue;
      add_section(kernels, call, tiles[t], section, slot, states[t]);
    }
  }
  for (int t = 0; t < count; ++t) {
    for (int q = 0; q < tiles[t].num_queries(); ++q) {
      kernels.attention.finish(states[t][q], call.head_dim, tiles[t].out(q));
    }
  }
}

void attend_tiles(Worker& worker, const Kernels& kernels, const AttentionCall& call,
                  int num_tiles) {
  const Slot slot(call, worker.index());
  worker.for_each(num_tiles, 1, [&](int first, int end) {
    Tile group[kGroupTiles];
    int count = 0;
    for (int number = first; number < end; ++number) {
      const Tile tile(call, number);
      if (count == kGroupTiles || (count && !tile.shares_keys_with(group[0]))) {
        attend_group(kernels, call, group, count, slot);
        count = 0;
      }
      group[count++] = tile;
    }
    attend_group(kernels, call, group, count, slot);
  });
}

// ---- Sections of few tiles ----

// Merges sections `from` to `to` - 1 of one query of a tile, counted from the tile's first; those
// of the tile lie in slots t, t + num_tiles, ...
void merge_sections(const Kernels& kernels, const AttentionCall& call, int t, int num_tiles, int q,
                    std::int64_t from, std::int64_t to, AttentionState& state) {
  const Tile tile(call, t);
  if (q >= tile.num_queries()) return;
  if (from == 0) state = {};
  for (std::int64_t s = from; s < to; ++s) {
    if (!tile.sees(q, tile.first_section() + s)) continue;
    const Slot slot(call, static_cast<int>(s - from) * num_tiles + t);
    if (state.sum == 0.0f) {
      state = slot.states[q];
      std::copy_n(slot.values[q], call.head_dim, tile.out(q));
    } else {
      kernels.attention.merge(state, tile.out(q), slot.states[q], slot.values[q], call.head_dim);
    }
  }
  const std::int64_t num_sections = tile.last_section() - tile.first_section() + 1;
  if (from < num_sections && num_sections <= to) {
    kernels.attention.finish(state, call.head_dim, tile.out(q));
  }
}

void attend_sections(Worker& worker, const Kernels& kernels, const AttentionCall& call,
                     int num_tiles) {
  const int num_slots = kSlotsPerWorker * worker.num_workers();
  auto* states = reinterpret_cast<AttentionState*>(
      call.scratch + static_cast<std::size_t>(num_slots) * slot_floats(call.head_dim));
  std::int64_t most = 0;
  for (int t = 0; t < num_tiles; ++t) {
    const Tile tile(call, t);
    most = std::max(most, tile.last_section() - tile.first_section() + 1);
  }
  const std::int64_t at_once = std::min<std::int64_t>(num_slots / num_tiles, most);
  for (std::int64_t from = 0; from < most; from += at_once) {
    const std::int64_t to = std::min(from + at_once, most);
    worker.for_each(static_cast<int>(to - from) * num_tiles, 1, [&](int first, int end) {
      for (int number = first; number < end; ++number) {
        const Tile tile(call, number % num_tiles);
        const std::int64_t section = tile.first_section() + from + number / num_tiles;
        if (section > tile.last_section()) continue;
        const Slot slot(call, number);
        kernels.attention.attend_section(tile.over(section), slot.states, slot.values);
      }
    });
    worker.for_each(num_tiles * kTileQueries, 1, [&](int first, int end) {
      for (int number = first; number < end; ++number) {
        const int t = number / kTileQueries, q = number % kTileQueries;
        merge_sections(kernels, call, t, num_tiles, q, from, to, states[number]);
      }
    });
  }
}

}  // namespace

std::size_t attention_scratch(int num_workers, int head_dim) {
  const std::size_t workers = static_cast<std::size_t>(num_workers);
  const std::size_t states = workers * kTilesPerWorker * kTileQueries;
  return workers * kSlotsPerWorker * slot_floats(head_dim) +
         states * sizeof(AttentionState) / sizeof(float);
}

void attend(Worker& worker, const Kernels& kernels, const AttentionCall& call) {
  const int num_tiles = count_tiles(call);
  const int workers = worker.num_workers();
  if (workers == 1 || num_tiles >= kTilesPerWorker * workers) {
    attend_tiles(worker, kernels, call, num_tiles);
  } else {
    attend_sections(worker, kernels, call, num_tiles);
  }
}

}  // namespace paceline
