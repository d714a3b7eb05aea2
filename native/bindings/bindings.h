// What the files of the bindings share: arrays from and for NumPy, and refusals.
//
// Arrays come from files: every size and range is checked here or in the class behind, and what is
// wrong is a ValueError; an array of another dtype or rank is nanobind's TypeError. Long calls run
// without the interpreter's lock.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace paceline {

namespace nb = nanobind;
using namespace nb::literals;

void bind_machine(nb::module_& module);
void bind_shapes(nb::module_& module);
void bind_models(nb::module_& module);
void bind_texts(nb::module_& module);
void bind_acceptance(nb::module_& module);
void bind_scores(nb::module_& module);

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using NewRows = nb::ndarray<T, nb::numpy, nb::ndim<2>, nb::c_contig>;
using Bytes = Vector<std::uint8_t>;

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

// Owns a value for the arrays that show its numbers.
template <class T>
nb::capsule owner_of(T* value) {
  return nb::capsule(value, [](void* it) noexcept { delete static_cast<T*>(it); });
}

// Numbers that nobody sets twice.
template <class T>
std::shared_ptr<T[]> new_numbers(std::size_t count) {
  return std::make_shared_for_overwrite<T[]>(count);
}

// Rows of them for NumPy, which keeps them all alive.
template <class T>
NewRows<T> to_rows(const std::shared_ptr<T[]>& numbers, std::size_t first, std::size_t rows,
                   std::size_t columns) {
  using Kept = std::shared_ptr<T[]>;
  return NewRows<T>(numbers.get() + first * columns, {rows, columns}, owner_of(new Kept(numbers)));
}

template <class T>
std::vector<T> to_vector(const Vector<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

}  // namespace paceline
