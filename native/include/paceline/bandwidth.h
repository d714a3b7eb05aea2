// Two ceilings. How fast a plain loop reads memory bounds decoding, which reads every weight per
// token; how fast products come from the cache bounds passes over many rows.
#pragma once

#include <cstddef>

#include "paceline/thread_pool.h"
#include "paceline/weights.h"

namespace paceline {

// Bytes a second that the pool's threads read together of `num_bytes` freshly allocated bytes: the
// best of a few rounds. Each thread reads a part of its own.
double read_bandwidth(ThreadPool& pool, std::size_t num_bytes);

// Multiplications a second of the linear layers' own kernel for `num_rows` rows, on all threads,
// with weights that stay in each core's cache: the best of a few rounds.
double product_rate(ThreadPool& pool, WeightType type, int num_rows);

}  // namespace paceline
