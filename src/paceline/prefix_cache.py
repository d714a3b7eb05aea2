"""KV caches of finished sequences, kept so that a next turn need not prefill its history again.

A cache is owned by one sequence at a time: `take` hands it out, `give` brings it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.runtime.protocols import KVCache


@dataclass(frozen=True)
class KeptCache:
    """`token_ids` are the tokens whose keys and values the cache holds, in order."""

    token_ids: tuple[int, ...]
    cache: KVCache


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


class PrefixCache:
    """The `capacity` most recently given caches."""

    def __init__(self, capacity: int) -> None:
        self._kept: deque[KeptCache] = deque(maxlen=capacity)

    def give(self, token_ids: Sequence[int], cache: KVCache) -> None:
        assert len(token_ids) == cache.length
        if cache.length and self._kept.maxlen:
            self._kept.append(KeptCache(tuple(token_ids), cache))

    def take(self, prompt: Sequence[int]) -> KVCache | None:
        """The cache that saves most of `prompt`, cut to what both share, or None.

        At least the prompt's last token is left to feed, for its logits start the answer.
        """
        best = max(self._kept, key=lambda kept: self._usable(kept, prompt), default=None)
        if best is None or not (length := self._usable(best, prompt)):
            return None
        self._kept.remove(best)
        best.cache.truncate(length)
        return best.cache

    @staticmethod
    def _usable(kept: KeptCache, prompt: Sequence[int]) -> int:
        """How many positions can be kept; 0 where the sliding layers have forgotten too much."""
        length = min(common_prefix(kept.token_ids, prompt), len(prompt) - 1)
        return length if length >= max(kept.cache.shortest_truncation, 1) else 0

    def clear(self) -> None:
        self._kept.clear()
