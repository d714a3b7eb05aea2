#include "paceline/weights.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace paceline {
namespace {

constexpr std::size_t kScaleBytes = 2;

std::size_t block_bytes(WeightType type) {
  return kScaleBytes + (type == WeightType::q4_0 ? kBlockColumns / 2 : kBlockColumns);
}

std::size_t number_bytes(WeightType type) { return type == WeightType::f32 ? 4 : 2; }

std::size_t rounded_up(std::size_t size, std::size_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

// Four neighbouring bytes of a row go to place (l, r) of its half.
void pack_block(const std::uint8_t* from, std::size_t bytes, std::size_t row, std::uint8_t* half,
                std::uint8_t flip) {
  const std::uint32_t flips = flip * 0x01010101u;
  for (std::size_t l = 0; l < bytes / 4; ++l) {
    std::uint32_t four;
    std::memcpy(&four, from + 4 * l, sizeof four);
    four ^= flips;
    std::memcpy(half + (l * kHalfRows + row) * 4, &four, sizeof four);
  }
}

void pack_quantized_row(WeightType type, const std::uint8_t* from, int inner, std::size_t row,
                        std::uint8_t* panel) {
  const std::size_t stored = block_bytes(type), bytes = stored - kScaleBytes;
  const std::uint8_t flip = type == WeightType::q8_0 ? 0x80 : 0;
  std::uint8_t* half = panel + row / kHalfRows * kHalfRows * bytes;
  std::uint8_t* scale = panel + kPanelRows * bytes + row * kScaleBytes;
  for (int b = 0; b < inner / kBlockColumns; ++b) {
    pack_block(from + kScaleBytes, bytes, row % kHalfRows, half, flip);
    std::memcpy(scale, from, kScaleBytes);
    from += stored;
    half += kPanelRows * stored;
    scale += kPanelRows * stored;
  }
}

template <std::size_t kSize>
void pack_plain_row(const std::uint8_t* from, int inner, std::size_t row, std::uint8_t* panel) {
  const std::size_t columns = static_cast<std::size_t>(inner);
  std::uint8_t* half = panel + row / kHalfRows * rounded_up(columns * kHalfRows * kSize, kAlignment);
  std::uint8_t* to = half + row % kHalfRows * kSize;
  for (std::size_t k = 0; k < columns; ++k) {
    std::memcpy(to + k * kHalfRows * kSize, from + k * kSize, kSize);
  }
}

float largest(const float* values) {
  float best = 0.0f;
  for (int i = 0; i < kBlockColumns; ++i) {
    if (std::fabs(values[i]) > std::fabs(best)) best = values[i];
  }
  return best;
}

void quantize_q4_0(const float* values, std::uint8_t* block) {
  const float scale = largest(values) / -8.0f;
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  const std::uint16_t stored = to_f16(scale);
  std::memcpy(block, &stored, kScaleBytes);
  const auto nibble = [&](float x) {
    const float level = std::nearbyint(x * inverse) + 8.0f;
    return static_cast<std::uint8_t>(std::clamp(level, 0.0f, 15.0f));
  };
  for (int i = 0; i < kBlockColumns / 2; ++i) {
    const int high = nibble(values[i + kBlockColumns / 2]) << 4;
    block[kScaleBytes + static_cast<std::size_t>(i)] =
        static_cast<std::uint8_t>(nibble(values[i]) | high);
  }
}

void quantize_q8_0(const float* values, std::uint8_t* block) {
  const float scale = std::fabs(largest(values)) / 127.0f;
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  const std::uint16_t stored = to_f16(scale);
  std::memcpy(block, &stored, kScaleBytes);
  for (int i = 0; i < kBlockColumns; ++i) {
    const float level = std::clamp(std::nearbyint(values[i] * inverse), -127.0f, 127.0f);
    block[kScaleBytes + static_cast<std::size_t>(i)] =
        static_cast<std::uint8_t>(static_cast<std::int8_t>(level));
  }
}

void dequantize_block(WeightType type, const std::uint8_t* block, float* values) {
  std::uint16_t stored;
  std::memcpy(&stored, block, kScaleBytes);
  const float scale = from_f16(stored);
  const std::uint8_t* weights = block + kScaleBytes;
  for (int i = 0; i < kBlockColumns; ++i) {
    if (type == WeightType::q8_0) {
      values[i] = static_cast<float>(static_cast<std::int8_t>(weights[i])) * scale;
    } else {
      const int byte = weights[i % (kBlockColumns / 2)];
      const int level = i < kBlockColumns / 2 ? byte & 0x0f : byte >> 4;
      values[i] = static_cast<float>(level - 8) * scale;
    }
  }
}

float read_plain(WeightType type, const std::uint8_t* from) {
  if (type == WeightType::f32) {
    float x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return type == WeightType::f16 ? from_f16(bits) : from_bf16(bits);
}

std::uint32_t as_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}

float as_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}


#ifdef __linux__
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Zero pages that come with the first touch, whole huge pages where the system has them: a pass
// over all weights would else miss the address cache at every 4 KiB.
std::uint8_t* map_huge(std::size_t size) {
  const std::size_t room = size + kHugePage;
  void* mapped =
      mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  const auto begin = reinterpret_cast<std::uintptr_t>(mapped);
  const std::uintptr_t first = rounded_up(begin, kHugePage), last = begin + room;
  const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t end = rounded_up(first + size, page);
  if (first > begin) munmap(mapped, first - begin);
  if (last > end) munmap(reinterpret_cast<void*>(end), last - end);
  madvise(reinterpret_cast<void*>(first), size, MADV_HUGEPAGE);
  return reinterpret_cast<std::uint8_t*>(first);
}
#endif

}  // namespace

