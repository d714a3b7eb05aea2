"""The loop that both training runs share: steps to the end of a budget, a curve, checkpoints.

A run that was stopped goes on from its last checkpoint as if it had never been stopped: what a
step draws at random depends on the seed and the number of the step only. Knows no data and no
loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from paceline.training.record import append_curve, cut_curve, record_start
from paceline.training.schedule import (
    Budget,
    Optimisers,
    learning_rate_factor,
    load_state,
    save_state,
)

CURVE_EVERY = 20

LossAt = Callable[[float, np.random.Generator], Tensor]
"""(progress, the random numbers of this step) -> the loss of one batch"""
Measure = Callable[[bool], dict[str, Any]]
"""(whether the run is over) -> what a checkpoint adds to the curve"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of every run; recorded beside its result, `<name>.state` in the folder."""

    name: ClassVar[str]
    folder: Path
    minutes: float
    batch_size: int = 8
    length: int = 512  # of a window
    matrix_rate: float = 3e-3
    table_rate: float = 2e-3
    checkpoint_every: int = 100
    seed: int = 1
    compile: bool = True  # takes a minute or two at the start

    @property
    def streams(self) -> Path:
        return self.folder / "streams"

    def file(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def settings(self) -> dict[str, Any]:
        return {key: str(value) for key, value in vars(self).items() if key != "folder"}


def mixed_precision() -> torch.autocast:
    """Matrix products in bfloat16, norms and sums in float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def train(
    run: Run, model: nn.Module, data_files: Iterable[Path], loss_at: LossAt, measure: Measure
) -> None:
    """Train to the end of the budget, from the last checkpoint if there is one."""
    optimisers = Optimisers(model, run.matrix_rate, run.table_rate)
    budget = Budget(run.minutes * 60)
    step = load_state(run.file("state"), model, optimisers, budget)
    curve = run.file("curve.jsonl")
    cut_curve(curve, step)
    record_start(run.file("run.json"), step, run.settings(), data_files)
    budget.resume()
    losses: list[float] = []
    while (progress := budget.progress()) < 1.0:
        loss = loss_at(progress, np.random.default_rng((run.seed, step)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimisers.step(learning_rate_factor(progress))
        step += 1
        losses.append(float(loss.detach()))
        if step % CURVE_EVERY == 0:
            mean = round(sum(losses) / len(losses), 4)
            append_curve(curve, {"step": step, "progress": round(progress, 4), "loss": mean})
            losses.clear()
        if step % run.checkpoint_every == 0:
            budget.pause()
            append_curve(curve, {"step": step, **measure(False)})
            save_state(run.file("state"), model, optimisers, budget, step)
            budget.resume()
    append_curve(curve, {"step": step, **measure(True)})
    save_state(run.file("state"), model, optimisers, budget, step)
