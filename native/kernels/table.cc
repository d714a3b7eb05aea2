// Collects the kernels of this instruction set.
#include "paceline/kernels.h"

#define PACELINE_QUOTE(name) #name
#define PACELINE_STRING(name) PACELINE_QUOTE(name)

namespace paceline::PACELINE_ISA_NAME {

extern const LinearKernels linear_kernels;
extern const HeadKernels head_kernels;
extern const OpsKernels ops_kernels;
extern const AttentionKernels attention_kernels;
extern const ScoreKernels score_kernels;

extern const Kernels table;
const Kernels table = {PACELINE_STRING(PACELINE_ISA_NAME),
                       linear_kernels,
                       head_kernels,
                       ops_kernels,
                       attention_kernels,
                       score_kernels};

}  // namespace paceline::PACELINE_ISA_NAME
