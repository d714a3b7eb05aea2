// What a file or a caller can get wrong. Everything else that is wrong with an argument is a
// std::invalid_argument.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace paceline {

inline void check_range(const char* name, std::int64_t value, std::int64_t low,
                        std::int64_t high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string(name) + "=" + std::to_string(value) +
                              " is out of range: expected " + std::to_string(low) + " to " +
                              std::to_string(high) + ".");
}

// A weight, or the scale of a block of weights, is infinite or not a number.
class NotFiniteError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A file of the model cannot be read any more. The message says which, and what to do.
class ReadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Carries the first error out of a pool run, whose workers must not throw.
class Failure {
 public:
  // Whether `action` came to its end.
  template <class Action>
  bool guard(Action&& action) noexcept {
    try {
      action();
      return true;
    } catch (...) {
      const std::lock_guard<std::mutex> turn(turn_);
      if (!first_) first_ = std::current_exception();
      return false;
    }
  }
  // After the run. The next one begins without an error.
  void rethrow() {
    if (first_) std::rethrow_exception(std::exchange(first_, nullptr));
  }

 private:
  std::mutex turn_;
  std::exception_ptr first_;
};

}  // namespace paceline
