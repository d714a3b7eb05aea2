"""The native drafter: all steps of a draft are one call into C++ (reference section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from paceline.config import DrafterConfig
from paceline.errors import CheckpointError
from paceline.extension import _native
from paceline.runtime.native.cache import native
from paceline.runtime.protocols import MAX_DRAFT_TOKENS, Draft, DraftPosition, DraftRequest


class NativeDrafter:
    """Protocol `runtime.protocols.Drafter`.

    Args:
        inner: with all weights loaded.
    """

    max_draft_tokens = MAX_DRAFT_TOKENS

    def __init__(
        self,
        config: DrafterConfig,
        inner: _native.Drafter,
        position: DraftPosition = "last_written",
    ) -> None:
        self._config = config
        self.inner = inner
        self.position = position

    @property
    def config(self) -> DrafterConfig:
        return self._config

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """
        Raises:
            CheckpointError: a token's embedding cannot be read from the target's file any more.
        """
        try:
            return [self._draft_one(request) for request in requests]
        except _native.ReadError as error:
            raise CheckpointError(str(error)) from error

    def _draft_one(self, request: DraftRequest) -> Draft:
        length, rule, stop = request.cache.length, request.draw, request.stop
        assert isinstance(request.hidden, _native.Hidden)
        tokens, confidences = self.inner.draft(
            native(request.cache),
            request.last_token,
            request.hidden,
            request.max_draft_tokens,
            length - 1 if self.position == "last_written" else length,
            rule.temperature,
            rule.seed,
            rule.bias_ids,
            rule.biases,
            stop.min_confidences,
            _as_array(stop.end_token_ids),
        )
        return Draft(tokens=tuple(tokens), confidences=tuple(confidences))


@lru_cache(maxsize=64)
def _as_array(token_ids: frozenset[int]) -> NDArray[np.int64]:
    """The same few tokens end every turn of a model."""
    return np.array(sorted(token_ids), np.int64)
