"""Why drafting pays here or does not: what a round costs, what is accepted, and what follows.

    speed-up(K) = expected tokens of a round x seconds of a plain round / seconds of its round

The costs are those of a calibration and the acceptance that of the longest fixed length, so that
the prediction knows nothing of the speeds that it is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.bench.summary import RunSummary, total
from paceline.stats import GenerationStats

if TYPE_CHECKING:
    from paceline.calibration import Calibration
    from paceline.engine import DraftLength

DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of the parts of a round.

    Args:
        overhead_s: of a round beside its draft and its pass, measured without drafts.
    """

    calibration: Calibration
    overhead_s: float

    def pass_s(self, rows: int) -> float:
        """Between measured rows on a straight line, beyond them on the last one."""
        points = sorted(self.calibration.passes.items())
        if len(points) == 1:
            return points[0][1]
        index = next((i for i, (n, _) in enumerate(points[1:]) if rows <= n), len(points) - 2)
        (low, low_s), (high, high_s) = points[index : index + 2]
        return low_s + (high_s - low_s) * (rows - low) / (high - low)

    def round_s(self, length: int, steps: int | None = None) -> float:
        """A round with so many draft tokens, from so many steps of the drafter."""
        fixed, step = self.calibration.draft or (0.0, 0.0)
        steps = length if steps is None else steps
        drafts_s = fixed + steps * step if steps else 0.0
        return self.pass_s(length + 1) + drafts_s + self.overhead_s


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted and measured speed-up of a draft length. Of auto the tokens and rounds are its
    own, as nothing else says which lengths it chose."""

    draft: DraftLength
    predicted: float
    measured: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """
    Args:
        acceptance: by position, of those draft tokens before which all were accepted.
    """

    costs: Costs
    acceptance: tuple[float, ...]
    predictions: tuple[Prediction, ...]


def explain(summaries: Sequence[RunSummary], calibration: Calibration) -> Explanation:
    """The whole of what was run, all kinds together."""
    totals = {
        draft: total(s.totals for s in summaries if s.draft == draft)
        for draft in dict.fromkeys(summary.draft for summary in summaries)
    }
    costs = Costs(calibration=calibration, overhead_s=_overhead_s(totals[0]))
    fixed = [draft for draft in totals if isinstance(draft, int)]
    acceptance = _acceptance(totals[max(fixed)])
    predictions = [
        Prediction(
            draft=draft,
            predicted=_predicted(draft, stats, acceptance, costs),
            measured=_measured(stats, totals[0]),
        )
        for draft, stats in totals.items()
        if draft != 0
    ]
    return Explanation(costs=costs, acceptance=tuple(acceptance), predictions=tuple(predictions))


def _overhead_s(plain: GenerationStats) -> float:
    if not plain.rounds:
        return 0.0
    return max(0.0, plain.decode_s - plain.draft_s - plain.verify_s) / plain.rounds


def _acceptance(stats: GenerationStats) -> list[float]:
    """Conditional: position 3 counts only where 1 and 2 were accepted."""
    rounds = stats.acceptance_histogram
    accepted = stats.accepted_per_position
    reached = [sum(rounds), *accepted]
    drafted = stats.drafted_per_position
    return [
        accepted[position] / min(reached[position], drafted[position])
        for position in range(len(accepted))
        if reached[position]
    ]


def _predicted(
    draft: DraftLength, stats: GenerationStats, acceptance: Sequence[float], costs: Costs
) -> float:
    plain_s = costs.round_s(0)
    if isinstance(draft, int):
        tokens = survival = 1.0
        for chance in acceptance[:draft]:
            survival *= chance
            tokens += survival
        return tokens * plain_s / costs.round_s(draft)
    steps = stats.sources.get("drafter")
    from_drafter = steps.drafted_tokens / max(1, stats.drafted_tokens) if steps else 0.0
    seconds = sum(
        count * costs.round_s(length, round(length * from_drafter))
        for length, count in enumerate(stats.draft_histogram)
    )
    return (stats.rounds + stats.accepted_tokens) * plain_s / seconds if seconds else 1.0


def _measured(stats: GenerationStats, plain: GenerationStats) -> float | None:
    if not stats.decode_tps or not plain.decode_tps:
        return None
    return stats.decode_tps / plain.decode_tps


# --- Shown --------------------------------------------------------------------------------------


def cost_lines(passes: Mapping[int, float], draft: tuple[float, float] | None) -> list[str]:
    """What a calibration measured, as a table."""
    one_row = passes[1]
    lines = ["rows  pass, ms  of one row  ms a row"]
    lines += [
        f"{rows:4}  {1e3 * seconds:8.2f}  {seconds / one_row:10.2f}  {1e3 * seconds / rows:8.2f}"
        for rows, seconds in sorted(passes.items())
    ]
    if draft is None:
        return [*lines, "no drafter is loaded"]
    fixed, step = draft
    return [
        *lines,
        f"a draft takes {1e3 * fixed:.3f} ms and {1e3 * step:.3f} ms a token, "
        f"{step / one_row:.3f} passes of one row",
    ]


def explanation_lines(explanation: Explanation) -> list[str]:
    calibration = explanation.costs.calibration
    shares = "  ".join(
        f"{position}: {100 * a:.0f} %" for position, a in enumerate(explanation.acceptance, 1)
    )
    return [
        *cost_lines(calibration.passes, calibration.draft),
        f"a round takes {1e3 * explanation.costs.overhead_s:.3f} ms besides",
        f"accepted, if all before were: {shares or 'nothing was drafted'}",
        "draft  predicted  measured",
        *(
            f"{prediction.draft!s:>5}  {prediction.predicted:9.2f}  "
            + (f"{prediction.measured:8.2f}" if prediction.measured else "       -")
            for prediction in explanation.predictions
        ),
    ]


def explanation_document(explanation: Explanation) -> dict[str, object]:
    calibration = explanation.costs.calibration
    return {
        "passes_s": {str(rows): _rounded(s) for rows, s in sorted(calibration.passes.items())},
        "draft_s": None if calibration.draft is None else list(map(_rounded, calibration.draft)),
        "overhead_s": _rounded(explanation.costs.overhead_s),
        "acceptance": list(map(_rounded, explanation.acceptance)),
        "predictions": [
            {
                "draft": prediction.draft,
                "predicted": _rounded(prediction.predicted),
                "measured": prediction.measured and _rounded(prediction.measured),
            }
            for prediction in explanation.predictions
        ],
    }


def _rounded(value: float) -> float:
    return round(value, DIGITS)
