"""Figures of a benchmark: speed-up and acceptance length by kind and draft length, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.bench.summary import ALL_KINDS, KindSummary
from paceline.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from paceline.bench.explain import Explanation
    from paceline.engine import DraftLength

    Heights = dict[tuple[str, DraftLength], float]

SUFFIXES = (".svg", ".png")
# Okabe and Ito's palette, told apart with every kind of colour vision; hatches for print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")


def check_figure(path: Path) -> None:
    """Find out before a long run whether its figure can be drawn.

    Raises:
        ConfigError: the name does not end in .svg or .png.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--figure {path} must end in {' or '.join(SUFFIXES)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "a figure needs matplotlib: pip install 'paceline[report]'"
        ) from error


def draw(kinds: Sequence[KindSummary], path: Path) -> None:
    """Write the figure. The same results give the same bytes."""
    from matplotlib.figure import Figure

    drafted = [kind for kind in kinds if kind.draft]
    figure = Figure(figsize=(9, 6), layout="constrained")
    speed, acceptance = figure.subplots(2, 1, sharex=True)
    _bars(speed, drafted, {_key(k): k.ratio.median for k in drafted if k.ratio})
    speed.axhline(1.0, color="black", linewidth=0.8)
    speed.set_ylabel("speed-up (drafting off = 1)")
    lengths = {_key(k): k.acceptance_length for k in drafted if k.acceptance_length}
    _bars(acceptance, drafted, lengths)
    acceptance.set_ylabel("tokens a round")
    figure.legend(
        *speed.get_legend_handles_labels(),
        title="draft length",
        ncols=len(COLOURS),
        loc="outside upper right",
    )
    _save(figure, path)


def _key(kind: KindSummary) -> tuple[str, DraftLength]:
    return kind.kind, kind.draft


def _bars(axes: Axes, kinds: Sequence[KindSummary], heights: Heights) -> None:
    """Groups of bars: a group for each kind, a bar for each draft length."""
    names = list(dict.fromkeys(kind.kind for kind in kinds))
    drafts = list(dict.fromkeys(kind.draft for kind in kinds))
    width = 0.8 / max(1, len(drafts))
    for index, draft in enumerate(drafts):
        axes.bar(
            [place + (index - (len(drafts) - 1) / 2) * width for place in range(len(names))],
            [heights.get((name, draft), 0.0) for name in names],
            width,
            label=str(draft),
            color=COLOURS[index % len(COLOURS)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
        )
    axes.set_xticks(range(len(names)), ["all kinds" if n == ALL_KINDS else n for n in names])


def draw_explanation(explanation: Explanation, path: Path) -> None:
    """Write the figure of costs, acceptance and speed-up. The same results give the same bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    costs, acceptance, speed = figure.subplots(1, 3)
    passes = sorted(explanation.costs.calibration.passes.items())
    rows, seconds = [n for n, _ in passes], [s for _, s in passes]
    costs.plot(rows, [s / seconds[0] for s in seconds], marker="o", color=COLOURS[0])
    costs.set(xlabel="rows of a pass", ylabel="time (one row = 1)", ylim=(0, None))
    positions = range(1, len(explanation.acceptance) + 1)
    acceptance.bar(positions, explanation.acceptance, color=COLOURS[2])
    acceptance.set(xlabel="position in the draft", ylabel="accepted, if all before were")
    acceptance.set(ylim=(0, 1))
    predictions = explanation.predictions
    places, names = range(len(predictions)), [str(p.draft) for p in predictions]
    speed.plot(places, [p.predicted for p in predictions], "x", color=COLOURS[1], label="predicted")
    measured = [p.measured or float("nan") for p in predictions]
    speed.plot(places, measured, "o", color=COLOURS[0], fillstyle="none", label="measured")
    speed.axhline(1.0, color="black", linewidth=0.8)
    speed.set_xticks(places, names)
    speed.set(xlabel="draft length", ylabel="speed-up (drafting off = 1)", ylim=(0, None))
    speed.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "paceline"}):
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)
