"""Measures passes, prefill, decoding, drafts and rounds of a pair, in turn with llama.cpp.

Whatever is compared stands next to each other in time: within a repeat the two sides alternate,
and the order turns round from repeat to repeat. The first repeat warms up and is dropped.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Protocol

from llama_cpp_worker import LlamaCpp
from paceline.config import TargetConfig
from paceline.engine import PREFILL_CHUNK, Engine
from paceline.loading import LoadedPair
from paceline.runtime.protocols import (
    Draft,
    Drafter,
    DraftRequest,
    KVCache,
    PassOutput,
    Rows,
    Target,
)
from paceline.sampling import SamplingParams
from wrapped_drafter import WrappedDrafter

GREEDY = SamplingParams(temperature=0.0, seed=0)
WARM_UP_REPEATS = 1


class Side(Protocol):
    """One of the two that are compared: a target with one sequence."""

    @property
    def name(self) -> str: ...

    def feed(self, token_ids: Sequence[int], num_outputs: int) -> float:
        """One pass; the seconds that it took."""

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""


class Paceline:
    """Our target, through the interface that the engine uses."""

    name = "paceline"

    def __init__(self, target: Target, max_length: int, max_rows: int) -> None:
        self.target = target
        self.cache = target.new_cache(max_length, max_rows)

    def feed(self, token_ids: Sequence[int], num_outputs: int) -> float:
        rows = Rows(cache=self.cache, token_ids=token_ids, num_outputs=num_outputs)
        started = time.perf_counter()
        self.target.forward([rows])
        return time.perf_counter() - started

    def truncate(self, length: int) -> None:
        self.cache.truncate(length)


class LlamaSide:
    """The same file in llama.cpp."""

    name = "llama_cpp"

    def __init__(self, worker: LlamaCpp) -> None:
        self.worker = worker

    def feed(self, token_ids: Sequence[int], num_outputs: int) -> float:
        answer = self.worker.ask("feed", token_ids=list(token_ids), num_outputs=num_outputs)
        return float(answer["s"])

    def truncate(self, length: int) -> None:
        self.worker.ask("truncate", length=length)


# --- Passes and prefill -------------------------------------------------------------------------

Samples = dict[str, dict[int, list[float]]]
"""Seconds by side and number of rows, a value for each repeat."""


def in_turn(
    repeats: int, *groups: Sequence[Any], every: Callable[[], None] = lambda: None
) -> Iterator[tuple[bool, tuple[Any, ...]]]:
    """(whether it counts, one of each group) for all combinations, the last group fastest.

    Args:
        every: called after each repeat that counts.
    """
    for repeat in range(WARM_UP_REPEATS + repeats):
        counts = repeat >= WARM_UP_REPEATS
        for item in _combinations([group[:: 1 if repeat % 2 else -1] for group in groups]):
            yield counts, item
        if counts:
            every()


def _combinations(groups: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    if not groups:
        yield ()
        return
    for first in groups[0]:
        for rest in _combinations(groups[1:]):
            yield (first, *rest)


def measure_rows(
    sides: Sequence[Side],
    context: Sequence[int],
    following: Sequence[int],
    rows: Sequence[int],
    repeats: int,
    every: Callable[[], None] = lambda: None,
) -> Samples:
    """Seconds of a pass over M rows after a context, scores of all rows wanted.

    Each is run twice and the second counts: the first finds the other side's data in the caches.
    """
    for side in sides:
        prefill(side, context)
    samples: Samples = {side.name: defaultdict(list) for side in sides}
    for counts, (number, side) in in_turn(repeats, rows, sides, every=every):
        for _ in range(2):
            elapsed = side.feed(following[:number], number)
            side.truncate(len(context))
        if counts:
            samples[side.name][number].append(elapsed)
    return samples


def prefill(side: Side, token_ids: Sequence[int], chunk: int = PREFILL_CHUNK) -> float:
    """Feed a prompt from the start, the last row's scores wanted. Returns the seconds."""
    side.truncate(0)
    if isinstance(side, LlamaSide):
        chunk = 512  # its own
    starts = range(0, len(token_ids), chunk)
    return sum(
        side.feed(token_ids[start : start + chunk], int(start == starts[-1])) for start in starts
    )


