"""KV caches of finished sequences, kept so that a next turn need not prefill its history again.

A cache has one owner at a time: `take` hands it out, `give` brings it back. A cache is used for
the prefix that it shares with a prompt, and only where its sliding rings still reach back to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.runtime.protocols import KVCache


@dataclass(frozen=True, eq=False)
class KeptCache:
    """`token_ids` are the tokens whose keys and values the cache holds, in order."""

    token_ids: tuple[int, ...]
    cache: KVCache

    def usable_length(self, prompt: Sequence[int]) -> int:
        """How many of its positions `prompt` can start from; 0 for none.

        The prompt's last token is always left to feed: its logits start the answer.
        """
        length = min(common_prefix(self.token_ids, prompt), len(prompt) - 1)
        return length if length >= self.cache.shortest_truncation else 0


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


class PrefixCache:
    """The `capacity` caches that were given last."""

    def __init__(self, capacity: int) -> None:
        self._kept: deque[KeptCache] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kv_bytes(self) -> int:
        return sum(kept.cache.kv_bytes for kept in self._kept)

    def give(self, token_ids: Sequence[int], cache: KVCache) -> None:
        """Keep a cache that holds these tokens; the oldest makes room for it."""
        assert len(token_ids) == cache.length, (len(token_ids), cache.length)
        if cache.length:
            self._kept.append(KeptCache(tuple(token_ids), cache))

    def take(self, prompt: Sequence[int]) -> KVCache | None:
        """The cache that saves most of `prompt`, cut to what both share, or None."""
        best = max(self._kept, key=lambda kept: kept.usable_length(prompt), default=None)
        length = best.usable_length(prompt) if best else 0
        if best is None or not length:
            return None
        self._kept.remove(best)
        best.cache.truncate(length)
        return best.cache

    def clear(self) -> None:
        self._kept.clear()
