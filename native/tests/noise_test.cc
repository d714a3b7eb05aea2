// The noise against values of src/paceline/noise.py, and its bound.
#include "paceline/noise.h"

#include <algorithm>
#include <cmath>

#include "test.h"

using namespace paceline;

namespace {

struct Known {
  std::uint64_t seed, position;
  std::uint32_t token_id;
  std::uint64_t bits;
  double noise;
};

// Made by, for each (seed, position, token id), in Python:
//   words = philox4x32(seed, np.array([[position & 0xFFFFFFFF], [position >> 32], [id], [0]],
//                                     np.uint64))
//   bits = int((words[0] << 32 | words[1])[0]) >> 11 | 1
//   noise = float(gumbel(seed, position, np.array([id]))[0]).hex()
constexpr Known kKnown[] = {
    {0u, 0u, 0u, 3594291074837817u, 0x1.5b6c7ad999345p-4},
    {0u, 0u, 1u, 4653832151634349u, 0x1.a8f8949af3583p-2},
    {1u, 0u, 0u, 8018741759353153u, 0x1.137735381c91dp+1},
    {0u, 1u, 0u, 8757170225780289u, 0x1.c8fafecdddd47p+1},
    {12345u, 17u, 262143u, 5105397794195631u, 0x1.21da0ce052143p-1},
    {18446744073709551615u, 18446744073709551615u, 4294967295u, 8400298978351165u,
     0x1.54d4a3f0a76fap+1},
    {4294967296u, 5u, 7u, 2425721535386803u, -0x1.15fcf57f9a76dp-2},
    {5u, 4294967296u, 7u, 1713038743849001u, -0x1.036a46ef4fb91p-1},
    {16045690981402826360u, 131071u, 106u, 6147634014579503u, 0x1.ecc5ed1410677p-1},
    {42u, 4096u, 50u, 4557761853321451u, 0x1.891fcb76cbe97p-2},
    {42u, 4097u, 50u, 8737590594284343u, 0x1.bf2ff99dbf33dp+1},
    {7u, 3u, 1u, 2281025974511669u, -0x1.44e74bdf0bdf5p-2},
};

}  // namespace

TEST(the_bits_and_the_noise_are_those_of_python) {
  for (const Known& known : kKnown) {
    const std::uint64_t bits = noise_bits(known.seed, known.position, known.token_id);
    CHECK(bits == known.bits, std::to_string(bits));
    // NumPy has logarithms of its own: two of them, each within an ulp or two of the true value,
    // and the outer one takes over the relative error of the inner.
    const double error = std::fabs(gumbel(bits) - known.noise);
    CHECK(error <= 0x1p-50 * std::max(1.0, std::fabs(known.noise)), std::to_string(error));
  }
}

TEST(the_bound_is_above_the_noise_and_not_far) {
  std::vector<std::uint64_t> cases = {1, 3, (std::uint64_t{1} << 53) - 1};
  for (int shift = 1; shift < 53; ++shift) {  // 1 - u on both sides of every power of two
    const std::uint64_t rest = std::uint64_t{1} << shift;
    cases.push_back((std::uint64_t{1} << 53) - rest - 1);
    cases.push_back((std::uint64_t{1} << 53) - rest + 1);
  }
  for (std::uint32_t id = 0; id < 20000; ++id) cases.push_back(noise_bits(9, 1, id));
  for (const std::uint64_t bits : cases) {
    const double noise = gumbel(bits), bound = gumbel_bound(bits);
    CHECK(noise <= bound, std::to_string(bits));
    CHECK(noise < 3.0 || bound - noise <= 0.75, std::to_string(bits));
    CHECK(kMinGumbel <= noise && bound <= kMaxGumbel, std::to_string(bits));
  }
}
