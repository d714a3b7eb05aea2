// The Python module paceline._native. Nothing outside this folder knows Python.
#include "bindings.h"
#include "paceline/errors.h"

NB_MODULE(_native, module) {
  using namespace paceline;
  module.doc() = "The native CPU runtime: see native/README.md.";
  // What a waiting thread holds as a program ends is no mistake that its user could mend.
  nb::set_leak_warnings(false);
  nb::exception<NotFiniteError>(module, "NotFiniteError", PyExc_ValueError);
  nb::exception<ReadError>(module, "ReadError", PyExc_OSError);
  // In this order: a signature names only what is there.
  bind_machine(module);
  bind_shapes(module);
  bind_models(module);
  bind_texts(module);
  bind_acceptance(module);
  bind_scores(module);
}
