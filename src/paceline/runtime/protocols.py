"""What the engine needs of a runtime: a target, a drafter, and KV caches.

The engine sees these protocols and NumPy arrays, never a tensor library.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.config import DrafterConfig, TargetConfig

if TYPE_CHECKING:  # a model can be looked at where the extension module is missing
    from paceline.sampling import DrawRule

MAX_DRAFT_TOKENS = 15
"""Longest draft of any source: with the last token it fills a pass of 16 rows."""

Hidden = Any
"""One final-normed hidden row, opaque to the engine, handed from target to drafter."""

DraftPosition = Literal["last_written", "next"]
"""Where a round's draft steps stand when the cache holds N positions: N-1 or N (reference section
3.4)."""


class KVCache(Protocol):
    """Keys and values of one sequence."""

    @property
    def length(self) -> int:
        """Number of positions held."""

    @property
    def max_length(self) -> int:
        """Largest `length` that this cache may reach."""

    @property
    def shortest_truncation(self) -> int:
        """Smallest length > 0 that `truncate` accepts: sliding layers have forgotten the rest."""

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated now."""

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on. 0 empties the cache.

        Raises:
            CacheError: `length` is larger than now, or below `shortest_truncation`.
        """


class Rows(NamedTuple):
    """One sequence's share of a pass: tokens at positions `cache.length`, +1, ...

    Args:
        token_ids: the tokens to feed, at least one.
        num_outputs: logits and hidden states are wanted for this many last rows.
        num_candidates: so many candidates of each of these rows are of use. A runtime may give
            fewer, more, or none.
    """

    cache: KVCache
    token_ids: Sequence[int]
    num_outputs: int = 1
    num_candidates: int = 0


class PassOutput(Protocol):
    """Result for one `Rows`: of each row that an output is wanted for. A runtime may make an
    array each time that one is asked for."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """[num_outputs, V]"""

    @property
    def hidden(self) -> Sequence[Hidden]: ...

    @property
    def candidate_ids(self) -> NDArray[np.int32]:
        """[num_outputs, C], see `sampling.Candidates`; C is 0 where none are known."""

    @property
    def candidate_logits(self) -> NDArray[np.float32]:
        """[num_outputs, C]"""

    def best_tokens(self, row: int) -> Sequence[int]:
        """Ids of the row's candidates, best first, without those that are missing."""


class ArrayOutput(NamedTuple):
    """A `PassOutput` whose arrays are there."""

    logits: NDArray[np.float32]
    hidden: Sequence[Hidden]
    candidate_ids: NDArray[np.int32]
    candidate_logits: NDArray[np.float32]

    @classmethod
    def without_candidates(
        cls, logits: NDArray[np.float32], hidden: Sequence[Hidden]
    ) -> ArrayOutput:
        none = np.empty((len(logits), 0))
        return cls(logits, hidden, none.astype(np.int32), none.astype(np.float32))

    def best_tokens(self, row: int) -> Sequence[int]:
        return [*takewhile(lambda token_id: token_id >= 0, self.candidate_ids[row].tolist())]


class StopRule(NamedTuple):
    """When to stop drafting early: at the first token whose confidence is below the bound of its
    step (steps past the end of the tuple have no bound), or that ends the turn."""

    min_confidences: tuple[float, ...] = ()
    end_token_ids: frozenset[int] = frozenset()


class DraftRequest(NamedTuple):
    """Ask for a draft that continues `last_token`, which sits at position `cache.length`."""

    last_token: int
    hidden: Hidden
    cache: KVCache
    max_draft_tokens: int
    draw: DrawRule
    stop: StopRule = StopRule()


class Draft(NamedTuple):
    """Proposed tokens; `confidences` are top-2 margins of the drafter's noised scores."""

    tokens: tuple[int, ...]
    confidences: tuple[float, ...]


class Target(Protocol):
    @property
    def config(self) -> TargetConfig: ...

    def new_cache(self, max_length: int, max_draft_tokens: int) -> KVCache:
        """An empty cache whose rings survive the rejection of `max_draft_tokens` tokens."""

    def forward(self, rows: Sequence[Rows]) -> Sequence[PassOutput]:
        """One pass. Appends the keys and values of all rows; a row's bits depend on its own
        tokens and cache only (contract C1).

        If it raises, an interrupt too, each `length` counts whole positions only, and a cache
        that was given at most `max_draft_tokens` + 1 rows can be truncated to where it was.
        """


class Drafter(Protocol):
    @property
    def config(self) -> DrafterConfig: ...

    @property
    def max_draft_tokens(self) -> int:
        """Longest draft that this drafter may be asked for."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]: ...
