"""Decides how many tokens to draft. Asked once per sequence and round, told what came of it.

A policy never sees tokens or tensors, and cannot change the text: only the time it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paceline.config import check_range


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """What to draft in the coming round. `min_confidences`: see `StopRule`."""

    max_draft_tokens: int
    min_confidences: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What one sequence's round did, and how long it took.

    `ended` tells that the text ended inside the round: later draft tokens were not observed.
    """

    num_draft_tokens: int
    num_accepted_tokens: int
    ended: bool
    draft_s: float
    verify_s: float


class DraftLengthPolicy(Protocol):
    def plan(self) -> DraftPlan: ...

    def observe(self, outcome: RoundOutcome) -> None: ...


class FixedDraftLength:
    """Always the same length; 0 is plain decoding."""

    def __init__(self, num_draft_tokens: int, limit: int) -> None:
        check_range("draft length", num_draft_tokens, 0, limit)
        self._plan = DraftPlan(max_draft_tokens=num_draft_tokens)

    def plan(self) -> DraftPlan:
        return self._plan

    def observe(self, outcome: RoundOutcome) -> None:
        """A fixed length learns nothing."""
