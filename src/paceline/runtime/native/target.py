"""The native target: a pass over rows of several sequences is one call into C++."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.config import TargetConfig, check_range
from paceline.errors import CheckpointError
from paceline.extension import _native
from paceline.runtime.bounds import check_room
from paceline.runtime.native.cache import NativeKVCache, native
from paceline.runtime.protocols import PassOutput, Rows

ROWS_AT_ONCE = 128
"""Rows that go through the layers together; a longer pass is cut into pieces of this size."""


class NativeTarget:
    """Protocol `runtime.protocols.Target`.

    Args:
        inner: with all weights loaded.
    """

    def __init__(self, config: TargetConfig, inner: _native.Target) -> None:
        self._config = config
        self.inner = inner

    @property
    def config(self) -> TargetConfig:
        return self._config

    def new_cache(self, max_length: int, max_draft_tokens: int) -> NativeKVCache:
        check_range("max_length", max_length, 1, self.config.context_length)
        check_range("max_draft_tokens", max_draft_tokens, 0, self.config.context_length)
        slack = max(max_draft_tokens + 1, ROWS_AT_ONCE)
        return NativeKVCache(self.inner.new_cache(max_length, slack))

    def forward(self, rows: Sequence[Rows]) -> Sequence[PassOutput]:
        """One pass over the rows of one or more sequences.

        Raises:
            CacheError: a sequence would outgrow its cache. No cache has changed then.
            CheckpointError: a token's embeddings cannot be read from the file any more, or those
                of the per-layer table are not finite: that is too large to be looked through
                while loading.
        """
        for share in rows:
            assert share.token_ids
            assert 0 <= share.num_outputs <= len(share.token_ids)
            check_room(share.cache, len(share.token_ids))
        try:
            return self.inner.forward(
                [native(share.cache) for share in rows],
                [share.token_ids for share in rows],
                [share.num_outputs for share in rows],
                [share.num_candidates for share in rows],
            )
        except _native.NotFiniteError as error:
            raise CheckpointError(
                f"the model's per-layer embeddings are damaged: {error}. Download it again."
            ) from error
        except _native.ReadError as error:
            raise CheckpointError(str(error)) from error
