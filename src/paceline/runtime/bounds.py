"""What a KV cache refuses, in the same words whichever runtime holds it."""

from __future__ import annotations

from paceline.errors import CacheError
from paceline.runtime.protocols import KVCache


def check_room(cache: KVCache, num_rows: int) -> None:
    """
    Raises:
        CacheError: the sequence would outgrow `max_length`.
    """
    length = cache.length + num_rows
    if length > cache.max_length:
        raise CacheError(
            f"{length} positions do not fit: this KV cache was made for {cache.max_length}. "
            "Shorten the prompt or ask for fewer tokens."
        )


def check_truncation(cache: KVCache, length: int) -> None:
    """
    Raises:
        CacheError: `length` is larger than now, or below `shortest_truncation`.
    """
    if length and not cache.shortest_truncation <= length <= cache.length:
        raise CacheError(
            f"cannot truncate the KV cache to {length}: it holds {cache.length} positions and "
            f"its sliding layers reach back to {cache.shortest_truncation}. Empty it with "
            "truncate(0) and feed the tokens again."
        )
