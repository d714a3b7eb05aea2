"""What every command does with an engine before it asks for text: load it, read its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paceline.cli.options import Dtype, Runtime, StatsFormat
from paceline.cli.progress import LateBar
from paceline.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.sampling import SamplingParams


@dataclass(kw_only=True)
class AnswerSettings:
    """How an answer is wanted, and what is shown of it. `chat` changes it between turns."""

    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    draft: int | None = None
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
    progress: bool = True,
) -> Engine:
    """Load a pair, with a bar if it takes long.

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
            return Engine.load(
                model,
                None if drafter == "none" else drafter,
                runtime=runtime.value,
                dtype=name,
                threads=threads,
                progress=bar,
            )
        except ConfigError as error:  # a config.json is at fault, not a flag
            raise CheckpointError(str(error)) from error


def sampling_params(engine: Engine, **given: float | int | None) -> SamplingParams:
    """The model's own sampling settings, with those that were given on the command line.

    Raises:
        ConfigError: one is out of range.
    """
    said = {name: value for name, value in given.items() if value is not None}
    return replace(engine.default_sampling(), **said)  # type: ignore[arg-type]


def check_draft(engine: Engine, draft: int | None, *, option: str = "--draft") -> int | None:
    """`draft`, if this engine can draft that many tokens.

    Raises:
        ConfigError: it cannot; says what it can.
    """
    limit = engine.max_draft_tokens
    if draft and not limit:
        raise ConfigError(
            f"{option} {draft} needs a drafter, and none is loaded. "
            f"Pass {option} off, or a drafter's folder with --drafter."
        )
    if draft and draft > limit:
        raise ConfigError(
            f"{option} {draft} is too large: this drafter supports 1 to {limit}. "
            f"Pass {option} {limit} or less."
        )
    return draft
