"""The pair that ships, loaded once for each runtime and type."""

from __future__ import annotations

from functools import cache

from paceline.loading import LoadedPair, load_pair


@cache
def shipped_pair(dtype: str = "float32") -> LoadedPair:
    """In the torch runtime."""
    return load_pair(runtime="torch", dtype=dtype)


@cache
def native_pair(threads: int = 1) -> LoadedPair:
    return load_pair(runtime="native", threads=threads)
