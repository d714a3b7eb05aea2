// Keys and values of one sequence: rings for sliding layers, growing tables for global ones.
//
// A position p lives in slot p (global) or p mod the ring's size (sliding). Slots come in blocks of
// 64. A block of one KV head holds, as IEEE halves:
//   keys    [4][H][16]       16 positions side by side: a panel of panels.h per 16 keys
//   values  [H / 16][64][16] 16 columns side by side: a panel per 16 columns, H rounded up
// Halves are rounded to nearest, ties to even, and always finite: what lies beyond the largest half
// becomes that, and NaN the lowest. So whatever a slot holds, weight zero takes exactly nothing
// from it.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "paceline/shapes.h"
#include "paceline/weights.h"

namespace paceline {

struct Kernels;

inline constexpr int kBlockPositions = 64;
inline constexpr int kMaxHeadDim = 512;

// Positions were asked for that a cache does not hold, or has no room for.
struct CacheError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// K and V of one layer, zero where never written.
class LayerStore {
 public:
  // `ring_slots`: the least number of slots of a sliding layer's ring; 0 for a table that grows.
  // Throws std::invalid_argument for a head size outside 1 to kMaxHeadDim.
  LayerStore(int num_kv_heads, int head_dim, std::int64_t ring_slots, std::int64_t max_length);

  int num_kv_heads() const { return num_kv_heads_; }
  int head_dim() const { return head_dim_; }
  bool is_ring() const { return is_ring_; }
  std::int64_t num_slots() const { return num_blocks_ * kBlockPositions; }
  std::size_t kv_bytes() const { return bytes_.size(); }

  // Make room for `length` positions; doubles, so that copying stays linear in total. Not during a
  // pass.
  void reserve(std::int64_t length);

  // Stores K and V of one KV head, [head_dim] each, already normed and rotated. Several threads may
  // write at once, each another (position, head); those that share 16 neighbouring positions of a
  // head had better be one thread. Call KVCache::reserve before the pass.
  void write(const Kernels& kernels, std::int64_t position, int kv_head, const float* key,
             const float* value) const;

  // Positions first to last, inclusive, as numbers: [G][last - first + 1][H] each.
  struct Numbers {
    std::vector<float> keys, values;
  };
  Numbers read(std::int64_t first, std::int64_t last) const;

  // The block of slots that holds a position, of one KV head.
  const std::uint16_t* keys(std::int64_t position, int kv_head) const {
    return halves(position, kv_head);
  }
  const std::uint16_t* values(std::int64_t position, int kv_head) const {
    return halves(position, kv_head) + key_halves_;
  }

 private:
  std::uint16_t* halves(std::int64_t position, int kv_head) const;
  std::size_t bytes_of(std::int64_t num_blocks) const;

  int num_kv_heads_, head_dim_;
  bool is_ring_;
  std::int64_t num_blocks_, max_blocks_;
  std::ptrdiff_t key_halves_, head_halves_;  // of one block and head: keys; keys and values
  AlignedBytes bytes_;                       // [blocks][G](keys, values)
};

// The KV cache of one sequence.
class KVCache {
 public:
  // `slack`: positions that sliding rings hold beyond the window. A pass of up to `slack` rows
  // leaves the whole window before it in place, so any of its rows can be taken back.
  KVCache(const DecoderShape& shape, std::int64_t max_length, std::int64_t slack);

  std::int64_t length() const { return length_; }
  std::int64_t max_length() const { return max_length_; }
  // Smallest length > 0 that `truncate` accepts: the next row must find the window - 1 positions
  // before it in the rings.
  std::int64_t shortest_truncation() const;
  std::size_t kv_bytes() const;  // allocated now

  // Forget the positions from `length` on; 0 empties. Throws CacheError.
  void truncate(std::int64_t length);

  // Make room for a pass of `num_rows` more positions, and count them as written: a pass that is
  // interrupted may have overwritten what their ring slots held. Throws CacheError where the
  // sequence would outgrow max_length. Call it before the pool run.
  void reserve(std::int64_t num_rows);
  // Count rows that every KV layer has stored.
  void advance(std::int64_t num_rows) { length_ += num_rows; }

  int num_layers() const { return static_cast<int>(stores_.size()); }
  // The store that a layer reads: its own or, by its shape's kv_layer, its donor's.
  const LayerStore& store(int layer) const { return *stores_[static_cast<std::size_t>(layer)]; }

 private:
  struct Owned {
    LayerStore store;
    std::int64_t window;  // 0: all
  };
  std::vector<std::unique_ptr<Owned>> owned_;
  std::vector<const LayerStore*> stores_;  // by layer
  std::int64_t max_length_, length_ = 0;
  std::int64_t written_ = 0;  // highest position ever written + 1: what the rings overwrote
};

}  // namespace paceline
