"""One round: draft, verify in one pass of the target, keep what the target itself would say.

The acceptance rule is `verify`. It compares tokens and nothing else (contract C2), so the text is
that of plain decoding whatever the drafter proposes. Knows no text, no tensors and no requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.runtime.protocols import (
    Drafter,
    DraftRequest,
    Hidden,
    KVCache,
    PassOutput,
    Rows,
    StopRule,
    Target,
)
from paceline.sampling import Candidates, Choice, Sampler
from paceline.speculative.controller import DraftLengthPolicy, RoundOutcome


class RoundSequence(Protocol):
    """What a round needs of a sequence. `last_token` sits at position `cache.length`; `hidden` is
    the target's row that produced it."""

    sampler: Sampler
    policy: DraftLengthPolicy
    last_token: int
    hidden: Hidden

    @property
    def cache(self) -> KVCache: ...

    @property
    def end_token_ids(self) -> frozenset[int]: ...

    @property
    def num_tokens_left(self) -> int:
        """How many more tokens may be emitted, at least 1."""

    def push(self, choice: Choice, *, drafted: bool) -> bool:
        """Take one emitted token. False: the text ends with it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the target made of a draft.

    Args:
        token_ids: what is emitted, at least one token.
        num_verified_tokens: draft tokens that were judged, see `RoundOutcome`.
        num_accepted_tokens: draft tokens that are emitted.
    """

    token_ids: tuple[int, ...]
    num_verified_tokens: int
    num_accepted_tokens: int


def run_round(
    target: Target, drafter: Drafter | None, sequences: Sequence[RoundSequence]
) -> list[RoundOutcome]:
    """Advance every sequence by at least one token, with one pass of the target for all.

    If it raises, every cache still holds what it held before; `truncate` to that length.
    """
    started = time.perf_counter()
    drafts = _drafts(drafter, sequences) if drafter else [()] * len(sequences)
    drafted = time.perf_counter()
    outputs = target.forward(
        [
            Rows(
                cache=s.cache,
                token_ids=(s.last_token, *draft),
                num_outputs=1 + len(draft),
                num_candidates=s.sampler.num_candidates,
            )
            for s, draft in zip(sequences, drafts, strict=True)
        ]
    )
    verified = time.perf_counter()
    outcomes = []
    for sequence, draft, output in zip(sequences, drafts, outputs, strict=True):
        verdict = settle(sequence, draft, output)
        outcome = RoundOutcome(
            num_draft_tokens=len(draft),
            num_verified_tokens=verdict.num_verified_tokens,
            num_accepted_tokens=verdict.num_accepted_tokens,
            draft_s=drafted - started,
            verify_s=verified - drafted,
        )
        sequence.policy.observe(outcome)
        outcomes.append(outcome)
    return outcomes


def settle(sequence: RoundSequence, draft: Sequence[int], output: PassOutput) -> Verdict:
    """Emit what a pass over the last token and `draft` decides, and forget the rejected rows.

    Afterwards the cache holds all of the text but its last token, which the next pass feeds, and
    `hidden` is the row that produced that token (contract C4).
    """
    start = sequence.cache.length - len(draft)  # position of the first emitted token
    verdict = verify(sequence, draft, output.logits, start, output.candidates)
    last = len(verdict.token_ids) - 1
    sequence.cache.truncate(start + last)
    sequence.last_token = verdict.token_ids[last]
    sequence.hidden = output.hidden[last]
    return verdict


def verify(
    sequence: RoundSequence,
    draft: Sequence[int],
    logits: NDArray[np.float32],
    start: int,
    candidates: Sequence[Candidates] | None = None,
) -> Verdict:
    """Emit the target's own token of each row, as long as the draft had foreseen it.

    The first token that the draft had not foreseen ends the round: the bonus token. A token that
    ends the text ends the round too, wherever in the draft it falls.

    Args:
        logits: [K + 1, V]; row i follows the tokens up to and including `draft[:i]`.
        start: absolute position of the token that row 0 decides.
        candidates: of each row, if the runtime gave any.

    Source: sample matching, reference section 1.6.
    """
    emitted: list[int] = []
    for row, scores in enumerate(logits):
        found = candidates[row] if candidates else None
        choice = sequence.sampler.choose(scores, start + row, found)
        sequence.sampler.commit(choice.token_id)
        emitted.append(choice.token_id)
        accepted = row < len(draft) and draft[row] == choice.token_id
        goes_on = sequence.push(choice, drafted=accepted)
        if not accepted:
            return Verdict(
                token_ids=tuple(emitted),
                num_verified_tokens=len(draft),
                num_accepted_tokens=row,
            )
        if not goes_on:
            break
    return Verdict(
        token_ids=tuple(emitted),
        num_verified_tokens=len(emitted),
        num_accepted_tokens=len(emitted),
    )


def _drafts(drafter: Drafter, sequences: Sequence[RoundSequence]) -> list[tuple[int, ...]]:
    """A draft per sequence, empty where none is asked for or only one token is left."""
    requests = [_request(drafter, sequence) for sequence in sequences]
    asked = [request for request in requests if request]
    answers = iter(drafter.draft(asked) if asked else [])
    vocab_size = drafter.config.vocab_size
    return [
        _usable(next(answers).tokens, request.max_draft_tokens, vocab_size) if request else ()
        for request in requests
    ]


def _request(drafter: Drafter, sequence: RoundSequence) -> DraftRequest | None:
    plan = sequence.policy.plan()
    # The bonus token takes one of the tokens left, the last token one of the cache's positions.
    room = min(sequence.num_tokens_left, sequence.cache.max_length - sequence.cache.length) - 1
    limit = min(plan.max_draft_tokens, drafter.max_draft_tokens, room)
    if limit <= 0:
        return None
    return DraftRequest(
        last_token=sequence.last_token,
        hidden=sequence.hidden,
        cache=sequence.cache,
        max_draft_tokens=limit,
        draw=sequence.sampler.draw_rule,
        stop=StopRule(min_confidences=plan.min_confidences, end_token_ids=sequence.end_token_ids),
    )


def _usable(draft: Sequence[int], limit: int, vocab_size: int) -> tuple[int, ...]:
    """What the target can verify, should a broken drafter propose too much or no token at all."""
    return tuple(takewhile(lambda token_id: 0 <= token_id < vocab_size, draft[:limit]))
