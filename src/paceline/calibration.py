"""A second of measuring: what passes of several rows and draft steps take on this machine.

Runs a scratch sequence through the runtime protocols. It is where a cost model starts from: rounds
refine it from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from paceline.runtime.protocols import (
    Drafter,
    DraftRequest,
    Hidden,
    KVCache,
    PassOutput,
    Rows,
    Target,
)
from paceline.sampling import DrawRule
from paceline.speculative.costs import is_usable

ROWS = (1, 2, 3, 5, 8, 16)
STEADY, STEADY_S, STEADY_ROUNDS = (1, 2), 0.002, 32
"""These run for so many seconds, and so many rounds at most, before they are measured: what ran
before had another shape, and left the processor's caches to it."""

PROMPT_TOKENS = 32
BUDGET_S = 1.0
MIN_SWEEPS, MAX_SWEEPS = 3, 100

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Lower quartiles of what was measured: what else runs on the machine only ever adds time.

    Args:
        passes: seconds of a pass of the target by its rows.
        draft: seconds of a draft however short, and of each step of it; None without a drafter.
        sweeps: how often each was measured.
        seconds: that it took in all.
    """

    passes: Mapping[int, float]
    draft: tuple[float, float] | None
    sweeps: int
    seconds: float


def calibrate(
    target: Target,
    drafter: Drafter | None,
    token_ids: Sequence[int],
    *,
    budget_s: float = BUDGET_S,
    clock: Clock = time.perf_counter,
) -> Calibration | None:
    """Measure in turn, until the budget is used or everything was measured 100 times, and at least
    three times. None if the clock gave nothing to go by.

    Args:
        token_ids: of some text: experts, caches and clusters are used as by real ones.
    """
    begun = clock()
    scratch = _Scratch(target, drafter, token_ids, clock)
    passes: dict[int, list[float]] = {rows: [] for rows in scratch.rows}
    drafts: dict[int, list[float]] = {}
    started, sweeps = clock(), 0
    while sweeps < MIN_SWEEPS or (sweeps < MAX_SWEEPS and clock() - started < budget_s):
        for rows in passes:
            if rows in STEADY:
                scratch.settle(rows)
            steps, draft_s, pass_s = scratch.round_s(rows)
            passes[rows].append(pass_s)
            if steps:
                drafts.setdefault(steps, []).append(draft_s)
        sweeps += 1
    known = {rows: usual for rows, taken in passes.items() if (usual := _usual(taken))}
    if 1 not in known:
        return None
    known = {rows: min(usual, rows * known[1]) for rows, usual in known.items()}
    seconds = max(0.0, clock() - begun)
    return Calibration(passes=known, draft=_line(drafts), sweeps=sweeps, seconds=seconds)


class _Scratch:
    """A short text whose end is measured again and again."""

    def __init__(
        self, target: Target, drafter: Drafter | None, token_ids: Sequence[int], clock: Clock
    ) -> None:
        room = target.config.context_length
        length = max(1, min(PROMPT_TOKENS, room - 1))
        self.rows = [rows for rows in ROWS if length + rows <= room]
        self._limit = drafter.max_draft_tokens if drafter else 0
        self._target, self._drafter, self._clock = target, drafter, clock
        self._token_ids = list(islice(cycle(token_ids), length + max(ROWS)))
        self._length = length
        self._cache: KVCache = target.new_cache(length + max(self.rows), max(self.rows))
        self._hidden: Hidden = self._feed(self._token_ids[:length], num_outputs=1).hidden[0]
        self.pass_s(max(self.rows))  # the first pass of a shape may allocate

    def _feed(self, token_ids: Sequence[int], num_outputs: int) -> PassOutput:
        rows = Rows(cache=self._cache, token_ids=token_ids, num_outputs=num_outputs)
        return self._target.forward([rows])[0]

    def round_s(self, rows: int) -> tuple[int, float, float]:
        """A draft and its pass, as a round has them: the draft's steps, its seconds, the pass's."""
        steps = min(rows - 1, self._limit)
        draft_s = self.draft_s(steps) if steps else 0.0
        return steps, draft_s, self.pass_s(rows)

    def settle(self, rows: int) -> None:
        """Run rounds of this shape until the caches hold what they need."""
        started = self._clock()
        for _ in range(STEADY_ROUNDS):
            self.round_s(rows)
            if self._clock() - started >= STEADY_S:
                break

    def pass_s(self, rows: int) -> float:
        token_ids = self._token_ids[self._length : self._length + rows]
        started = self._clock()
        self._feed(token_ids, num_outputs=rows)
        taken = self._clock() - started
        self._cache.truncate(self._length)
        return taken

    def draft_s(self, steps: int) -> float:
        assert self._drafter is not None
        request = DraftRequest(
            last_token=self._token_ids[self._length],
            hidden=self._hidden,
            cache=self._cache,
            max_draft_tokens=steps,
            draw=DrawRule(temperature=0.0, seed=0),
        )
        started = self._clock()
        self._drafter.draft([request])
        return self._clock() - started


def _usual(taken: Sequence[float]) -> float:
    """The lower quartile of what a clock that stood or went back did not spoil; 0 if that is
    nothing."""
    usable = sorted(seconds for seconds in taken if is_usable(seconds))
    return usable[len(usable) // 4] if usable else 0.0


def _line(drafts: Mapping[int, Sequence[float]]) -> tuple[float, float] | None:
    """The fixed part and the slope of seconds over steps."""
    points = [(steps, _usual(taken)) for steps, taken in drafts.items()]
    points = [(steps, seconds) for steps, seconds in points if seconds > 0.0]
    if not points:
        return None
    (first, first_s), (last, last_s) = points[0], points[-1]
    if last == first or last_s <= first_s:
        return 0.0, first_s / first
    slope = min((last_s - first_s) / (last - first), first_s / first)
    return first_s - slope * first, slope
