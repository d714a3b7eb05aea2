"""What a pass, a draft and the rest of a round cost on this machine, learned while rounds run.

Every pass feeds the cell of its own shape: rows, context length and sequences by powers of two.
Cells move in small steps to what passes take undisturbed, so that a hiccup moves nothing; what was
not measured is the nearest measured shape, scaled. Knows no tokens, and no clock: it is told
seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from paceline.config import check_range
from paceline.errors import ConfigError
from paceline.runtime.protocols import MAX_DRAFT_TOKENS
from paceline.speculative.controller import RoundCost
from paceline.speculative.kept_values import (
    fields_of,
    flag_of,
    format_of,
    list_of,
    number_of,
    whole_of,
)

Points = Sequence[tuple[int, float]]
"""Rows, ascending, and seconds."""

MAX_ROWS = 1024
MIN_SECONDS, LEAST_MEASURED, MAX_SECONDS = 1e-9, 1e-7, 600.0
MAX_BUCKETS = 256

SHORT_CONTEXT = 512
"""Contexts up to here are alike: attention is not yet seen in the time of a pass."""

UNKNOWN_SHAPE = ((1, 1.0), (2, 1.1), (16, 2.5))
"""Cost of a pass by rows before anything is known: a machine with middling kernels."""

UNKNOWN_DRAFT = (0.02, 0.05)
"""A draft, and each step of it, in plain passes."""

UNKNOWN_OVERHEAD = 0.01

NUM_RECENT = 5
"""Samples that are remembered: two hiccups among them leave the median alone."""

RECENT_PASSES, FEWEST_PASSES = 8, 3
ESTABLISHED, LEAST_LOAD = 16, 1.3
"""After 16 samples a cell is believed, and what differs from it by so much is taken for load."""

LASTING_S = 10.0
"""Seconds of passes after which a load is the machine as it is now."""

TRUST_GROWS = (4, 8, ESTABLISHED)
"""With so many samples a cell is believed more than before, even if they say the same."""

LEAST_RATE, LARGEST_STEP = 0.2, 0.5
"""A cell goes a fifth of the way to its median in a round, a tenth of itself at most."""

TRUSTED_PASSES = 3
"""Before so many passes nothing is known of a machine that was not calibrated."""

OUTDATED, LONG_AGO = 0.9, 1 << 20
"""A plain pass that takes less than this share of what is known of it was not measured in time: it
counts as if that had been so many rounds ago, so that the next one follows at once."""

COLD = 3.0
"""A round after one of another kind finds the processor's caches cold, which may make it so many
times as slow: it can only show that something takes less than known, or more than so."""

SHORT_S, SHORT_EVERY = 0.002, 4
"""Of passes shorter than this, and of established shape, one in four is learned from: to learn
takes as long as a quarter of a pass of 0.2 ms, whose processor caches hold none of this."""

OVERHEAD_EVERY = 4
"""Overhead is a small part of a round: one sample in four tells it well enough."""

JUMP = 1.5
"""A line is scaled as a whole where the median of recent samples is so many times what it says."""

LINE_MEMORY = 0.98
LINE_TIE = 0.005
"""Fixed part and slope keep their proportion unless samples of several lengths say otherwise."""

PUBLISHED = 0.01
"""Curves are built anew once a part of a round has moved by a percent of a pass: building one takes
as long as deciding, and less changes no decision."""

USUAL_STEPS = 4

FORMAT = 2
FIELDS = ("format", "known", "seed", "draft", "overhead", "buckets")
BUCKET_FIELDS = ("key", "parent", "draft", "cells")


# --- Two ways to learn from noisy seconds -------------------------------------------------------


class Cell:
    """Seconds of one shape of pass.

    It follows the second lowest of the last five, in small steps once it has seen as many: what
    else runs only ever adds time, and must not count for more in a shape that is seldom run.

    Args:
        seconds: expected before any was measured, worth two samples.
    """

    __slots__ = ("count", "published", "recent", "seconds")

    def __init__(self, seconds: float | None = None) -> None:
        self.recent = [] if seconds is None else [seconds, seconds]
        self.count = 0
        self.seconds = self.published = seconds or 0.0

    def observe(self, seconds: float) -> None:
        recent = self.recent
        recent.append(seconds)
        if len(recent) > NUM_RECENT:
            del recent[0]
        self.count += 1
        step = undisturbed_of(recent) - self.seconds
        if self.count > NUM_RECENT:
            most = LARGEST_STEP * self.seconds
            step = LEAST_RATE * max(-most, min(most, step))
        self.seconds += step

    def scale(self, factor: float) -> None:
        self.seconds *= factor
        self.recent = [seconds * factor for seconds in self.recent]


class Line:
    """Seconds of something that has a fixed part for each of `times` and a slope for each of `n`.

    Least squares of relative errors that forget. A sample counts as at most twice and at least
    half of what recent ones were, by their median.
    """

    def __init__(self, fixed: float, slope: float) -> None:
        self.fixed = fixed
        self.slope = slope
        self.published = fixed + USUAL_STEPS * slope
        self._start = (max(fixed, 0.1 * slope), max(slope, 0.1 * fixed))
        self._sums = [0.0] * 5
        self._recent = [1.0, 1.0]

    def seconds(self, times: float, n: float) -> float:
        return self.fixed * times + self.slope * n

    def observe(self, times: int, n: int, seconds: float) -> None:
        expected = self.seconds(times, n)
        if expected <= 0.0:
            return
        recent = self._recent
        recent.append(seconds / expected)
        if len(recent) > NUM_RECENT:
            del recent[0]
        usual = usual_of(recent)
        if not 1 / JUMP < usual < JUMP:
            self.scale(usual)
            expected, usual = expected * usual, 1.0
        self._fit(times, n, expected, max(usual / 2, min(usual * 2, recent[-1])))

    def scale(self, factor: float) -> None:
        """All of it costs so many times what it did: past samples count as if they had too."""
        self.fixed, self.slope = self.fixed * factor, self.slope * factor
        self._start = (self._start[0] * factor, self._start[1] * factor)
        self._recent = [ratio / factor for ratio in self._recent]

    def _fit(self, times: int, n: int, expected: float, ratio: float) -> None:
        """Minimise the sum of (ratio - f x - s y)**2, f and s being multiples of the starting
        parts, tied to the one multiple of both that fits best."""
        fixed, slope = self._start
        x, y = fixed * times / expected, slope * n / expected
        sums = self._sums
        for index, product in enumerate((x * x, x * y, y * y, x * ratio, y * ratio)):
            sums[index] = sums[index] * LINE_MEMORY + product
        xx, xy, yy, x, y = sums
        both = (x + y) / (xx + 2 * xy + yy)
        tie = LINE_TIE * (xx + yy)
        xx, yy, x, y = xx + tie, yy + tie, x + tie * both, y + tie * both
        determinant = xx * yy - xy * xy
        self.fixed = fixed * max(0.0, (x * yy - y * xy) / determinant)
        self.slope = slope * max(0.0, (y * xx - x * xy) / determinant)


# --- The model ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of the parts of a round, for one number of sequences and contexts of one length.

    Args:
        passes: entry n is the target's pass with n draft tokens.
        draft_fixed: what a draft costs however short it is.
    """

    passes: tuple[float, ...]
    draft_fixed: float
    draft_step: float
    overhead: float
    version: int

    @property
    def plain(self) -> float:
        """A round without drafts."""
        return self.passes[0] + self.overhead


