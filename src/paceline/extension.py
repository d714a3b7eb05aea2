"""The extension module `_native`, or what to do where it cannot be imported.

The one place that imports it: all others take it from here. Installing Paceline compiles it, so
nothing stands in for it.
"""

from paceline.errors import MissingDependencyError

try:
    import paceline._native as _native
except ImportError as error:
    raise MissingDependencyError(
        f"the extension module of Paceline cannot be imported: {error}. Installing Paceline "
        "compiles it, for one Python and one kind of processor, and no model runs without it. "
        "Install Paceline again where there is a C++20 compiler: run `pip install .` in a clone."
    ) from error

__all__ = ["_native"]
