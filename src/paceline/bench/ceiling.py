"""The fastest that plain decoding could be: weights read for a token, over the memory's speed.

A model whose weights fit into the processor's caches can pass it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from paceline.loading import LoadedPair

READ_BYTES = 256 << 20
READ_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Tokens a second that reading the weights allows without drafting."""

    bytes_per_token: int
    read_bytes_per_s: float

    @property
    def decode_tps(self) -> float:
        return self.read_bytes_per_s / self.bytes_per_token


def measure_ceiling(pair: LoadedPair) -> Ceiling:
    """The ceiling of this pair's target on this machine, now."""
    return Ceiling(bytes_per_token=pair.bytes_per_token, read_bytes_per_s=read_speed(pair.threads))


def read_speed(threads: int, num_bytes: int = READ_BYTES) -> float:
    """Bytes a second that the threads together read from memory: the best of a few rounds."""
    parts = [np.ones(num_bytes // 4 // threads, np.float32) for _ in range(threads)]
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READ_ROUNDS):
            started = time.perf_counter()
            list(pool.map(np.dot, parts, parts))
            best = min(best, time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / best