class Seed:
    """Seconds of passes by rows where nothing else is known: measured, or a guess."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self.points = list(points)
        self._passes: list[float] = []

    def passes(self, max_rows: int) -> list[float]:
        """Seconds by rows from 0 (which counts as 1) to `max_rows` at least."""
        if len(self._passes) <= max_rows:
            seconds = (along(self.points, rows) for rows in range(max_rows + 1))
            self._passes = list(accumulate(seconds, max))
        return self._passes


class Bucket:
    """What was measured for one power of two of context lengths and one of sequences.

    Args:
        parent: is scaled to where something was measured: the nearest bucket when this one came
            up, or the seed.
    """

    def __init__(self, parent: Bucket | Seed, draft: tuple[float, float]) -> None:
        self.parent = parent
        self.draft = Line(*draft)
        self.cells: dict[int, Cell] = {}
        self.since_plain = 0
        self.has_seen_plain = False
        self._passes: list[float] = []
        self._scaled: list[float] | None = None

    def passes(self, max_rows: int) -> list[float]:
        """As `Seed.passes`. Fewer rows never take more: what else runs only ever adds time, so that
        of two measured cells that contradict each other the faster one is right."""
        base = self.parent.passes(max_rows)
        if self._scaled is not base or len(self._passes) <= max_rows:
            self._scaled = base
            factors = self._factors(base)
            scaled = [seconds * factor for seconds, factor in zip(base, factors, strict=True)]
            self._passes = list(accumulate(reversed(scaled), min))[::-1]
        return self._passes

    def _factors(self, base: Sequence[float]) -> list[float]:
        """By what to multiply the base of each number of rows."""
        known = sorted(rows for rows in self.cells if rows < len(base))
        if not known:
            return [1.0] * len(base)
        factors = _believed([self.cells[rows] for rows in known], [base[rows] for rows in known])
        return spread(list(zip(known, factors, strict=True)), len(base))

    def cell(self, rows: int) -> Cell:
        """What is known of passes of so many rows."""
        cell = self.cells.get(rows)
        if cell is None:
            cell = self.cells[rows] = Cell(self.passes(rows)[rows])
        return cell

    def observe(self, rows: int, seconds: float, is_steady: bool) -> bool:
        """Learn from a pass; whether what is known of passes has changed enough to tell."""
        cell = self.cell(rows)
        if not is_steady:
            seconds = _at_least(seconds, cell.seconds)
            if seconds == cell.seconds:
                return False
        cell.observe(seconds)
        if not moved(cell, PUBLISHED * cell.seconds) and cell.count not in TRUST_GROWS:
            return False
        self._scaled = None
        return True

    def scale(self, factor: float) -> None:
        """All that was measured takes so many times as long now."""
        for cell in self.cells.values():
            cell.scale(factor)
        self.draft.scale(factor)
        self._scaled = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "draft": [self.draft.fixed, self.draft.slope],
            "cells": [
                [rows, cell.seconds, min(cell.count, ESTABLISHED)]
                for rows, cell in sorted(self.cells.items())
            ],
        }


def _believed(cells: Sequence[Cell], base: Sequence[float]) -> list[float]:
    """By what to multiply the base of each cell: less by what few samples say of it than by what
    many say of others, for these few may have come while something else ran. But the cell of fewest
    rows, plain decoding, is believed when it was fast."""
    factors = [cell.seconds / seconds for cell, seconds in zip(cells, base, strict=True)]
    trust = [min(cell.count, ESTABLISHED) / ESTABLISHED for cell in cells]
    total = sum(trust)
    if not total:
        return factors
    believed = [t * factor for t, factor in zip(trust, factors, strict=True)]
    usual = sum(believed) / total
    believed = [own + (1.0 - t) * usual for own, t in zip(believed, trust, strict=True)]
    return [min(factors[0], believed[0]), *believed[1:]]


class CostModel:
    """Seconds of passes, drafts and overhead: `observe` each round, ask for a `curve`.

    Shared by all sequences of an engine, and worth keeping for the next start.

    `load` is how much longer than usual passes of all shapes take at present, because of what else
    runs on the machine. Costs are told without it: it changes no decision. Nor are they learned
    under it: a shape that happened to run then must not look dear beside one that did not. To learn
    what is left without the load would not do, for an error would confirm itself: half the cost and
    twice the load explain each pass as well.

    Args:
        passes: seconds by rows, measured on this machine; none if there was no calibration.
        draft: seconds of a draft however short, and of each step of it.
        overhead: seconds of a round beside its drafts and its pass.
    """

    def __init__(
        self,
        passes: Mapping[int, float] | None = None,
        draft: tuple[float, float] | None = None,
        overhead: float | None = None,
    ) -> None:
        self.is_known = bool(passes)  # enough to compare draft lengths
        self.has_drafted = False
        self.load = 1.0
        self._loaded_s = 0.0
        self._recent: list[tuple[int, float]] = []
        self._first: list[float] = []
        self._version = self._rounds = self._learned = 0
        self._last: RoundCost | None = None
        self._buckets: dict[tuple[int, int], Bucket] = {}
        self._curves: dict[tuple[int, int, int], Curve] = {}
        self._start(sorted(passes.items()) if passes else UNKNOWN_SHAPE, draft, overhead)

    def _start(
        self,
        points: Sequence[tuple[int, float]],
        draft: tuple[float, float] | None,
        overhead: float | None,
    ) -> None:
        check_points(points)
        one_row = along(points, 1)
        self._seed = Seed(points)
        self._draft = draft or (UNKNOWN_DRAFT[0] * one_row, UNKNOWN_DRAFT[1] * one_row)
        fixed = UNKNOWN_OVERHEAD * one_row if overhead is None else overhead
        self._overhead = Line(fixed, 0.5 * fixed)

    # --- Asking ---------------------------------------------------------------------------------

    def curve(
        self, context_length: int, num_sequences: int = 1, max_draft_tokens: int = MAX_DRAFT_TOKENS
    ) -> Curve:
        """What rounds cost, with up to so many draft tokens for all sequences together."""
        context = context_length.bit_length()
        key = (context, num_sequences, max_draft_tokens)
        curve = self._curves.get(key)
        if curve is None or curve.version != self._version:
            curve = self._curves[key] = self._curve(*key)
        return curve

    def _curve(self, context: int, num_sequences: int, max_draft_tokens: int) -> Curve:
        bucket = self._bucket(context, num_sequences)
        max_rows = num_sequences + max_draft_tokens
        return Curve(
            passes=tuple(bucket.passes(max_rows)[num_sequences : max_rows + 1]),
            draft_fixed=bucket.draft.fixed,
            draft_step=bucket.draft.slope,
            overhead=self._overhead.fixed,
            version=self._version,
        )

    def rounds_since_plain(self, context_length: int, num_sequences: int = 1) -> int:
        """How long ago the cost of not drafting was last measured in this neighbourhood."""
        return self._bucket(context_length.bit_length(), num_sequences).since_plain

    def has_seen_plain(self, context_length: int, num_sequences: int = 1) -> bool:
        """Whether a round has measured it there since the start."""
        return self._bucket(context_length.bit_length(), num_sequences).has_seen_plain

    def _bucket(self, context: int, num_sequences: int) -> Bucket:
        """The bucket of contexts of so many bits."""
        key = (max(SHORT_CONTEXT.bit_length(), context), num_sequences.bit_length())
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = self._new_bucket(key)
        return bucket

    def _new_bucket(self, key: tuple[int, int]) -> Bucket:
        if not self._buckets:
            return Bucket(self._seed, self._draft)
        nearest = min(
            self._buckets, key=lambda other: abs(other[0] - key[0]) + 4 * abs(other[1] - key[1])
        )
        parent = self._buckets[nearest]
        return Bucket(parent, (parent.draft.fixed, parent.draft.slope))

    # --- Learning -------------------------------------------------------------------------------

    def observe(self, cost: RoundCost, is_steady: bool = True, num_rounds: int = 1) -> None:
        """Learn from a round, once, however many of its sequences tell of it.

        Args:
            is_steady: it followed another one that had drafts too, or none too. One that did not
                may be slow for that reason alone: the processor's caches held something else. So
                may the pass of a round whose drafts were all held back.
            num_rounds: of its kind that it stands for.
        """
        if cost is self._last:
            return
        self._last = cost
        if not self.is_known:
            self._learn_scale(cost)
            return
        bucket = self._bucket(cost.context_length.bit_length(), cost.num_sequences)
        is_plain = cost.num_rows == cost.num_sequences and not cost.num_draft_steps
        bucket.has_seen_plain |= is_plain
        bucket.since_plain = 0 if is_plain else bucket.since_plain + num_rounds
        self._rounds += 1
        if self._rounds % SHORT_EVERY and self._is_short(bucket.cells.get(cost.num_rows)):
            return
        changed = False
        if is_usable(cost.verify_s):
            cell = bucket.cell(cost.num_rows)
            if is_plain and cost.verify_s < OUTDATED * cell.seconds * self.load:
                bucket.since_plain = LONG_AGO
            is_usual = is_steady and (is_plain or cost.num_rows > cost.num_sequences)
            if is_usual and (self.load != 1.0 or cell.count >= ESTABLISHED):
                self._follow_load(cost.num_rows, cost.verify_s / cell.seconds)
            changed = self._settle(num_rounds * cost.verify_s)
            if self.load == 1.0:
                changed |= bucket.observe(cost.num_rows, cost.verify_s, is_usual)
        self.has_drafted |= cost.num_draft_steps > 0
        if self.load == 1.0:
            changed |= self._observe_rest(bucket, cost, is_steady)
        self._version += changed

    def _is_short(self, cell: Cell | None) -> bool:
        """Whether passes of this shape are short, and well known."""
        return (
            cell is not None
            and cell.count >= ESTABLISHED
            and cell.seconds < SHORT_S
            and self.load == 1.0
        )

    def _follow_load(self, rows: int, ratio: float) -> None:
        """A pass took so many times what is known of its shape: is it the shape, or the machine?
        The machine only as far as passes of other shapes did so too, where there were any."""
        recent = self._recent
        recent.append((rows, ratio))
        if len(recent) > RECENT_PASSES:
            del recent[0]
        own = [ratio for other, ratio in recent if other == rows]
        others = [ratio for other, ratio in recent if other != rows]
        last = own if len(own) >= FEWEST_PASSES else [ratio for _, ratio in recent]
        load = usual_of(last[-FEWEST_PASSES:]) if len(last) >= FEWEST_PASSES else 1.0
        if others:
            load = min(load, usual_of(others), key=lambda ratio: abs(math.log(ratio)))
        self.load = 1.0 if 1 / LEAST_LOAD < load < LEAST_LOAD else load

    def _settle(self, seconds: float) -> bool:
        """A load of so many seconds more; whether it has lasted, and all costs have grown by it."""
        self._loaded_s = 0.0 if self.load == 1.0 else self._loaded_s + seconds
        if self._loaded_s < LASTING_S:
            return False
        for bucket in self._buckets.values():
            bucket.scale(self.load)
        self._recent.clear()
        self.load, self._loaded_s = 1.0, 0.0
        return True

    def _observe_rest(self, bucket: Bucket, cost: RoundCost, is_steady: bool) -> bool:
        """Learn from all but the pass; whether what is known of it has changed enough to tell."""
        least, changed = PUBLISHED * cost.verify_s, False
        if cost.num_draft_steps and is_usable(cost.draft_s):
            line, seconds = bucket.draft, cost.draft_s
            known = line.seconds(cost.num_drafts, cost.num_draft_steps)
            if not is_steady:
                seconds = _at_least(seconds, known)
            if is_steady or seconds != known:
                line.observe(cost.num_drafts, cost.num_draft_steps, seconds)
            changed = moved(line, least)
        self._learned += 1
        if self._learned % OVERHEAD_EVERY == 0 and is_usable(cost.overhead_s):
            self._overhead.observe(1, cost.num_tokens, cost.overhead_s)
            changed |= moved(self._overhead, least)
        return changed

    def _learn_scale(self, cost: RoundCost) -> None:
        """Without a calibration: guess all costs from the first passes, whatever their shape."""
        if is_usable(cost.verify_s):
            self._first.append(cost.verify_s / along(UNKNOWN_SHAPE, cost.num_rows))
        if len(self._first) == TRUSTED_PASSES:
            scale = usual_of(self._first)
            self._start([(rows, scale * value) for rows, value in UNKNOWN_SHAPE], None, None)
            self._buckets.clear()
            self._version += 1
            self.is_known = True

    # --- Keeping --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All that was learned, ready for `json.dumps`."""
        places: dict[Bucket | Seed, int] = {
            bucket: place for place, bucket in enumerate(self._buckets.values())
        }
        return {
            "format": FORMAT,
            "known": self.is_known,
            "seed": [list(point) for point in self._seed.points],
            "draft": list(self._draft),
            "overhead": [self._overhead.fixed, self._overhead.slope],
            "buckets": [
                bucket.to_dict() | {"key": list(key), "parent": places.get(bucket.parent, -1)}
                for key, bucket in self._buckets.items()
            ],
        }

    @classmethod
    def from_dict(cls, value: object) -> CostModel:
        """
        Raises:
            ConfigError: it is not what `to_dict` gives.
        """
        kept = fields_of(value, FIELDS, "a cost model")
        format_of(kept["format"], FORMAT, "a cost model")
        seed = list_of(kept["seed"], "seed", MAX_ROWS)
        points = [cell_of(point, "seed") for point in seed]
        model = cls(dict(points), line_of(kept["draft"], "draft"))
        check_points(points)
        model.is_known = flag_of(kept["known"], "known")
        model._overhead = Line(*line_of(kept["overhead"], "overhead"))
        for bucket in list_of(kept["buckets"], "buckets", MAX_BUCKETS):
            model._add_kept(fields_of(bucket, BUCKET_FIELDS, "a bucket"))
        return model

    def _add_kept(self, kept: dict[str, Any]) -> None:
        context, sequences = (
            whole_of(bits, "a bucket's key", 1, 64)
            for bits in list_of(kept["key"], "a bucket's key", 2, 2)
        )
        place = whole_of(kept["parent"], "parent", -1, len(self._buckets) - 1)
        parent = self._seed if place < 0 else list(self._buckets.values())[place]
        bucket = Bucket(parent, line_of(kept["draft"], "draft"))
        for kept_cell in list_of(kept["cells"], "cells", MAX_ROWS):
            *point, count = list_of(kept_cell, "cells", 3, 3)
            rows, seconds = cell_of(point, "cells")
            bucket.cells[rows] = cell = Cell(seconds)
            cell.count = whole_of(count, "samples of a cell", 0, ESTABLISHED)
        self._buckets[context, sequences] = bucket


