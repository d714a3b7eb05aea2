"""Paceline: Gemma 4 with its multi-token-prediction drafters, lossless, on the machines people own.

    from paceline import Engine
    engine = Engine.load()
    for delta in engine.stream("Why is the sky blue?"):
        print(delta.text, end="")

These names are the public door; each is imported when it is first used, so that importing the
package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.chat import Message, ToolCall, ToolDeclaration
    from paceline.engine import Engine, Generation, Stream
    from paceline.errors import (
        CheckpointError,
        ConfigError,
        LogitsError,
        MissingDependencyError,
        PacelineError,
        PairMismatchError,
        PromptError,
    )
    from paceline.output import Delta
    from paceline.sampling import SamplingParams
    from paceline.sequence import EmittedToken
    from paceline.speculative.controller import (
        DraftContext,
        DraftLengthPolicy,
        DraftPlan,
        RoundCost,
        RoundOutcome,
    )
    from paceline.stats import GenerationStats

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Delta",
    "DraftContext",
    "DraftLengthPolicy",
    "DraftPlan",
    "EmittedToken",
    "Engine",
    "Generation",
    "GenerationStats",
    "LogitsError",
    "Message",
    "MissingDependencyError",
    "PacelineError",
    "PairMismatchError",
    "PromptError",
    "RoundCost",
    "RoundOutcome",
    "SamplingParams",
    "Stream",
    "ToolCall",
    "ToolDeclaration",
]

_MODULES = {
    "paceline.chat": ("Message", "ToolCall", "ToolDeclaration"),
    "paceline.engine": ("Engine", "Generation", "Stream"),
    "paceline.errors": (
        "CheckpointError",
        "ConfigError",
        "LogitsError",
        "MissingDependencyError",
        "PacelineError",
        "PairMismatchError",
        "PromptError",
    ),
    "paceline.output": ("Delta",),
    "paceline.sampling": ("SamplingParams",),
    "paceline.sequence": ("EmittedToken",),
    "paceline.speculative.controller": (
        "DraftContext",
        "DraftLengthPolicy",
        "DraftPlan",
        "RoundCost",
        "RoundOutcome",
    ),
    "paceline.stats": ("GenerationStats",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("paceline")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
