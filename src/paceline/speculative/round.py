"""One round: draft, verify in one pass of the target, keep what the target itself would say.

The acceptance rule is `verify`. It compares tokens and nothing else (contract C2), so the text is
that of plain decoding whatever the drafter proposes. Knows no text, no tensors and no requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from paceline.runtime.protocols import (
    Draft,
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
from paceline.speculative.controller import (
    DraftContext,
    DraftLengthPolicy,
    DraftPlan,
    RoundCost,
    RoundOutcome,
    plan_round,
)
from paceline.speculative.sources import (
    DRAFTER,
    NOBODY,
    RoundCosts,
    TextDraft,
    TextSources,
    text_drafts,
)
from paceline.speculative.suffix import MAX_PROPOSAL


class RoundSequence(Protocol):
    """What a round needs of a sequence. `last_token` sits at position `cache.length`; `hidden` is
    the target's row that produced it."""

    sampler: Sampler
    policy: DraftLengthPolicy
    sources: TextSources | None
    last_token: int
    hidden: Hidden

    @property
    def cache(self) -> KVCache: ...

    @property
    def end_token_ids(self) -> frozenset[int]: ...

    @property
    def num_tokens_left(self) -> int:
        """How many more tokens may be emitted, at least 1."""

    @property
    def text_kind(self) -> str:
        """What is being written, see `DraftContext`."""

    def push(self, choice: Choice, *, drafted: bool) -> bool:
        """Take one emitted token. False: the text ends with it."""


class Verdict(NamedTuple):
    """What the target made of a draft.

    Args:
        token_ids: what is emitted, at least one token.
        num_verified_tokens: draft tokens that were judged, see `RoundOutcome`.
        num_accepted_tokens: draft tokens that are emitted.
    """

    token_ids: tuple[int, ...]
    num_verified_tokens: int
    num_accepted_tokens: int


class RoundDraft(NamedTuple):
    """One sequence's draft, who made it, and the steps of the drafter that it took."""

    source: str = NOBODY
    tokens: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    num_steps: int = 0


NO_TOKENS = RoundDraft()


def run_round(
    target: Target,
    drafter: Drafter | None,
    sequences: Sequence[RoundSequence],
    costs: RoundCosts | None = None,
) -> list[RoundOutcome]:
    """Advance every sequence by at least one token, with one pass of the target for all.

    Args:
        costs: what texts are weighed with; without them only the drafter drafts.

    If it raises, every cache still holds what it held before; `truncate` to that length.
    """
    started = time.perf_counter()
    contexts = [_context(drafter, sequence) for sequence in sequences]
    plans = plan_round([sequence.policy for sequence in sequences], contexts)
    texts: Sequence[TextDraft | None] = [None] * len(sequences)
    if costs is not None:
        texts = text_drafts([s.sources for s in sequences], contexts, plans, costs)
    planned = time.perf_counter()
    drafts = _drafts(drafter, sequences, contexts, plans, texts)
    drafted = time.perf_counter()
    outputs = target.forward(
        [_rows(sequence, draft) for sequence, draft in zip(sequences, drafts, strict=True)]
    )
    verified = time.perf_counter()
    verdicts = []
    num_rows = num_drafts = num_draft_steps = num_tokens = 0
    for sequence, draft, output in zip(sequences, drafts, outputs, strict=True):
        verdict = settle(sequence, draft.tokens, output)
        verdicts.append(verdict)
        num_rows += 1 + len(draft.tokens)
        num_drafts += draft.num_steps > 0
        num_draft_steps += draft.num_steps
        num_tokens += len(verdict.token_ids)
    cost = RoundCost(
        num_sequences=len(sequences),
        num_rows=num_rows,
        context_length=sum(context.context_length for context in contexts) // len(contexts),
        num_drafts=num_drafts,
        num_draft_steps=num_draft_steps,
        num_tokens=num_tokens,
        draft_s=drafted - planned,
        verify_s=verified - drafted,
        overhead_s=time.perf_counter() - verified + planned - started,
    )
    told = zip(sequences, plans, texts, drafts, verdicts, strict=True)
    return [_tell(*each, cost) for each in told]


def _tell(
    sequence: RoundSequence,
    plan: DraftPlan,
    text: TextDraft | None,
    draft: RoundDraft,
    verdict: Verdict,
    cost: RoundCost,
) -> RoundOutcome:
    if text is not None:
        plan = text.instead_of(plan)
    outcome = RoundOutcome(
        num_draft_tokens=len(draft.tokens),
        num_verified_tokens=verdict.num_verified_tokens,
        num_accepted_tokens=verdict.num_accepted_tokens,
        num_draft_steps=draft.num_steps,
        confidences=draft.confidences,
        source=draft.source,
        plan=plan,
        cost=cost,
    )
    sequence.policy.observe(outcome)
    return outcome


