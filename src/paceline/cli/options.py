"""The options that several commands share, so that they have one spelling and one help text."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.engine import DraftLength

MAX_TOKENS = 1024
"""Equal to `paceline.engine.DEFAULT_MAX_TOKENS`, which is too slow to import for a help text."""


class StatsFormat(StrEnum):
    NONE = "none"
    FOOTER = "footer"
    JSON = "json"


class Runtime(StrEnum):
    AUTO = "auto"
    NATIVE = "native"
    TORCH = "torch"


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Hugging Face folder or GGUF file of a Gemma 4. Default: the pair that ships.",
    ),
]
Drafter = Annotated[
    str,
    typer.Option(
        metavar="MODEL|auto|none",
        help="The drafter's folder or file; auto takes the one that lies with the model.",
    ),
]
Draft = Annotated[
    str,
    typer.Option(
        metavar="auto|N|off",
        help="Tokens to draft each round; auto drafts what pays here. It changes the speed, never "
        "the text.",
    ),
]
Prediction = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A text that the answer will mostly repeat, to draft from."),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write what each round did: .jsonl, or .json for ui.perfetto.dev."
    ),
]
Remember = Annotated[
    bool,
    typer.Option(
        "--remember",
        help="Draft from earlier answers too, and keep this one for it; paceline forget deletes "
        "them.",
    ),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 takes the most likely token. Default of this and the next two: the model's own."
    ),
]
TopK = Annotated[int | None, typer.Option(help="Keep the K most likely tokens; 0 keeps all.")]
TopP = Annotated[
    float | None, typer.Option(help="Keep the likely tokens that sum to this probability.")
]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens below this fraction of the most likely one's probability."),
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text. Default: a random one.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text. Repeatable.")
]
System = Annotated[str | None, typer.Option(help="Instructions for the whole conversation.")]
Think = Annotated[
    bool, typer.Option("--think", help="Let the model reason first, shown on standard error.")
]
ShowDraft = Annotated[
    bool, typer.Option("--show-draft", help="Underline the tokens that the drafter had foreseen.")
]
Stats = Annotated[
    StatsFormat | None,
    typer.Option(help="Statistics on standard error. Default: footer on a terminal, else none."),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Processor threads. Default: the runtime's choice."),
]
RuntimeOption = Annotated[
    Runtime,
    typer.Option(
        "--runtime", help="What runs the model; auto is native, unless --dtype asks for torch."
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype", help="Arithmetic of the torch runtime. The native one takes the file's types."
    ),
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Draw no progress bars.")]


def parse_draft(text: str, *, option: str = "--draft") -> DraftLength:
    """The number of tokens to draft: 0 for "off", "auto" for what pays.

    Raises:
        ConfigError: it is neither "auto" nor "off" nor a whole number.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"{option} must be auto, off or a whole number, got {text!r}.")
    return int(text)
