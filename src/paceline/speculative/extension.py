"""What rounds need of the extension module, or what to do where it is not built."""

from paceline.errors import MissingDependencyError

try:
    from paceline._native import (
        LARGEST_OFFSET,
        LEAST_GAIN,
        SEPARATOR,
        AcceptanceModel,
        Follower,
        IndexedText,
        MarginCurve,
        Profile,
        Trust,
        WrittenText,
        best_length,
        margin_bounds,
    )
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "the extension module is not built into this installation of Paceline. Install it again "
        "where there is a C++20 compiler."
    ) from error

__all__ = [
    "LARGEST_OFFSET",
    "LEAST_GAIN",
    "SEPARATOR",
    "AcceptanceModel",
    "Follower",
    "IndexedText",
    "MarginCurve",
    "Profile",
    "Trust",
    "WrittenText",
    "best_length",
    "margin_bounds",
]
