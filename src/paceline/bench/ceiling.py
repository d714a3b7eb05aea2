"""The fastest that plain decoding could be: weights read for a token, over the memory's speed.

A model whose weights fit into the processor's caches can pass it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paceline.config import TargetConfig
from paceline.memory import ITEM_BYTES

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
    weights = weights_per_token(pair.target.config, pair.num_target_parameters)
    return Ceiling(
        bytes_per_token=weights * ITEM_BYTES[pair.dtype], read_bytes_per_s=read_speed(pair.threads)
    )


def weights_per_token(config: TargetConfig, num_parameters: int) -> int:
    """Weights that one token needs: all but per-layer embeddings and experts it does not use.

    The per-layer table is looked up, a row for each token; the token table is read whole as the
    output head.
    """
    looked_up = config.per_layer_vocab_size * config.num_layers * config.per_layer_size
    expert_weights = 3 * config.hidden_size * config.expert_ffn_size
    idle_experts = config.num_experts - config.num_experts_per_token
    return num_parameters - looked_up - config.num_layers * idle_experts * expert_weights


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
