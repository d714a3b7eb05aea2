"""The pair that ships, loaded once for each type."""

from __future__ import annotations

from functools import cache

from paceline.loading import LoadedPair, load_pair


@cache
def shipped_pair(dtype: str = "float32") -> LoadedPair:
    return load_pair(dtype=dtype)
