"""The fastest that plain decoding could be: weights read for a token, over the speed of reading
so many bytes again and again. Small models are read from the processor's caches.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from paceline.loading import LoadedPair

MAX_READ_BYTES = 256 << 20  # more than any cache holds
READ_SECONDS = 0.2


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
    speed = read_speed(pair.threads, min(pair.bytes_per_token, MAX_READ_BYTES))
    return Ceiling(bytes_per_token=pair.bytes_per_token, read_bytes_per_s=speed)


def read_speed(threads: int, num_bytes: int) -> float:
    """Bytes a second that the threads together read of `num_bytes`: the best round."""
    parts = [np.ones(num_bytes // 4 // threads + 1, np.float32) for _ in range(threads)]
    best = float("inf")
    end = time.perf_counter() + READ_SECONDS
    with ThreadPoolExecutor(threads) as pool:
        while (started := time.perf_counter()) < end:
            list(pool.map(np.dot, parts, parts))
            best = min(best, time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / best
