// A test is a function named by TEST; CHECK reports what was wrong and fails the program.
#pragma once

#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "paceline/kernels.h"

namespace paceline::testing {

inline constexpr const char* kDtypes[] = {"Q4_0", "Q8_0", "BF16", "F16", "F32"};

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int failures = 0;

struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  if (++failures <= 20) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

inline int run_all() {
  for (const Test& test : tests()) {
    const int before = failures;
    test.body();
    std::printf("%s %s\n", failures == before ? "passed" : "FAILED", test.name);
  }
  std::printf("%d tests, %d checks failed\n", static_cast<int>(tests().size()), failures);
  return failures ? 1 : 0;
}

// Repeatable numbers, normally distributed.
inline std::vector<float> random_values(std::size_t count, unsigned seed, float spread = 1.0f) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> values(count);
  for (float& value : values) value = normal(bits);
  return values;
}

// What an argument that cannot be used is refused with; empty if it is not.
template <class Action>
std::string refusal(Action&& action) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

template <class Action>
bool refuses(Action&& action) {
  try {
    action();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline bool same_bits(const float* a, const float* b, std::size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

}  // namespace paceline::testing

#define TEST(name)                                                              \
  static void test_##name();                                                    \
  static const paceline::testing::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition, ...)                                                            \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      paceline::testing::fail(__FILE__, __LINE__,                                        \
                              std::string(#condition) + " " + std::string{__VA_ARGS__}); \
    }                                                                                    \
  } while (0)
