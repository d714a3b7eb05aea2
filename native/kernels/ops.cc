// Row operations (include/paceline/ops.h).
#include "paceline/ops.h"

#include "math.h"

namespace paceline::PACELINE_ISA_NAME {
namespace {

constexpr int kChains = 4;  // of 16 lanes, so that no addition waits for the one before it

// body(at, lanes, chain) for every vector of a row.
template <class Body>
PACELINE_INLINE void for_vectors(int size, Body&& body) {
  for (int at = 0; at < size; at += kLanes) body(at, smaller(kLanes, size - at));
}

PACELINE_INLINE int chain(int at) { return at / kLanes % kChains; }

PACELINE_INLINE float total(const F32x16 (&chains)[kChains]) {
  return sum((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

float inverse_root_mean_square(const float* x, float eps, int size) {
  F32x16 squares[kChains] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for_vectors(size, [&](int at, int lanes) {
    const F32x16 v = load_first(x + at, lanes);
    squares[chain(at)] = fma(v, v, squares[chain(at)]);
  });
  return 1.0f / __builtin_sqrtf(total(squares) / static_cast<float>(size) + eps);
}

PACELINE_INLINE F32x16 normed(const float* x, const float* weight, F32x16 inverse, int at,
                              int lanes) {
  const F32x16 v = load_first(x + at, lanes) * inverse;
  return weight ? v * load_first(weight + at, lanes) : v;
}

void rms_norm(const float* x, const float* weight, float eps, int size, float* out) {
  const F32x16 inverse = splat(inverse_root_mean_square(x, eps, size));
  for_vectors(size, [&](int at, int lanes) {
    store_first(normed(x, weight, inverse, at, lanes), out + at, lanes);
  });
}

void add_rms_norm(const float* x, const float* weight, float eps, float scale, int size,
                  float* residual) {
  const F32x16 inverse = splat(inverse_root_mean_square(x, eps, size)), factor = splat(scale);
  for_vectors(size, [&](int at, int lanes) {
    const F32x16 added = load_first(residual + at, lanes) + normed(x, weight, inverse, at, lanes);
    store_first(added * factor, residual + at, lanes);
  });
}

void rope(float* head, const float* cosines, const float* sines, int size) {
  float* other = head + size / 2;
  for_vectors(size / 2, [&](int at, int lanes) {
    const F32x16 c = load_first(cosines + at, lanes), s = load_first(sines + at, lanes);
    const F32x16 a = load_first(head + at, lanes), b = load_first(other + at, lanes);
    store_first(a * c - b * s, head + at, lanes);
    store_first(b * c + a * s, other + at, lanes);
  });
}

PACELINE_INLINE F32x16 gelu_tanh(F32x16 x) {
  // -2 sqrt(2 / pi), and that times 0.044715
  const F32x16 slope = fma(x * x, splat(-0.0713548162726f), splat(-1.59576912161f));
  return x / (splat(1.0f) + exp(x * slope));
}

void gelu_gate(const float* gate, const float* up, int size, float* out) {
  for_vectors(size, [&](int at, int lanes) {
    const F32x16 open = gelu_tanh(load_first(gate + at, lanes));
    store_first(open * load_first(up + at, lanes), out + at, lanes);
  });
}

void soft_cap(float* x, int size, float cap) {
  const F32x16 bound = splat(cap);
  for_vectors(size, [&](int at, int lanes) {
    store_first(bound * tanh(load_first(x + at, lanes) / bound), x + at, lanes);
  });
}

void exp_all(float* x, int size) {
  for_vectors(
      size, [&](int at, int lanes) { store_first(exp(load_first(x + at, lanes)), x + at, lanes); });
}

void softmax(float* x, int size) {
  const F32x16 lowest = splat(-__builtin_inff()), zero = splat(0.0f);
  F32x16 best = lowest;
  for_vectors(size, [&](int at, int lanes) {
    best = max(best, select_range(0, lanes, load_first(x + at, lanes), lowest));
  });
  const F32x16 highest_of_all = splat(highest(best));
  F32x16 sums[kChains] = {zero, zero, zero, zero};
  for_vectors(size, [&](int at, int lanes) {
    const F32x16 e = exp(load_first(x + at, lanes) - highest_of_all);
    sums[chain(at)] = sums[chain(at)] + select_range(0, lanes, e, zero);
    store_first(e, x + at, lanes);
  });
  const F32x16 divisor = splat(total(sums));
  for_vectors(size, [&](int at, int lanes) {
    store_first(load_first(x + at, lanes) / divisor, x + at, lanes);
  });
}

// ---- Rows of embedding tables ----

// Up to 16 numbers of 2 or 4 bytes from any address.
template <class Stored>
PACELINE_INLINE void copy_first(const std::uint8_t* from, int count, Stored (&lanes)[kLanes]) {
  std::memset(lanes, 0, sizeof lanes);
  std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(Stored));
}

template <class Stored, class Load>
PACELINE_INLINE void embed_numbers(const std::uint8_t* row, F32x16 scale, int size, float* out,
                                   Load&& read) {
  for_vectors(size, [&](int at, int lanes) {
    Stored numbers[kLanes];
    copy_first(row + static_cast<std::ptrdiff_t>(at) * static_cast<int>(sizeof(Stored)), lanes,
               numbers);
    store_first(read(numbers) * scale, out + at, lanes);
  });
}

PACELINE_INLINE float read_half(const std::uint8_t* from) {
  std::uint16_t halves[kLanes];
  copy_first(from, 1, halves);
  float numbers[kLanes];
  store(load_f16(halves), numbers);
  return numbers[0];
}

// A weight, level x block scale, is exact in float32.
void embed_q8_0(const std::uint8_t* row, float scale, int size, float* out) {
  for (int at = 0; at < size; at += kBlockColumns, row += 2 + kBlockColumns) {
    const float block_scale = read_half(row);
    for (int i = 0; i < kBlockColumns; ++i) {
      const auto level = static_cast<std::int8_t>(row[2 + i]);
      out[at + i] = static_cast<float>(level) * block_scale * scale;
    }
  }
}

void embed_q4_0(const std::uint8_t* row, float scale, int size, float* out) {
  constexpr int kHalf = kBlockColumns / 2;
  for (int at = 0; at < size; at += kBlockColumns, row += 2 + kHalf) {
    const float block_scale = read_half(row);
    for (int i = 0; i < kHalf; ++i) {
      const int low = (row[2 + i] & 0x0f) - 8, high = (row[2 + i] >> 4) - 8;
      out[at + i] = static_cast<float>(low) * block_scale * scale;
      out[at + kHalf + i] = static_cast<float>(high) * block_scale * scale;
    }
  }
}

void embed(WeightType type, const std::uint8_t* row, float scale, int size, float* out) {
  const F32x16 factor = splat(scale);
  switch (type) {
    case WeightType::q4_0:
      return embed_q4_0(row, scale, size, out);
    case WeightType::q8_0:
      return embed_q8_0(row, scale, size, out);
    case WeightType::bf16:
      return embed_numbers<std::uint16_t>(row, factor, size, out,
                                          [](const std::uint16_t* x) { return load_bf16(x); });
    case WeightType::f16:
      return embed_numbers<std::uint16_t>(row, factor, size, out,
                                          [](const std::uint16_t* x) { return load_f16(x); });
    case WeightType::f32:
      return embed_numbers<float>(row, factor, size, out, [](const float* x) { return load(x); });
  }
}

// ---- Sums ----

void add(const float* x, float factor, int size, float* to) {
  for_vectors(size, [&](int at, int lanes) {
    const F32x16 added = load_first(to + at, lanes) + load_first(x + at, lanes);
    store_first(added * splat(factor), to + at, lanes);
  });
}

void add_multiple(const float* x, float factor, int size, float* to) {
  for_vectors(size, [&](int at, int lanes) {
    const F32x16 multiple = load_first(x + at, lanes) * splat(factor);
    store_first(load_first(to + at, lanes) + multiple, to + at, lanes);
  });
}

void scale(float* x, float factor, int size) {
  for_vectors(size, [&](int at, int lanes) {
    store_first(load_first(x + at, lanes) * splat(factor), x + at, lanes);
  });
}

}  // namespace

extern const OpsKernels ops_kernels;
const OpsKernels ops_kernels = {rms_norm, add_rms_norm, rope, gelu_gate,    soft_cap, exp_all,
                                softmax,  embed,        add,  add_multiple, scale};

}  // namespace paceline::PACELINE_ISA_NAME
