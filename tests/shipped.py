"""The pair that ships, or a tiny random one where it has not been trained yet."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from paceline.loading import SHIPPED_FOLDER, LoadedPair, load_pair
from random_pair import write_random_pair


@cache
def shipped_pair(dtype: str = "float32") -> LoadedPair:
    if SHIPPED_FOLDER.is_dir():
        return load_pair(dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        return load_pair(write_random_pair(Path(folder, "random")), dtype=dtype)
