// What a file or a caller can get wrong. Everything else that is wrong with an argument is a
// std::invalid_argument.
#pragma once

#include <stdexcept>

namespace paceline {

// A weight, or the scale of a block of weights, is infinite or not a number.
class NotFiniteError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace paceline
