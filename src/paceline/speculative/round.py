"""One round: draft, verify in one pass of the target, keep what the target itself would say.

The acceptance rule is `verify`. It compares tokens and nothing else (contract C2), so the text is
that of plain decoding whatever the drafter proposes. Knows no text, no tensors and no requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.runtime.protocols import (
    Drafter,
    DraftRequest,
    Hidden,
    KVCache,
    Rows,
    StopRule,
    Target,
)
from paceline.sampling import Choice, Sampler
from paceline.speculative.controller import DraftLengthPolicy, RoundOutcome


class RoundSequence(Protocol):
    """What a round needs of a sequence. `last_token` sits at position `cache.length`; `hidden` is
    the target's row that produced it."""

    cache: KVCache
    sampler: Sampler
    policy: DraftLengthPolicy
    last_token: int
    hidden: Hidden

    @property
    def end_token_ids(self) -> frozenset[int]: ...

    @property
    def num_tokens_left(self) -> int:
        """How many more tokens may be emitted, at least 1."""

    def push(self, choice: Choice, *, drafted: bool) -> bool:
        """Take one emitted token. False: the text ends with it."""


def run_round(
    target: Target, drafter: Drafter | None, sequences: Sequence[RoundSequence]
) -> list[RoundOutcome]:
    """Advance every sequence by at least one token, with one pass of the target for all."""
    started = time.perf_counter()
    drafts = _draft(drafter, sequences) if drafter else [()] * len(sequences)
    drafted = time.perf_counter()
    outputs = target.forward(
        [
            Rows(
                cache=sequence.cache,
                token_ids=(sequence.last_token, *draft),
                num_outputs=1 + len(draft),
            )
            for sequence, draft in zip(sequences, drafts, strict=True)
        ]
    )
    verified = time.perf_counter()
    outcomes = []
    for sequence, draft, output in zip(sequences, drafts, outputs, strict=True):
        start = sequence.cache.length - len(draft)  # position of the first emitted token
        emitted, going_on = verify(sequence, draft, output.logits, start)
        sequence.cache.truncate(start + len(emitted) - 1)
        sequence.last_token = emitted[-1]
        sequence.hidden = output.hidden[len(emitted) - 1]
        outcome = RoundOutcome(
            num_draft_tokens=len(draft),
            num_accepted_tokens=min(count_matches(draft, emitted), len(draft)),
            ended=not going_on,
            draft_s=drafted - started,
            verify_s=verified - drafted,
        )
        sequence.policy.observe(outcome)
        outcomes.append(outcome)
    return outcomes


def verify(
    sequence: RoundSequence,
    draft: Sequence[int],
    logits: NDArray[np.float32],
    start: int,
) -> tuple[list[int], bool]:
    """Emit the target's own token of each row, as long as the draft had foreseen it.

    Args:
        logits: [K + 1, V]; row i follows the tokens up to and including `draft[:i]`.
        start: absolute position of the token that row 0 decides.

    Returns:
        The emitted tokens, and whether the sequence goes on.
    """
    emitted: list[int] = []
    for row, scores in enumerate(logits):
        choice = sequence.sampler.choose(scores, start + row)
        sequence.sampler.commit(choice.token_id)
        accepted = row < len(draft) and draft[row] == choice.token_id
        emitted.append(choice.token_id)
        if not sequence.push(choice, drafted=accepted):
            return emitted, False
        if not accepted:
            break
    return emitted, True


def count_matches(draft: Sequence[int], emitted: Sequence[int]) -> int:
    """How many draft tokens were emitted: the length of the common prefix."""
    matches = 0
    for proposed, token in zip(draft, emitted, strict=False):
        if proposed != token:
            break
        matches += 1
    return matches


def _draft(drafter: Drafter, sequences: Sequence[RoundSequence]) -> list[tuple[int, ...]]:
    """A draft per sequence, empty where its policy asks for none or only one token is left."""
    requests: list[DraftRequest] = []
    drafts: list[tuple[int, ...]] = [()] * len(sequences)
    asked: list[int] = []
    for index, sequence in enumerate(sequences):
        plan = sequence.policy.plan()
        room = min(
            sequence.num_tokens_left - 1, sequence.cache.max_length - sequence.cache.length - 1
        )
        limit = min(plan.max_draft_tokens, drafter.max_draft_tokens, room)
        if limit <= 0:
            continue
        asked.append(index)
        requests.append(
            DraftRequest(
                last_token=sequence.last_token,
                hidden=sequence.hidden,
                cache=sequence.cache,
                max_draft_tokens=limit,
                draw=sequence.sampler.draw_rule,
                stop=StopRule(
                    min_confidences=plan.min_confidences, end_token_ids=sequence.end_token_ids
                ),
            )
        )
    for index, draft in zip(asked, drafter.draft(requests) if requests else [], strict=True):
        drafts[index] = draft.tokens
    return drafts
