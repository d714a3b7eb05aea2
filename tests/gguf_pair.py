"""A tiny pair as a folder and as GGUF files, written once for all tests that read them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paceline.checkpoint.convert import FileDtype, convert_drafter, convert_target
from paceline.checkpoint.huggingface import DrafterFolder, TargetFolder, open_drafter, open_target
from random_pair import write_random_pair

_FOLDER = tempfile.TemporaryDirectory()  # lives as long as the test run


@dataclass(frozen=True)
class Source:
    target: TargetFolder
    drafter: DrafterFolder


def ignore(count: int) -> None:
    """Progress that nobody watches."""


@cache
def source() -> Source:
    """All of its rows are whole blocks, so that every matrix is quantised."""
    folder = write_random_pair(Path(_FOLDER.name, "pair"), hidden_size=64)
    return Source(open_target(folder), open_drafter(folder / "assistant"))


@cache
def files(dtype: FileDtype) -> tuple[Path, Path]:
    """The target's file and the drafter's, which lies beside it."""
    paths = tuple(Path(_FOLDER.name, f"{dtype}{end}.gguf") for end in ("", "-assistant"))
    target, drafter = source().target, source().drafter
    convert_target(target, paths[0], dtype, name="tiny", count=ignore)
    convert_drafter(
        drafter,
        paths[1],
        dtype,
        name="tiny-assistant",
        tokenizer_file=target.tokenizer_file,
        count=ignore,
    )
    return paths
