"""`paceline calibrate`: what passes and drafts take on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from paceline.cli import common, options, terminal

if TYPE_CHECKING:
    from paceline.calibration import Calibration


def calibrate(
    model: options.Model = None,
    drafter: options.Drafter = "auto",
    threads: options.Threads = None,
    runtime: options.RuntimeOption = options.Runtime.AUTO,
    dtype: options.DtypeOption = None,
    no_progress: options.NoProgress = False,
) -> None:
    """Measure how fast this machine drafts and verifies, and keep it for --draft auto.

    It takes a second or two, and is done by itself when a model is used for the first time.
    """
    engine = common.load_engine(
        model,
        drafter,
        runtime=runtime,
        dtype=dtype,
        threads=threads,
        learns=True,
        progress=not no_progress,
    )
    calibration = engine.calibration or engine.recalibrate()
    if calibration is None:
        terminal.note("error: the clock of this machine stands still: nothing could be measured.")
        raise typer.Exit(1)
    for line in _lines(calibration):
        print(line)


def _lines(calibration: Calibration) -> list[str]:
    from paceline.bench.explain import cost_lines

    times = f"lower quartiles of {calibration.sweeps}, measured in {calibration.seconds:.1f} s"
    return [*cost_lines(calibration.passes, calibration.draft), times]
