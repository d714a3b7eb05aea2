"""Bars for what takes over a second: loading, the prompt pass, benchmark runs.

They are drawn on standard error, and only where it is a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from paceline.cli.terminal import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_S = 1.0


class LateBar:
    """Called with (done, in all); draws itself once a second has gone by, and goes at the end.

    Args:
        label: what is being done.
        enabled: False never draws.
        clock: seconds, for tests.
    """

    def __init__(
        self, label: str, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._label = label
        self._enabled = enabled and is_terminal(sys.stderr)
        self._clock = clock
        self._started = clock()
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if not self._enabled:
            return
        if done >= total:
            self.close()
        elif self._bar is not None or self._clock() - self._started >= PATIENCE_S:
            self._draw(done, total)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _open_bar(self._label)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        """Take the bar away. Harmless when there is none."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> LateBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_bar(label: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(label)
    bar.start()
    return bar
