"""Medians, spreads and totals of runs, by prompt and by kind.

A ratio compares two runs of the same repeat, which stood next to each other in time; the ratio of
a prompt is the median over its repeats, that of a kind the median over its prompts. Acceptance
length is totals over totals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from paceline.bench.measure import Run
from paceline.stats import GenerationStats

if TYPE_CHECKING:
    from paceline.engine import DraftLength

ALL_KINDS = "all"
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, lowest and highest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        if not values:
            return None
        return cls(median=median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One prompt with one draft length. `ratio` is its speed over that with drafting off, `noise`
    that of drafting off over itself in the next repeat."""

    prompt: str
    kind: str
    draft: DraftLength
    decode_tps: Spread | None
    ratio: Spread | None
    noise: Spread | None
    acceptance_length: float | None
    equal: bool
    generated_tokens: int  # of one repeat
    totals: GenerationStats  # of all repeats


@dataclass(frozen=True, kw_only=True)
class KindSummary:
    """All prompts of a kind with one draft length; spreads are over prompts, and over the repeats
    where there is one prompt only."""

    kind: str
    draft: DraftLength
    num_prompts: int
    decode_tps: Spread | None
    ratio: Spread | None
    worst_prompt: str | None
    acceptance_length: float | None
    equal: bool


def summarise(runs: Sequence[Run]) -> list[RunSummary]:
    """One summary for each run, in the same order."""
    off = {run.prompt.name: run for run in runs if run.draft == 0}
    return [_summary(run, off[run.prompt.name]) for run in runs]


def _summary(run: Run, off: Run) -> RunSummary:
    totals = total(run.repeats)
    return RunSummary(
        prompt=run.prompt.name,
        kind=run.prompt.kind,
        draft=run.draft,
        decode_tps=Spread.of([s.decode_tps for s in run.repeats if s.decode_tps is not None]),
        ratio=Spread.of(_ratios(run.repeats, off.repeats)),
        noise=Spread.of(_ratios(off.repeats, off.repeats[1:])),
        acceptance_length=totals.acceptance_length,
        equal=run.equal,
        generated_tokens=len(run.output.token_ids),
        totals=totals,
    )


def _ratios(run: Sequence[GenerationStats], off: Sequence[GenerationStats]) -> list[float]:
    return [
        one.decode_tps / other.decode_tps
        for one, other in zip(run, off, strict=False)
        if one.decode_tps and other.decode_tps
    ]


def total(stats: Iterable[GenerationStats]) -> GenerationStats:
    summed = GenerationStats(generations=0)
    for one in stats:
        summed.add(one)
    return summed


def by_kind(summaries: Sequence[RunSummary]) -> list[KindSummary]:
    """The same by kind, in order of appearance; last of all kinds, where there are several."""
    kinds = list(dict.fromkeys(summary.kind for summary in summaries))
    drafts = list(dict.fromkeys(summary.draft for summary in summaries))
    groups = [
        (kind, draft, [s for s in summaries if s.kind == kind and s.draft == draft])
        for kind in kinds
        for draft in drafts
    ]
    if len(kinds) > 1:
        groups += [
            (ALL_KINDS, draft, [s for s in summaries if s.draft == draft]) for draft in drafts
        ]
    return [_kind_summary(kind, draft, group) for kind, draft, group in groups]


def _kind_summary(kind: str, draft: DraftLength, group: Sequence[RunSummary]) -> KindSummary:
    worst = worst_run(group)
    return KindSummary(
        kind=kind,
        draft=draft,
        num_prompts=len(group),
        decode_tps=_over_prompts([s.decode_tps for s in group if s.decode_tps]),
        ratio=_over_prompts([s.ratio for s in group if s.ratio]),
        worst_prompt=worst.prompt if worst else None,
        acceptance_length=total(s.totals for s in group).acceptance_length,
        equal=all(s.equal for s in group),
    )


def _over_prompts(spreads: Sequence[Spread]) -> Spread | None:
    return spreads[0] if len(spreads) == 1 else Spread.of([spread.median for spread in spreads])


def worst_run(summaries: Iterable[RunSummary]) -> RunSummary | None:
    """The drafting run with the lowest ratio; None if no ratio was measured."""
    measured = [(s.ratio.median, s) for s in summaries if s.draft and s.ratio]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


@dataclass(frozen=True, kw_only=True)
class AutoAgainstBest:
    """How drafting by measured costs compares with the fixed length that was best for a kind;
    of all kinds, with the best length for each of them."""

    kind: str
    best: str
    ratio: float


def auto_against_best(summaries: Sequence[RunSummary]) -> list[AutoAgainstBest]:
    """Seconds a token over all prompts of a kind; none without auto or a fixed length."""
    compared, auto_s, best_s = [], 0.0, 0.0
    for kind in dict.fromkeys(summary.kind for summary in summaries):
        seconds: dict[DraftLength, float] = {}
        for summary in summaries:
            if summary.kind == kind:
                seconds[summary.draft] = seconds.get(summary.draft, 0.0) + summary.totals.decode_s
        auto = seconds.pop(AUTO, 0.0)
        if not auto or len(seconds) < 2 or not all(seconds.values()):
            return []
        best = min(seconds, key=lambda draft: seconds[draft])
        compared.append(_against(kind, str(best) if best else "off", seconds[best], auto))
        auto_s, best_s = auto_s + auto, best_s + seconds[best]
    if len(compared) > 1:
        compared.append(_against(ALL_KINDS, "the best of each kind", best_s, auto_s))
    return compared


def _against(kind: str, best: str, best_s: float, auto_s: float) -> AutoAgainstBest:
    return AutoAgainstBest(kind=kind, best=best, ratio=best_s / auto_s)


def slower_runs(summaries: Iterable[RunSummary], least: float = 0.98) -> list[RunSummary]:
    """Runs of auto that are below `least` of drafting off, by more than drafting off is below
    itself."""
    return [
        s
        for s in summaries
        if s.draft == AUTO
        and s.ratio
        and s.ratio.median < least - max(0.0, 1.0 - s.noise.low if s.noise else 0.0)
    ]
