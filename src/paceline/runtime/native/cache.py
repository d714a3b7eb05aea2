"""The KV cache of one sequence (protocol `runtime.protocols.KVCache`), held in C++."""

from __future__ import annotations

from paceline.extension import _native
from paceline.runtime.bounds import check_truncation
from paceline.runtime.protocols import KVCache


class NativeKVCache:
    """Keys and values in 16 bits; `inner` is what the passes are given."""

    def __init__(self, inner: _native.Cache) -> None:
        self.inner = inner

    @property
    def length(self) -> int:
        return self.inner.length

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    @property
    def shortest_truncation(self) -> int:
        return self.inner.shortest_truncation

    @property
    def kv_bytes(self) -> int:
        return self.inner.kv_bytes

    def truncate(self, length: int) -> None:
        check_truncation(self, length)
        self.inner.truncate(length)


def native(cache: KVCache) -> _native.Cache:
    assert isinstance(cache, NativeKVCache)
    return cache.inner