def measure_prefill(
    sides: Sequence[Side], token_ids: Sequence[int], repeats: int
) -> dict[str, list[float]]:
    """Seconds of a prompt by side."""
    samples: dict[str, list[float]] = {side.name: [] for side in sides}
    for counts, (side,) in in_turn(repeats, sides):
        elapsed = prefill(side, token_ids)
        if counts:
            samples[side.name].append(elapsed)
    return samples


# --- Decoding and rounds ------------------------------------------------------------------------


@dataclass(kw_only=True)
class Clock:
    """Seconds inside the runtime, by kind of call."""

    forward: list[float] = field(default_factory=list)
    draft: list[float] = field(default_factory=list)


class TimedTarget:
    """A target that counts the time of its passes."""

    def __init__(self, inner: Target, clock: Clock) -> None:
        self.inner = inner
        self.clock = clock

    @property
    def config(self) -> TargetConfig:
        return self.inner.config

    def new_cache(self, max_length: int, max_draft_tokens: int) -> KVCache:
        return self.inner.new_cache(max_length, max_draft_tokens)

    def forward(self, rows: Sequence[Rows]) -> Sequence[PassOutput]:
        started = time.perf_counter()
        outputs = self.inner.forward(rows)
        self.clock.forward.append(time.perf_counter() - started)
        return outputs


class TimedDrafter(WrappedDrafter):
    """Runs the real drafter and counts its time, but proposes what the target will say.

    So every round emits a whole draft, which is where the most work outside the runtime is.
    """

    def __init__(self, inner: Drafter, clock: Clock) -> None:
        super().__init__(inner)
        self.clock = clock
        self.text: tuple[int, ...] = ()  # prompt and answer

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        started = time.perf_counter()
        self.inner.draft(requests)
        self.clock.draft.append(time.perf_counter() - started)
        return [self._coming(request) for request in requests]

    def _coming(self, request: DraftRequest) -> Draft:
        first = request.cache.length + 1
        tokens = self.text[first : first + request.max_draft_tokens]
        return Draft(tokens=tokens, confidences=(1.0,) * len(tokens))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, decoded round by round.

    Args:
        rounds_s: wall clock of the rounds whose draft had the full length.
        outside_s: the part of each of them that was not spent inside the runtime.
        draft_s: of these rounds' drafts.
    """

    token_ids: tuple[int, ...]
    rounds_s: tuple[float, ...]
    outside_s: tuple[float, ...]
    draft_s: tuple[float, ...]
    decode_s: float

    @property
    def decode_tps(self) -> float:
        return (len(self.token_ids) - 1) / self.decode_s


class Decoder:
    """Answers one prompt again and again, plain or with drafts.

    Args:
        context: the prompt. Its cache is kept between answers.
    """

    def __init__(self, pair: LoadedPair, context: Sequence[int]) -> None:
        ends = tuple(pair.defaults.eos_token_ids)
        defaults = replace(pair.defaults, suppressed_token_ids=ends)  # no answer ends early
        self.context = tuple(context)
        self.clock = Clock()
        self.drafter = TimedDrafter(pair.drafter, self.clock) if pair.drafter else None
        target = TimedTarget(pair.target, self.clock)
        timed = replace(pair, defaults=defaults, target=target, drafter=self.drafter)
        self.engine = Engine(timed, kept_caches=1)

    def know(self, answer: Answer) -> None:
        """Let the drafter propose this answer."""
        if self.drafter:
            self.drafter.text = (*self.context, *answer.token_ids)

    def answer(self, num_tokens: int, draft: int = 0) -> Answer:
        """Answer the prompt with so many tokens."""
        sequence = self.engine.open(
            self.context, sampling=GREEDY, max_tokens=num_tokens, draft=draft
        )
        self.engine.prefill(sequence)
        whole: list[tuple[float, float, float]] = []
        while sequence.finish_reason is None:
            before = len(sequence.tokens)
            total, inside, drafted = self._step(sequence)
            if len(sequence.tokens) - before == draft + 1:
                whole.append((total, inside, drafted))
        self.engine.close(sequence)
        return Answer(
            token_ids=tuple(token.token_id for token in sequence.tokens),
            rounds_s=tuple(total for total, _, _ in whole),
            outside_s=tuple(total - inside for total, inside, _ in whole),
            draft_s=tuple(drafted for _, _, drafted in whole if draft),
            decode_s=sequence.stats.decode_s,
        )

    def _step(self, sequence: Any) -> tuple[float, float, float]:
        """One round: seconds in all, inside the runtime, and of the draft."""
        clock = self.clock
        clock.forward.clear()
        clock.draft.clear()
        started = time.perf_counter()
        self.engine.step([sequence])
        total = time.perf_counter() - started
        return total, sum(clock.forward) + sum(clock.draft), sum(clock.draft)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What decoding costs.

    Args:
        tps: tokens a second by side, a value for each repeat.
        outside_s: seconds outside the runtime of each drafting round, and its share of the round.
        draft_step_s: seconds of one step of the drafter, by round.
        equal: drafting changed no token.
    """

    tps: dict[str, list[float]]
    outside_s: list[float]
    outside_share: list[float]
    plain_outside_s: list[float]
    draft_step_s: list[float]
    equal: bool