std::size_t source_row_bytes(WeightType type, int inner) {
  const std::size_t columns = static_cast<std::size_t>(inner);
  if (!is_quantized(type)) return columns * number_bytes(type);
  assert(inner % kBlockColumns == 0);
  return columns / kBlockColumns * block_bytes(type);
}

std::size_t panel_bytes(WeightType type, int inner) {
  const std::size_t half = source_row_bytes(type, inner) * kHalfRows;
  return is_quantized(type) ? 2 * half : 2 * rounded_up(half, kAlignment);
}

void pack_panels(WeightType type, const std::uint8_t* rows, int outputs, int inner, int first,
                 int end, std::uint8_t* panels) {
  const std::size_t row_bytes = source_row_bytes(type, inner), size = panel_bytes(type, inner);
  for (int p = first; p < end; ++p) {
    std::uint8_t* panel = panels + static_cast<std::size_t>(p) * size;
    std::memset(panel, 0, size);
    const std::size_t begin = static_cast<std::size_t>(p) * kPanelRows;
    const std::size_t count = std::min<std::size_t>(kPanelRows, static_cast<std::size_t>(outputs) - begin);
    for (std::size_t r = 0; r < count; ++r) {
      const std::uint8_t* row = rows + (begin + r) * row_bytes;
      if (is_quantized(type)) {
        pack_quantized_row(type, row, inner, r, panel);
      } else if (type == WeightType::f32) {
        pack_plain_row<4>(row, inner, r, panel);
      } else {
        pack_plain_row<2>(row, inner, r, panel);
      }
    }
  }
}

std::vector<std::uint8_t> quantize_row(WeightType type, const float* values, int count) {
  std::vector<std::uint8_t> row(source_row_bytes(type, count));
  if (is_quantized(type)) {
    const auto quantize = type == WeightType::q4_0 ? quantize_q4_0 : quantize_q8_0;
    for (int b = 0; b < count / kBlockColumns; ++b) {
      quantize(values + b * kBlockColumns,
               row.data() + static_cast<std::size_t>(b) * block_bytes(type));
    }
  } else if (type == WeightType::f32) {
    std::memcpy(row.data(), values, row.size());
  } else {
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      const std::uint16_t bits = type == WeightType::f16 ? to_f16(values[i]) : to_bf16(values[i]);
      std::memcpy(row.data() + 2 * i, &bits, sizeof bits);
    }
  }
  return row;
}

std::vector<float> dequantize_row(WeightType type, const std::uint8_t* row, int count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  if (is_quantized(type)) {
    for (int b = 0; b < count / kBlockColumns; ++b) {
      dequantize_block(type, row + static_cast<std::size_t>(b) * block_bytes(type),
                       values.data() + b * kBlockColumns);
    }
  } else {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = read_plain(type, row + i * number_bytes(type));
    }
  }
  return values;
}

std::uint16_t to_bf16(float x) {
  const std::uint32_t bits = as_bits(x);
  if (std::isnan(x)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bf16(std::uint16_t bits) { return as_float(static_cast<std::uint32_t>(bits) << 16); }

std::uint16_t to_f16(float x) {
  const std::uint32_t bits = as_bits(x), magnitude = bits & 0x7fffffff;
  const std::uint32_t sign = bits >> 16 & 0x8000;
  if (magnitude > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    const float steps = std::nearbyint(as_float(magnitude) * 0x1p24f);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(steps));
  }
  const std::uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

float from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  const std::uint32_t exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
  if (exponent == 31) return as_float(sign | 0x7f800000 | fraction << 13);
  if (exponent != 0) return as_float(sign | (exponent + 112) << 23 | fraction << 13);
  return as_float(sign | as_bits(static_cast<float>(fraction) * 0x1p-24f));
}

AlignedBytes::AlignedBytes(std::size_t size) : size_(size) {
#ifdef __linux__
  if (size >= kHugePage) {
    bytes_ = {map_huge(size), Free(size)};
    return;
  }
#endif
  const std::size_t room = rounded_up(std::max(kAlignment, size), kAlignment);
  bytes_.reset(static_cast<std::uint8_t*>(std::aligned_alloc(kAlignment, room)));
  if (!bytes_) throw std::bad_alloc();
  std::memset(bytes_.get(), 0, room);
}

void AlignedBytes::Free::operator()(std::uint8_t* bytes) const {
#ifdef __linux__
  if (mapped) {
    munmap(bytes, mapped);
    return;
  }
#endif
  std::free(bytes);
}

PackedMatrix::PackedMatrix(WeightType type, const std::uint8_t* rows, int outputs, int inner) {
  pack(type, rows, outputs, inner);
}

PackedMatrix::PackedMatrix(WeightType type, const float* values, int outputs, int inner) {
  std::vector<std::uint8_t> rows;
  for (int r = 0; r < outputs; ++r) {
    const float* row_values =
        values + static_cast<std::size_t>(r) * static_cast<std::size_t>(inner);
    const std::vector<std::uint8_t> row = quantize_row(type, row_values, inner);
    rows.insert(rows.end(), row.begin(), row.end());
  }
  pack(type, rows.data(), outputs, inner);
}

void PackedMatrix::pack(WeightType type, const std::uint8_t* rows, int outputs, int inner) {
  const int panels = num_panels(outputs);
  bytes_ = AlignedBytes(static_cast<std::size_t>(panels) * panel_bytes(type, inner));
  pack_panels(type, rows, outputs, inner, 0, panels, bytes_.data());
  view_ = {type, outputs, inner, bytes_.data()};
}

}  // namespace paceline
