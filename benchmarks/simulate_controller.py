"""How close the adaptive draft length comes to an oracle, on simulated text and machines.

    python benchmarks/simulate_controller.py --figure regret.svg

For each machine and kind of text: the fixed length that is best in hindsight, the speed-up with it
and with the adaptive length, and the regret, the share of time lost to the oracle. Texts that
change between two kinds are compared with the best length of each; drafters that are always wrong,
or ten times as slow as measured, with drafting off. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paceline.bench.figure import check_figure
from paceline.bench.provenance import provenance
from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import AdaptiveDraftLength
from paceline.speculative.controller import DraftLengthPolicy
from paceline.speculative.simulation import (
    FixedByKind,
    Machine,
    Text,
    Unlabelled,
    best_fixed,
    joined,
    linear,
    made_up,
    seconds_of,
    simulate,
    total_s,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOISE, HICCUPS = 0.03, 0.02

# Bytes of the experts that so many rows choose, reference section 6.4.
EXPERTS = (
    *((1, 1.0), (2, 1.35), (3, 1.68), (4, 1.98), (5, 2.27), (6, 2.54), (8, 3.03)),
    *((12, 3.84), (16, 4.47)),
)

RECORDED = Path(__file__).parent / "results" / "amd-epyc-2-cores"


def recorded(name: str, file_name: str) -> Machine:
    """A machine and model as `verify_cost.py` has measured them. More rows never take less: where
    they did, by noise, they count as much."""
    measured = json.loads((RECORDED / file_name).read_text(encoding="utf-8"))
    seconds = [(int(rows), taken) for rows, taken in measured["T_s"].items()]
    one_row = seconds[0][1]
    passes = accumulate((taken / one_row for _, taken in seconds), max)
    return Machine(
        name=name,
        passes=tuple(zip((rows for rows, _ in seconds), passes, strict=True)),
        draft_step=measured["draft_step_s"] / one_row,
        overhead=measured["round_overhead_s"] / one_row,
        pass_s=one_row,
    )


MACHINES = tuple(
    replace(machine, noise=NOISE, hiccups=HICCUPS)
    for machine in (
        recorded("E2B, Zen 4", "verify-cost-e2b-q4_0.json"),
        recorded("E2B, Zen 5", "verify-cost-e2b-q4_0-zen-5.json"),
        Machine(name="GPU", passes=linear(0.03), draft_step=0.02),
        Machine(name="experts", passes=EXPERTS, draft_step=0.03),
        Machine(name="good CPU kernel", passes=linear(0.10), draft_step=0.03),
        Machine(name="plain CPU kernel", passes=linear(0.24), draft_step=0.08),
    )
)

PROFILES = {
    "copy": (0.98, 0.97, 0.97),
    "code": (0.92, 0.90, 0.88, 0.86),
    "chat": (0.72, 0.66, 0.62, 0.60),
    "hard": (0.50, 0.45, 0.42, 0.40),
    "very hard": (0.30, 0.25, 0.20),
    "hopeless": (0.10, 0.08, 0.05),
    "never": (0.0,),
}
CHANGES = (
    *(("code", "hard"), ("copy", "chat"), ("chat", "very hard")),
    *(("code", "hopeless"), ("code", "never")),
)
STRETCH = 100
SLOWNESS = 10.0
ADVERSE_TOKENS = 200


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One machine and text.

    Args:
        oracle: draft lengths of the oracle.
        oracle_speed: speed-up of the oracle over drafting off; `cold_speed` of a first answer,
            `warm_speed` of an engine that has answered others.
        cold_regret: share of time that is lost to the oracle.
        worst_loss: of the single text that lost most to drafting off, in a first answer.
    """

    machine: str
    text: str
    oracle: tuple[int, ...]
    oracle_speed: float
    cold_speed: float
    warm_speed: float
    cold_regret: float
    warm_regret: float
    worst_loss: float


