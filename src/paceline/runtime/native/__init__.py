"""The native CPU runtime: the protocols of `runtime.protocols` over the C++ module `_native`."""
