"""What every command does with an engine before it asks for text: load it, read its settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.cli import environment, terminal
from paceline.cli.options import Dtype, Runtime, StatsFormat, parse_draft
from paceline.cli.progress import LateBar
from paceline.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from paceline.engine import DraftLength, Engine
    from paceline.sampling import SamplingParams


@dataclass(kw_only=True)
class AnswerSettings:
    """How an answer is wanted, and what is shown of it. `chat` changes it between turns."""

    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    draft: DraftLength = "auto"
    prediction: str | None = None
    raw: bool = False
    thinking: bool = False
    show_draft: bool = False
    stats: StatsFormat = StatsFormat.NONE
    progress: bool = True


def load_engine(
    model: str | None,
    drafter: str,
    *,
    runtime: Runtime = Runtime.AUTO,
    dtype: Dtype | None = None,
    threads: int | None = None,
    learns: bool = False,
    remembers: bool = False,
    progress: bool = True,
) -> Engine:
    """Load a pair, with a bar if it takes long.

    Args:
        learns: measure this machine unless that was done before, and say so; keep what is learned.
        remembers: draft from earlier answers, and add to them.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
        ConfigError: this runtime has no `dtype`.
        MissingDependencyError: the runtime is not installed.
    """
    with LateBar("loading", enabled=progress) as bar:
        from paceline.engine import Engine
        from paceline.loading import choose_runtime

        name = None if dtype is None else dtype.value
        choose_runtime(runtime.value, name)
        try:
            engine = Engine.load(
                model,
                None if drafter == "none" else drafter,
                runtime=runtime.value,
                dtype=name,
                threads=threads,
                cache_folder=environment.cache_folder() if learns or remembers else None,
                learns=learns,
                remembers=remembers,
                progress=bar,
            )
        except ConfigError as error:  # a config.json is at fault, not a flag
            raise CheckpointError(str(error)) from error
    if engine.calibration is not None and progress and terminal.is_terminal(sys.stderr):
        terminal.note(
            f"measured how fast this machine drafts, in {engine.calibration.seconds:.1f} s: "
            "paceline calibrate shows it."
        )
    return engine


@contextmanager
def at_work(engine: Engine, trace: Path | None = None) -> Iterator[None]:
    """While answers are made: write a trace, and keep what was learned in the end.

    Raises:
        ConfigError: the trace cannot be written there.
    """
    from paceline.speculative.trace import TraceFile

    try:
        if trace is None:
            yield
            return
        with TraceFile(trace) as engine.on_round:
            yield
    finally:
        engine.on_round = None
        engine.keep_learned()


def parse_drafting(
    draft: str,
    trace: Path | None = None,
    *,
    prediction: Path | None = None,
    remember: bool = False,
) -> DraftLength:
    """The draft length that was asked for, once all that goes with it is checked.

    Raises:
        ConfigError: a word is wrong, or texts are to be drafted from with a fixed length.
    """
    length = parse_draft(draft)
    for option, given in (("--prediction", prediction is not None), ("--remember", remember)):
        if given and length != "auto":
            raise ConfigError(f"{option} needs --draft auto, got --draft {draft}.")
    if trace is not None:
        from paceline.speculative.trace import check_trace

        check_trace(trace)
    return length


def sampling_params(engine: Engine, **given: float | int | None) -> SamplingParams:
    """The model's own sampling settings, with those that were given on the command line.

    Raises:
        ConfigError: one is out of range.
    """
    said = {name: value for name, value in given.items() if value is not None}
    return replace(engine.default_sampling(), **said)  # type: ignore[arg-type]


def check_draft(engine: Engine, draft: DraftLength, *, option: str = "--draft") -> DraftLength:
    """`draft`, if this engine can draft that many tokens.

    Raises:
        ConfigError: it cannot; says what it can.
    """
    if draft == "auto":
        return draft
    limit = engine.max_draft_tokens
    if draft and not limit:
        raise ConfigError(
            f"{option} {draft} needs a drafter, and none is loaded. "
            f"Pass {option} off, or a drafter's folder with --drafter."
        )
    if draft > limit:
        raise ConfigError(
            f"{option} {draft} is too large: this drafter supports 1 to {limit}. "
            f"Pass {option} {limit} or less."
        )
    return draft