@dataclass(frozen=True, kw_only=True)
class Adversity:
    """Loss to drafting off, over 200 tokens: the mean of all texts and the largest."""

    machine: str
    drafter: str
    mean_loss: float
    worst_loss: float


# --- Cells --------------------------------------------------------------------------------------


def cold(machine: Machine) -> Callable[[], DraftLengthPolicy]:
    """Each text is the first of an engine that was calibrated and knows no drafter."""
    return lambda: Unlabelled(AdaptiveDraftLength(machine.calibrated(), Profiles()))


def warm(machine: Machine) -> Callable[[], DraftLengthPolicy]:
    """Each text comes after eight others of several kinds."""
    costs, profiles = machine.calibrated(), Profiles()
    for number, name in enumerate(("chat", "code", "hard", "chat") * 2):
        policy = AdaptiveDraftLength(costs, profiles)
        simulate(Unlabelled(policy), made_up(PROFILES[name], 300, (1, number)), machine, number)
    return lambda: Unlabelled(AdaptiveDraftLength(*copy.deepcopy((costs, profiles))))


def texts_of(name: str, num_texts: int, num_tokens: int) -> list[Text]:
    return [
        replace(made_up(PROFILES[name], num_tokens, (2, number)), kinds=(name,))
        for number in range(num_texts)
    ]


