"""The native target: a pass over rows of several sequences is one call into C++."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

import paceline._native as _native
from paceline.checkpoint.weights import Weight
from paceline.config import TargetConfig, check_range
from paceline.errors import CheckpointError
from paceline.runtime.bounds import check_room
from paceline.runtime.native.cache import NativeKVCache, native
from paceline.runtime.protocols import PassOutput, Rows
from paceline.sampling import Candidates

ROWS_AT_ONCE = 128
"""Rows that go through the layers together; a longer pass is cut into pieces of this size."""

TOKENS_BEFORE_FORGETTING = 16
"""The embeddings' rows are read from the mapped file, and the system maps far more around each: 70
to 900 KB, measured, as its cache holds the file in small or large pieces. Given back this often,
that stays below some 20 MB between passes, and costs 15 microseconds a token of E2B."""


class NativeTarget:
    """Protocol `runtime.protocols.Target`.

    Args:
        inner: with all weights loaded.
        row_tables: the weights whose rows `inner` reads from their file, of those that are large.
    """

    def __init__(
        self, config: TargetConfig, inner: _native.Target, row_tables: Sequence[Weight]
    ) -> None:
        self._config = config
        self.inner = inner
        self._row_tables = row_tables
        self._tokens_read = 0

    @property
    def config(self) -> TargetConfig:
        return self._config

    def new_cache(self, max_length: int, max_draft_tokens: int) -> NativeKVCache:
        check_range("max_length", max_length, 1, self.config.context_length)
        check_range("max_draft_tokens", max_draft_tokens, 0, self.config.context_length)
        slack = max(max_draft_tokens + 1, ROWS_AT_ONCE)
        return NativeKVCache(self.inner.new_cache(max_length, slack))

    def forward(self, rows: Sequence[Rows]) -> list[PassOutput]:
        """One pass over the rows of one or more sequences.

        Raises:
            CacheError: a sequence would outgrow its cache. No cache has changed then.
            CheckpointError: the row of a token in the per-layer table is not finite. That table
                is too large to be looked through while loading.
        """
        for share in rows:
            assert share.token_ids
            assert 0 <= share.num_outputs <= len(share.token_ids)
            check_room(share.cache, len(share.token_ids))
        counts = [share.num_outputs for share in rows]
        try:
            logits, hidden, candidate_ids, candidate_logits = self.inner.forward(
                [native(share.cache) for share in rows],
                np.fromiter(chain.from_iterable(share.token_ids for share in rows), np.int32),
                [len(share.token_ids) for share in rows],
                counts,
                [share.num_candidates for share in rows],
            )
        except _native.NotFiniteError as error:
            raise CheckpointError(
                f"the model's per-layer embeddings are damaged: {error}. Download it again."
            ) from error
        self._forget_rows(sum(len(share.token_ids) for share in rows))
        candidates = [*map(Candidates, candidate_ids, candidate_logits)]
        return [
            PassOutput(
                logits=logits[first:end],
                hidden=[*hidden[first:end]],
                candidates=candidates[first:end],
            )
            for first, end in _spans(counts)
        ]

    def _forget_rows(self, num_tokens: int) -> None:
        self._tokens_read += num_tokens
        if self._tokens_read >= TOKENS_BEFORE_FORGETTING:
            self._tokens_read = 0
            for table in self._row_tables:
                table.forget()


def _spans(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    end = 0
    for count in counts:
        yield end, (end := end + count)


def hidden_row(hidden: object) -> NDArray[np.float32]:
    """A hidden state that `NativeTarget.forward` gave. [D]"""
    assert isinstance(hidden, np.ndarray)
    return hidden