def measure_decoding(
    pair: LoadedPair,
    context: Sequence[int],
    num_tokens: int,
    draft: int,
    repeats: int,
    llama: LlamaCpp | None = None,
) -> Decoding:
    """Plain and drafted answers, in turn with llama.cpp's plain ones."""
    decoder = Decoder(pair, context)
    plain = decoder.answer(num_tokens + 1)
    decoder.know(plain)
    result = Decoding(
        tps={"paceline": []} | ({"llama_cpp": []} if llama else {}),
        outside_s=[],
        outside_share=[],
        plain_outside_s=[],
        draft_step_s=[],
        equal=True,
    )
    equal = True
    kinds = ["plain"] + ["llama_cpp"] * bool(llama) + ["drafted"] * bool(pair.drafter and draft)
    for counts, (kind,) in in_turn(repeats, kinds):
        if kind == "llama_cpp":
            assert llama is not None
            tps = _llama_decode(llama, context, num_tokens)
            if counts:
                result.tps["llama_cpp"].append(tps)
            continue
        answer = decoder.answer(num_tokens + 1, draft if kind == "drafted" else 0)
        equal = equal and answer.token_ids == plain.token_ids
        if counts:
            _record(result, answer, draft if kind == "drafted" else 0)
    return replace(result, equal=equal)


def _record(result: Decoding, answer: Answer, draft: int) -> None:
    if not draft:
        result.tps["paceline"].append(answer.decode_tps)
        result.plain_outside_s.extend(answer.outside_s)
        return
    result.outside_s.extend(answer.outside_s)
    pairs = zip(answer.outside_s, answer.rounds_s, strict=True)
    result.outside_share.extend(outside / total for outside, total in pairs)
    result.draft_step_s.extend(seconds / draft for seconds in answer.draft_s)


def _llama_decode(llama: LlamaCpp, context: Sequence[int], num_tokens: int) -> float:
    """llama.cpp holds the context already but for its last token."""
    llama.ask("truncate", length=len(context) - 1)
    answer = llama.ask("decode", first=context[-1], count=num_tokens)
    return num_tokens / float(answer["s"])


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None
