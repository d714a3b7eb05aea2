#include "paceline/kv_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "paceline/kernels.h"

namespace paceline {
namespace {

constexpr int kPanelColumns = 16;  // of values, and positions of keys

std::int64_t blocks_for(std::int64_t positions) {
  return (positions + kBlockPositions - 1) / kBlockPositions;
}

int rounded_up(int columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

}  // namespace

LayerStore::LayerStore(int num_kv_heads, int head_dim, std::int64_t ring_slots,
                       std::int64_t max_length)
    : num_kv_heads_(num_kv_heads),
      head_dim_(head_dim),
      is_ring_(ring_slots > 0),
      max_blocks_(std::max<std::int64_t>(blocks_for(max_length), 1)),
      key_halves_(std::ptrdiff_t{head_dim} * kBlockPositions),
      head_halves_(key_halves_ + std::ptrdiff_t{rounded_up(head_dim)} * kBlockPositions) {
  if (head_dim < 1 || head_dim > kMaxHeadDim) {
    throw std::invalid_argument("head size " + std::to_string(head_dim) +
                                " is not supported: it must be 1 to " +
                                std::to_string(kMaxHeadDim) + ".");
  }
  num_blocks_ = is_ring_ ? std::min(blocks_for(ring_slots), max_blocks_) : 1;
  bytes_ = AlignedBytes(bytes_of(num_blocks_));
}

std::size_t LayerStore::bytes_of(std::int64_t num_blocks) const {
  return static_cast<std::size_t>(num_blocks * num_kv_heads_ * head_halves_) *
         sizeof(std::uint16_t);
}

void LayerStore::reserve(std::int64_t length) {
  if (is_ring_ || length <= num_slots()) return;
  const std::int64_t wanted = std::max(2 * num_blocks_, blocks_for(length));
  const std::int64_t num_blocks = std::min(wanted, max_blocks_);
  AlignedBytes grown(bytes_of(num_blocks));
  std::memcpy(grown.data(), bytes_.data(), bytes_.size());
  bytes_ = std::move(grown);
  num_blocks_ = num_blocks;
}

std::uint16_t* LayerStore::halves(std::int64_t position, int kv_head) const {
  assert(position >= 0 && (is_ring_ || position < num_slots()));
  const std::int64_t block = position / kBlockPositions % num_blocks_;
  return bytes_.as<std::uint16_t>() + (block * num_kv_heads_ + kv_head) * head_halves_;
}

void LayerStore::write(const Kernels& kernels, std::int64_t position, int kv_head, const float* key,
                       const float* value) const {
  std::uint16_t* block = halves(position, kv_head);
  kernels.attention.store(key, value, head_dim_, static_cast<int>(position % kBlockPositions),
                          block, block + key_halves_);
}

LayerStore::Numbers LayerStore::read(std::int64_t first, std::int64_t last) const {
  Numbers numbers;
  for (int head = 0; head < num_kv_heads_; ++head) {
    for (std::int64_t position = first; position <= last; ++position) {
      const std::int64_t slot = position % kBlockPositions;
      const std::uint16_t* key = keys(position, head) +
                                 slot / kPanelColumns * kPanelColumns * head_dim_ +
                                 slot % kPanelColumns;
      const std::uint16_t* value = values(position, head) + slot * kPanelColumns;
      for (int i = 0; i < head_dim_; ++i) {
        const int column = i % kPanelColumns;
        numbers.keys.push_back(from_f16(key[i * kPanelColumns]));
        numbers.values.push_back(from_f16(value[(i - column) * kBlockPositions + column]));
      }
    }
  }
  return numbers;
}

KVCache::KVCache(const DecoderShape& shape, std::int64_t max_length, std::int64_t slack)
    : max_length_(max_length) {
  for (std::size_t i = 0; i < shape.layers.size(); ++i) {
    const LayerShape& layer = shape.layers[i];
    if (layer.owns_kv) {
      const std::int64_t ring_slots = layer.window ? layer.window + slack : 0;
      owned_.push_back(std::unique_ptr<Owned>(new Owned{
          LayerStore(layer.num_kv_heads, layer.head_dim, ring_slots, max_length), layer.window}));
      stores_.push_back(&owned_.back()->store);
    } else {
      stores_.push_back(stores_.at(static_cast<std::size_t>(layer.kv_layer)));
    }
  }
}

std::int64_t KVCache::shortest_truncation() const {
  std::int64_t shortest = 0;
  for (const auto& owned : owned_) {
    const std::int64_t forgotten = written_ - owned->store.num_slots();
    if (owned->store.is_ring() && forgotten > 0) {
      shortest = std::max(shortest, forgotten + owned->window - 1);
    }
  }
  return shortest;
}

std::size_t KVCache::kv_bytes() const {
  std::size_t total = 0;
  for (const auto& owned : owned_) total += owned->store.kv_bytes();
  return total;
}

void KVCache::truncate(std::int64_t length) {
  if (length != 0 && (length < shortest_truncation() || length > length_)) {
    throw CacheError("cannot truncate the KV cache to " + std::to_string(length) + ": it holds " +
                     std::to_string(length_) + " positions and its sliding layers reach back to " +
                     std::to_string(shortest_truncation()) +
                     ". Empty it with truncate(0) and feed the tokens again.");
  }
  length_ = length;
  if (length == 0) written_ = 0;
}

void KVCache::reserve(std::int64_t num_rows) {
  const std::int64_t length = length_ + num_rows;
  if (length > max_length_) {
    throw CacheError(std::to_string(length) + " positions do not fit: this KV cache was made for " +
                     std::to_string(max_length_) + ". Shorten the prompt or ask for fewer tokens.");
  }
  written_ = std::max(written_, length);
  for (const auto& owned : owned_) owned->store.reserve(length);
}

}  // namespace paceline