# --- Numbers ------------------------------------------------------------------------------------


def is_usable(seconds: float) -> bool:
    """Whether a clock can have measured this: not where it jumped or stood still."""
    return LEAST_MEASURED <= seconds <= MAX_SECONDS  # no NaN either


def _at_least(seconds: float, known: float) -> float:
    """What something takes as far as a measurement with cold caches can tell."""
    return max(seconds / COLD, min(seconds, known))


def usual_of(samples: Sequence[float]) -> float:
    """The median, the lower one of two."""
    return sorted(samples)[(len(samples) - 1) // 2]


def undisturbed_of(samples: Sequence[float]) -> float:
    """The second lowest of five, the lowest of fewer."""
    return sorted(samples)[len(samples) // NUM_RECENT]


def moved(learned: Cell | Line, least: float) -> bool:
    """Whether it has moved by more than `least` since this was last true."""
    now = learned.seconds if isinstance(learned, Cell) else learned.seconds(1, USUAL_STEPS)
    if abs(now - learned.published) <= least:
        return False
    learned.published = now
    return True


def between(points: Points, at: int) -> float:
    """Linear between points, constant outside."""
    place = bisect_right(points, at, key=lambda point: point[0])
    if place == 0:
        return points[0][1]
    if place == len(points):
        return points[-1][1]
    (left, low), (right, high) = points[place - 1], points[place]
    return low + (high - low) * (at - left) / (right - left)


def spread(points: Points, count: int) -> list[float]:
    """The same from 0 to `count`, which is excluded and beyond all points."""
    found = [points[0][1]] * points[0][0]
    for (left, low), (right, high) in pairwise(points):
        slope = (high - low) / (right - left)
        found += [low + slope * step for step in range(right - left)]
    return found + [points[-1][1]] * (count - len(found))


def along(points: Points, rows: int) -> float:
    """Linear between points, constant before them; goes on with the slope of the whole after."""
    (first, low), (last, high) = points[0], points[-1]
    if rows <= last or first == last:
        return between(points, rows)
    return high + max(0.0, high - low) * (rows - last) / (last - first)


def check_points(points: Points) -> None:
    """
    Raises:
        ConfigError: these are no seconds of passes, or the rows do not ascend.
    """
    for rows, seconds in points:
        check_range("rows", rows, 1, MAX_ROWS)
        number_of(seconds, f"seconds of {rows} rows", MIN_SECONDS, MAX_SECONDS)
    if not points or any(a >= b for (a, _), (b, _) in pairwise(points)):
        raise ConfigError("the rows of a calibration must ascend, and there must be one at least.")


def cell_of(value: object, what: str) -> tuple[int, float]:
    rows, seconds = list_of(value, what, 2, 2)
    return (
        whole_of(rows, f"rows of {what}", 1, MAX_ROWS),
        number_of(seconds, f"seconds of {what}", MIN_SECONDS, MAX_SECONDS),
    )


def line_of(value: object, what: str) -> tuple[float, float]:
    fixed, slope = list_of(value, what, 2, 2)
    return number_of(fixed, what, 0.0, MAX_SECONDS), number_of(slope, what, 0.0, MAX_SECONDS)
