// The kernels of one instruction set, and which one this process uses.
#pragma once

#include <string>
#include <vector>

#include "paceline/attention.h"
#include "paceline/head.h"
#include "paceline/linear.h"
#include "paceline/ops.h"
#include "paceline/score_row.h"

namespace paceline {

struct Kernels {
  const char* isa;  // portable, avx2, avxvnni or avx512
  const LinearKernels& linear;
  const HeadKernels& head;
  const OpsKernels& ops;
  const AttentionKernels& attention;
  const ScoreKernels& scores;
};

// The best that the processor has, or the one that the environment variable PACELINE_ISA names.
// Throws std::invalid_argument where that is unknown or the processor lacks it.
const Kernels& kernels();

// The same for a given name; "" means the best.
const Kernels& kernels_for(const std::string& isa);

// All that this processor can run, the slowest first.
std::vector<const Kernels*> all_kernels();

}  // namespace paceline