def _rows(sequence: RoundSequence, draft: RoundDraft) -> Rows:
    return Rows(
        cache=sequence.cache,
        token_ids=(sequence.last_token, *draft.tokens),
        num_outputs=1 + len(draft.tokens),
        num_candidates=sequence.sampler.num_candidates,
    )


def settle(sequence: RoundSequence, draft: Sequence[int], output: PassOutput) -> Verdict:
    """Emit what a pass over the last token and `draft` decides, and forget the rejected rows.

    Afterwards the cache holds all of the text but its last token, which the next pass feeds, and
    `hidden` is the row that produced that token (contract C4).
    """
    start = sequence.cache.length - len(draft)  # position of the first emitted token
    verdict = verify(sequence, draft, output, start)
    last = len(verdict.token_ids) - 1
    sequence.cache.truncate(start + last)
    sequence.last_token = verdict.token_ids[last]
    sequence.hidden = output.hidden[last]
    return verdict


def verify(
    sequence: RoundSequence,
    draft: Sequence[int],
    output: PassOutput,
    start: int,
) -> Verdict:
    """Emit the target's own token of each row, as long as the draft had foreseen it.

    The first token that the draft had not foreseen ends the round: the bonus token. A token that
    ends the text ends the round too, wherever in the draft it falls.

    Args:
        output: of K + 1 rows; row i follows the tokens up to and including `draft[:i]`.
        start: absolute position of the token that row 0 decides.

    Source: sample matching, reference section 1.6.
    """
    emitted: list[int] = []
    choices = _choices(sequence.sampler, output, start)
    for row, choice in enumerate(choices):
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


def _choices(sampler: Sampler, output: PassOutput, start: int) -> Iterator[Choice]:
    """The target's own token of each row, as long as one is asked for. No array is looked at where
    the order of the best tokens is enough."""
    row = 0
    while sampler.takes_order and (best := sampler.best_of(output.best_tokens(row))) is not None:
        yield Choice(best)
        row += 1
    logits, found = output.logits, map(Candidates, output.candidate_ids, output.candidate_logits)
    rows = enumerate(zip(logits, found, strict=True), start)
    for position, (scores, candidates) in islice(rows, row, None):
        yield sampler.choose(scores, position, candidates)


def _context(drafter: Drafter | None, sequence: RoundSequence) -> DraftContext:
    length = sequence.cache.length
    # The bonus token takes one of the tokens left, the last token one of the cache's positions.
    room = min(sequence.num_tokens_left, sequence.cache.max_length - length) - 1
    limit = drafter.max_draft_tokens if drafter else 0
    return DraftContext(
        room=max(0, min(room, limit)),
        context_length=length,
        kind=sequence.text_kind,
        text_room=max(0, min(room, MAX_PROPOSAL)),
    )


def _drafts(
    drafter: Drafter | None,
    sequences: Sequence[RoundSequence],
    contexts: Sequence[DraftContext],
    plans: Sequence[DraftPlan],
    texts: Sequence[TextDraft | None],
) -> list[RoundDraft]:
    """A draft per sequence, empty where none is asked for or only one token is left."""
    drafts, requests, places = [], [], []
    for sequence, context, plan, text in zip(sequences, contexts, plans, texts, strict=True):
        limit = min(plan.max_draft_tokens, context.room)
        if text is not None:
            drafts.append(RoundDraft(text.source, text.token_ids))
            continue
        if drafter is not None and limit > 0:
            requests.append(_request(sequence, plan, limit))
            places.append(len(drafts))
        drafts.append(NO_TOKENS)
    if drafter is not None and requests:
        vocab_size = drafter.config.vocab_size
        answers = zip(places, requests, drafter.draft(requests), strict=True)
        for place, request, draft in answers:
            drafts[place] = _usable(request, draft, vocab_size)
    return drafts


def _request(sequence: RoundSequence, plan: DraftPlan, limit: int) -> DraftRequest:
    return DraftRequest(
        last_token=sequence.last_token,
        hidden=sequence.hidden,
        cache=sequence.cache,
        max_draft_tokens=limit,
        draw=sequence.sampler.draw_rule,
        stop=StopRule(min_confidences=plan.min_confidences, end_token_ids=sequence.end_token_ids),
    )


def _usable(request: DraftRequest, draft: Draft, vocab_size: int) -> RoundDraft:
    """What the target can verify, should a broken drafter propose too much or no token at all."""
    limit, tokens = request.max_draft_tokens, draft.tokens
    ended = len(tokens) >= limit or (bool(tokens) and tokens[-1] in request.stop.end_token_ids)
    usable = tokens[:limit]
    for index, token_id in enumerate(usable):
        if not 0 <= token_id < vocab_size:
            usable = usable[:index]
            break
    return RoundDraft(
        source=DRAFTER if usable else NOBODY,
        tokens=usable,
        confidences=draft.confidences[: len(usable)],
        num_steps=min(len(tokens), limit) + (not ended),  # one more was made and held back
    )
