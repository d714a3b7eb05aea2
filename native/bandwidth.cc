#include "paceline/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "paceline/kernels.h"

namespace paceline {
namespace {

constexpr int kRounds = 5;
constexpr int kCachedOutputs = 256;  // with the columns 144 KiB of q4_0
constexpr int kCachedColumns = 1024;
constexpr double kCachedProducts = 1e9;  // of each thread and round: a few milliseconds
constexpr std::size_t kLine = 64;
constexpr std::size_t kWords = kLine / sizeof(std::uint64_t);

// Reads one word of each line, which moves the whole line: summing every word with plain code would
// measure the adder.
std::uint64_t sum_lines(const std::uint64_t* words, std::size_t num_lines) {
  std::uint64_t sums[4] = {};
  std::size_t line = 0;
  for (; line + 4 <= num_lines; line += 4) {
    for (std::size_t i = 0; i < 4; ++i) sums[i] += words[(line + i) * kWords];
  }
  for (; line < num_lines; ++line) sums[0] += words[line * kWords];
  return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

double read_bandwidth(ThreadPool& pool, std::size_t num_bytes) {
  const std::size_t num_lines = std::max<std::size_t>(num_bytes / kLine, 1);
  const AlignedBytes memory(num_lines * kLine);
  std::atomic<std::uint64_t> total = 0;  // keeps the reads from being optimised away
  const auto part = [&](int index, int count) {
    return num_lines * static_cast<std::size_t>(index) / static_cast<std::size_t>(count);
  };
  // Pages that nobody has written are one and the same page of zeros, in the cache.
  pool.run([&](Worker& worker) {
    const std::size_t first = part(worker.index(), worker.num_workers());
    const std::size_t end = part(worker.index() + 1, worker.num_workers());
    std::memset(memory.data() + first * kLine, 1, (end - first) * kLine);
  });
  const auto read_part = [&](Worker& worker) {
    const std::size_t first = part(worker.index(), worker.num_workers());
    const std::size_t end = part(worker.index() + 1, worker.num_workers());
    total += sum_lines(memory.as<std::uint64_t>() + first * kWords, end - first);
  };
  double best = 0.0;
  for (int round = 0; round < kRounds; ++round) {
    const auto started = std::chrono::steady_clock::now();
    pool.run(read_part);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    best = std::max(best, static_cast<double>(num_lines * kLine) / std::max(took.count(), 1e-9));
  }
  return best;
}

double product_rate(ThreadPool& pool, WeightType type, int num_rows) {
  const auto rows = static_cast<std::size_t>(num_rows);
  const std::vector<float> weights(std::size_t{kCachedOutputs} * kCachedColumns, 1.0F);
  const PackedMatrix matrix(type, weights.data(), kCachedOutputs, kCachedColumns);
  const std::size_t blocks = kCachedColumns / kBlockColumns;
  std::vector<float> values(rows * kCachedColumns, 1.0F);
  std::vector<float> scales(rows * blocks);
  const AlignedBytes quants(rows * kCachedColumns);
  std::vector<std::int32_t> sums(rows * blocks);
  const Activations x{num_rows,      kCachedColumns, values.data(), quants.as<std::int8_t>(),
                      scales.data(), sums.data()};
  const LinearKernels& linear = kernels().linear;
  for (int row = 0; row < num_rows; ++row) {
    linear.quantize(x, row, 0, static_cast<int>(blocks));
  }
  const double products = static_cast<double>(rows * kCachedOutputs * kCachedColumns);
  const int passes = static_cast<int>(std::max(kCachedProducts / products, 1.0));
  double best = 0.0;
  for (int round = 0; round < kRounds; ++round) {
    const auto started = std::chrono::steady_clock::now();
    pool.run([&](Worker&) {
      std::vector<float> out(rows * kCachedOutputs);
      for (int pass = 0; pass < passes; ++pass) {
        linear.multiply(matrix.view(), x, 0, num_panels(kCachedOutputs), out.data(),
                        kCachedOutputs);
      }
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    best = std::max(best, products * passes * pool.num_threads() / std::max(took.count(), 1e-9));
  }
  return best;
}

}  // namespace paceline
