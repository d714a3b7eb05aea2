"""What came of a benchmark: one JSON document for programs, a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from paceline.bench.ceiling import Ceiling
from paceline.bench.measure import Plan, Skipped
from paceline.bench.summary import (
    AUTO,
    KindSummary,
    RunSummary,
    Spread,
    auto_against_best,
    by_kind,
    slower_runs,
    worst_run,
)

DIGITS = 4


def document(
    summaries: Sequence[RunSummary],
    skipped: Sequence[Skipped],
    plan: Plan,
    ceiling: Ceiling,
    provenance: dict[str, object],
) -> dict[str, object]:
    """All results under stable names. `spread` is [lowest, highest]; null was not measured."""
    return {
        **provenance,
        "settings": {
            "drafts": list(plan.drafts),
            "repeats": plan.repeats,
            "max_tokens": plan.max_tokens,
            "temperature": plan.sampling.temperature,
            "seed": plan.sampling.seed,
        },
        "ceiling": {
            "bytes_per_token": ceiling.bytes_per_token,
            "read_bytes_per_s": round(ceiling.read_bytes_per_s),
            "decode_tps": _rounded(ceiling.decode_tps),
            "reached": _rounded(reached(summaries, ceiling)),
        },
        "equal": all(summary.equal for summary in summaries),
        "runs": [_run_row(summary) for summary in summaries],
        "kinds": [_kind_row(kind) for kind in by_kind(summaries)],
        "auto_against_best": [
            {"kind": one.kind, "best": one.best, "ratio": _rounded(one.ratio)}
            for one in auto_against_best(summaries)
        ],
        "slower_than_off": [summary.prompt for summary in slower_runs(summaries)],
        "skipped": [{"prompt": s.prompt.name, "reason": s.reason} for s in skipped],
    }


def reached(summaries: Sequence[RunSummary], ceiling: Ceiling) -> float | None:
    """The share of the ceiling that decoding without drafting got to: the median over prompts."""
    plain = [s.decode_tps.median for s in summaries if s.draft == 0 and s.decode_tps]
    return median(plain) / ceiling.decode_tps if plain else None


def _run_row(summary: RunSummary) -> dict[str, object]:
    return {
        "prompt": summary.prompt,
        "kind": summary.kind,
        "draft": summary.draft,
        "generated_tokens": summary.generated_tokens,
        **_measured(summary),
        "noise_spread": _ends(summary.noise),
        "sources": summary.totals.to_json()["sources"],
        "equal": summary.equal,
    }


def _kind_row(summary: KindSummary) -> dict[str, object]:
    return {
        "kind": summary.kind,
        "draft": summary.draft,
        "prompts": summary.num_prompts,
        **_measured(summary),
        "worst_prompt": summary.worst_prompt,
        "equal": summary.equal,
    }


def _measured(summary: RunSummary | KindSummary) -> dict[str, object]:
    return {
        "decode_tps": _middle(summary.decode_tps),
        "decode_tps_spread": _ends(summary.decode_tps),
        "ratio": _middle(summary.ratio),
        "ratio_spread": _ends(summary.ratio),
        "acceptance_length": _rounded(summary.acceptance_length),
    }


def _middle(spread: Spread | None) -> float | None:
    return _rounded(spread.median) if spread else None


def _ends(spread: Spread | None) -> list[float] | None:
    return [round(spread.low, DIGITS), round(spread.high, DIGITS)] if spread else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def ceiling_line(ceiling: Ceiling) -> str:
    return (
        f"ceiling without drafting: {ceiling.decode_tps:.1f} tok/s "
        f"({ceiling.bytes_per_token / 1e6:.1f} MB of weights a token, "
        f"read at {ceiling.read_bytes_per_s / 1e9:.1f} GB/s)"
    )


def reached_line(summaries: Sequence[RunSummary], ceiling: Ceiling) -> list[str]:
    share = reached(summaries, ceiling)
    return (
        [] if share is None else [f"reached without drafting: {100 * share:.0f} % of the ceiling"]
    )


def table(summaries: Sequence[RunSummary]) -> list[str]:
    """Lines of text: a row for each kind and draft length, then the worst prompt."""
    header = ("kind", "draft", "prompts", "tok/s", "speed-up", "(spread)", "tokens/round", "equal")
    rows = [header, *(_table_row(kind) for kind in by_kind(summaries))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [*lines, *_worst_line(summaries), *_auto_lines(summaries)]


def _table_row(kind: KindSummary) -> tuple[str, ...]:
    drafting = kind.draft != 0
    return (
        kind.kind,
        str(kind.draft) if drafting else "off",
        str(kind.num_prompts),
        f"{kind.decode_tps.median:.1f}" if kind.decode_tps else "-",
        f"{kind.ratio.median:.2f}" if kind.ratio else "-",
        f"({kind.ratio.low:.2f} to {kind.ratio.high:.2f})" if kind.ratio and drafting else "",
        f"{kind.acceptance_length:.2f}" if kind.acceptance_length else "",
        "yes" if kind.equal else "NO",
    )


def _worst_line(summaries: Sequence[RunSummary]) -> list[str]:
    worst = worst_run(summaries)
    if worst is None or worst.ratio is None:
        return []
    return [
        f"worst prompt: {worst.prompt} with draft {worst.draft}, "
        f"{worst.ratio.median:.2f} times the speed without drafting"
    ]


def _auto_lines(summaries: Sequence[RunSummary]) -> list[str]:
    """What auto is to show: how close it comes to the best length, and where it is slower."""
    lines = [
        f"auto against the best fixed length, {one.kind}: {one.ratio:.3f} (best: {one.best})"
        for one in auto_against_best(summaries)
    ]
    worst = worst_run(summary for summary in summaries if summary.draft == AUTO)
    if worst and worst.ratio and worst.noise:
        lines.append(
            f"worst prompt with auto: {worst.prompt}, {worst.ratio.median:.3f}; off against off "
            f"{worst.noise.low:.3f} to {worst.noise.high:.3f}"
        )
    slower = slower_runs(summaries)
    if lines:
        names = ", ".join(summary.prompt for summary in slower) or "none"
        lines.append(f"below 0.98 of drafting off, beyond its own noise: {names}")
    return lines
