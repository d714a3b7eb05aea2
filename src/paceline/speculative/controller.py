"""Decides how many tokens to draft. Asked once per sequence and round, told what came of it.

A policy never sees tokens or tensors, and cannot change the text: only the time it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from paceline.config import check_range


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """What to draft in the coming round. `min_confidences`: see `StopRule`."""

    max_draft_tokens: int
    min_confidences: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What one sequence's round did, and how long it took.

    Args:
        num_draft_tokens: how many were drafted and paid for.
        num_verified_tokens: how many of these the target has judged. It is fewer only where the
            text ended on an accepted token: what follows was neither accepted nor rejected.
        num_accepted_tokens: how many the target would have said itself; the bonus is not in it.
        draft_s: seconds that the drafts of all sequences of the round took.
        verify_s: seconds of the target's pass.
    """

    num_draft_tokens: int
    num_verified_tokens: int
    num_accepted_tokens: int
    draft_s: float
    verify_s: float


@runtime_checkable
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