def changing(names: Sequence[str], num_texts: int, num_tokens: int) -> list[Text]:
    """Texts in which these kinds take turns."""
    return [
        joined(
            [
                replace(made_up(PROFILES[name], STRETCH, (3, number, turn)), kinds=(name,))
                for turn, name in enumerate(names * (num_tokens // STRETCH // len(names)))
            ]
        )
        for number in range(num_texts)
    ]


def cell(machine: Machine, names: Sequence[str], texts: Sequence[Text]) -> Cell:
    lengths = {name: best_fixed(texts_of(name, 8, 300), machine)[0] for name in names}
    if len(names) == 1:  # in hindsight, on the very same texts
        lengths = {names[0]: best_fixed(texts, machine)[0]}
    off_each = seconds_of(lambda: FixedByKind(dict.fromkeys(names, 0)), texts, machine)
    oracle = total_s(lambda: FixedByKind(lengths), texts, machine)
    cold_each = seconds_of(cold(machine), texts, machine)
    warm_s = total_s(warm(machine), texts, machine)
    off, cold_s = sum(off_each), sum(cold_each)
    return Cell(
        machine=machine.name,
        text=" / ".join(names),
        oracle=tuple(lengths.values()),
        oracle_speed=off / oracle,
        cold_speed=off / cold_s,
        warm_speed=off / warm_s,
        cold_regret=cold_s / oracle - 1.0,
        warm_regret=warm_s / oracle - 1.0,
        worst_loss=max(one / plain - 1.0 for one, plain in zip(cold_each, off_each, strict=True)),
    )


def grid(machines: Sequence[Machine], num_texts: int, num_tokens: int) -> list[Cell]:
    """Texts of one kind."""
    return [
        cell(machine, (name,), texts_of(name, num_texts, num_tokens))
        for machine in machines
        for name in PROFILES
    ]


def changes(machines: Sequence[Machine], num_texts: int, num_tokens: int) -> list[Cell]:
    """Texts of two kinds in turn."""
    return [
        cell(machine, names, changing(names, num_texts, num_tokens))
        for machine in machines
        for names in CHANGES
    ]


def adversities(machines: Sequence[Machine], num_texts: int) -> list[Adversity]:
    """Drafters that can only lose, each unknown to the engine."""
    found = []
    for machine in machines:
        slow = replace(machine, draft_step=SLOWNESS * machine.draft_step)
        for drafter, real in (("always wrong", machine), ("and ten times as slow", slow)):
            texts = texts_of("never", num_texts, ADVERSE_TOKENS)
            off = seconds_of(lambda: FixedByKind({"never": 0}), texts, real)
            auto = seconds_of(cold(machine), texts, real)
            losses = [one / plain - 1.0 for one, plain in zip(auto, off, strict=True)]
            found.append(
                Adversity(
                    machine=machine.name,
                    drafter=drafter,
                    mean_loss=statistics.fmean(losses),
                    worst_loss=max(losses),
                )
            )
    return found


# --- Report -------------------------------------------------------------------------------------


def summary(cells: Sequence[Cell]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in ("cold", "warm"):
        regrets = {(c.machine, c.text): getattr(c, f"{name}_regret") for c in cells}
        worst = max(regrets, key=regrets.__getitem__)
        found[name] = {
            "mean_regret": statistics.fmean(regrets.values()),
            "worst_regret": regrets[worst],
            "worst": ": ".join(worst),
        }
    return found


def table(cells: Sequence[Cell]) -> str:
    lines = [
        f"{'machine':17} {'text':17} {'oracle':>8} {'speed':>6} {'first':>6} {'later':>6}"
        f" {'regret':>8} {'later':>8} {'worst text to off':>18}"
    ]
    for c in cells:
        oracle = ",".join(map(str, c.oracle))
        lines.append(
            f"{c.machine:17} {c.text:17} {oracle:>8} {c.oracle_speed:6.2f} {c.cold_speed:6.2f}"
            f" {c.warm_speed:6.2f} {c.cold_regret:8.2%} {c.warm_regret:8.2%}"
            f" {c.worst_loss:18.2%}"
        )
    return "\n".join(lines)


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Speed-ups of the oracle, of a first answer and of later ones."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    machines = list(dict.fromkeys(c.machine for c in cells))
    figure = Figure(figsize=(9, 2.2 * len(machines)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(machines), 1, sharex=True))
    for axis, machine in zip(axes, machines, strict=True):
        _bars(axis, [c for c in cells if c.machine == machine])
        axis.set_title(machine, fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside upper right")
    with mpl.rc_context({"svg.hashsalt": "paceline"}):
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)


def _bars(axes: Axes, cells: Sequence[Cell]) -> None:
    series = {
        "best fixed length in hindsight": ([c.oracle_speed for c in cells], "#0072B2", ""),
        "adaptive, first answer": ([c.cold_speed for c in cells], "#E69F00", "//"),
        "adaptive, later answers": ([c.warm_speed for c in cells], "#009E73", ".."),
    }
    for index, (label, (heights, colour, hatch)) in enumerate(series.items()):
        places = [place + (index - 1) * 0.27 for place in range(len(cells))]
        axes.bar(places, heights, 0.27, label=label, color=colour, hatch=hatch, edgecolor="white")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(cells)), [c.text for c in cells])
    axes.set_ylabel("speed-up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=24, help="of each kind")
    parser.add_argument("--tokens", type=int, default=300, help="of each text")
    parser.add_argument("--figure", type=Path, help=".svg or .png")
    asked = parser.parse_args()
    if asked.figure:
        check_figure(asked.figure)
    steady = grid(MACHINES, asked.texts, asked.tokens)
    print(table(steady))
    turning = changes(MACHINES, max(1, asked.texts // 3), 2 * asked.tokens)
    print(f"\nkinds that take turns, {STRETCH} tokens each\n{table(turning)}")
    adverse = adversities(MACHINES, asked.texts)
    print(f"\nloss to drafting off, {ADVERSE_TOKENS} tokens")
    for a in adverse:
        print(f"{a.machine:17} {a.drafter:21} {a.mean_loss:7.2%}, at worst {a.worst_loss:.2%}")
    document = {
        "steady": summary(steady),
        "changing": summary(turning),
        "cells": [asdict(c) for c in (*steady, *turning)],
        "adverse": [asdict(a) for a in adverse],
        "provenance": provenance(threads=1),
    }
    if asked.figure:
        draw(steady, asked.figure)
    print(json.dumps({name: document[name] for name in ("steady", "changing")}, indent=1))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
