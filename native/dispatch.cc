// Chooses the instruction set. The only file that asks the processor or the environment.
#include <cstdlib>
#include <stdexcept>

#include "paceline/kernels.h"

namespace paceline {

namespace portable {
extern const Kernels table;
}
#ifdef PACELINE_HAS_avx512
namespace avx2 {
extern const Kernels table;
}
namespace avxvnni {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

#ifdef PACELINE_HAS_avx512
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

// __builtin_cpu_supports knows avxvnni from GCC 13 on only.
bool has_avxvnni() {
  unsigned eax = 7, ebx = 0, ecx = 1, edx = 0;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return has_avx2() && (eax >> 4 & 1) != 0;
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace
#endif

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found = {&portable::table};
#ifdef PACELINE_HAS_avx512
  if (has_avx2()) found.push_back(&avx2::table);
  if (has_avxvnni()) found.push_back(&avxvnni::table);
  if (has_avx512()) found.push_back(&avx512::table);
#endif
  return found;
}

const Kernels& kernels_for(const std::string& isa) {
  const std::vector<const Kernels*> found = all_kernels();
  if (isa.empty()) return *found.back();
  std::string names;
  for (const Kernels* candidate : found) {
    if (isa == candidate->isa) return *candidate;
    names += names.empty() ? candidate->isa : std::string(", ") + candidate->isa;
  }
  throw std::invalid_argument("instruction set '" + isa +
                              "' is unknown or not on this processor, which has: " + names +
                              ". Unset PACELINE_ISA to use the best.");
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* forced = std::getenv("PACELINE_ISA");
    return kernels_for(forced ? forced : "");
  }();
  return chosen;
}

}  // namespace paceline
