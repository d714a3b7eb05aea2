// How fast a plain loop reads memory: the ceiling of decoding, which reads every weight per token.
#pragma once

#include <cstddef>

#include "paceline/thread_pool.h"

namespace paceline {

// Bytes a second that the pool's threads read together of `num_bytes` freshly allocated bytes: the
// best of a few rounds. Each thread reads a part of its own.
double read_bandwidth(ThreadPool& pool, std::size_t num_bytes);

}  // namespace paceline
