"""Finds a pair of models on disk and loads it into a runtime.

The only module outside `runtime.torch` that imports it, and only when a pair is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from paceline.chat import opens_empty_thought
from paceline.checkpoint.huggingface import (
    DrafterFolder,
    GenerationDefaults,
    TargetFolder,
    open_drafter,
    open_target,
)
from paceline.checkpoint.strict_json import shown
from paceline.config import check_pair, check_range
from paceline.errors import CheckpointError, ConfigError, MissingDependencyError
from paceline.runtime.protocols import Drafter, Target
from paceline.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16")
MAX_THREADS = 1024

SHIPPED_FOLDER = Path(__file__).parent / "models" / "default"
SHIPPED_NAME = "paceline-default"
DRAFTER_FOLDER = "assistant"
DRAFTER_SUFFIX = "-assistant"

LoadProgress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all) while weights load."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
_HUB_CACHE_NAME = re.compile(r"models--(.+)--(.+)")


@dataclass(frozen=True, kw_only=True)
class LoadedPair:
    """A target with its drafter, ready to run.

    Args:
        name: of the target, for people.
        num_target_parameters: and `num_drafter_parameters`: counts of weights.
        weight_bytes: of both models in their files.
        dtype: in which they run.
        threads: processor threads that they run on.
        empty_thought: the model's template opens plain answers with an empty thought channel.
    """

    target: Target
    drafter: Drafter | None
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    name: str
    num_target_parameters: int = 0
    num_drafter_parameters: int = 0
    weight_bytes: int = 0
    dtype: str = "float32"
    threads: int = 1
    empty_thought: bool = False


def load_pair(
    target: str | Path | None = None,
    drafter: str | Path | None = "auto",
    *,
    dtype: str = "float32",
    threads: int | None = None,
    progress: LoadProgress | None = None,
) -> LoadedPair:
    """Load a target and its drafter.

    Args:
        target: a Hugging Face folder; None is the pair that ships with Paceline.
        drafter: a folder; "auto" takes `assistant/` inside the target's folder, else
            the folder's name with `-assistant`, else none; None takes none.
        dtype: "float32" or "bfloat16".
        threads: processor threads for the whole process; None leaves them as they are.
        progress: called between slices of weights.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
        PairMismatchError: the drafter was made for another target.
        ConfigError: `dtype` or `threads` is not possible.
        MissingDependencyError: the runtime is not installed.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not possible: expected {' or '.join(DTYPES)}.")
    if threads is not None:
        check_range("threads", threads, 1, MAX_THREADS)
    opened = open_target(find_target(target))
    drafter_path = find_drafter(opened.path, drafter)
    opened_drafter = None if drafter_path is None else open_drafter(drafter_path)
    if opened_drafter is not None:
        check_pair(opened.config, opened_drafter.config)
    tokenizer = _load_tokenizer(opened)
    runtime = _torch_runtime()
    if threads is not None:
        runtime.set_threads(threads)
    return _load(runtime, opened, opened_drafter, tokenizer, dtype, progress)


def _load(
    runtime: ModuleType,
    target: TargetFolder,
    drafter: DrafterFolder | None,
    tokenizer: Tokenizer,
    dtype: str,
    progress: LoadProgress | None,
) -> LoadedPair:
    weight_bytes = target.weights.num_bytes + (drafter.weights.num_bytes if drafter else 0)
    count = ByteCounter(weight_bytes, progress).count
    loaded_target = runtime.load_target(target.config, target.weights, dtype, count)
    loaded_drafter = None
    if drafter is not None:
        loaded_drafter = runtime.load_drafter(
            drafter.config, drafter.weights, dtype, count, loaded_target
        )
    return LoadedPair(
        target=loaded_target,
        drafter=loaded_drafter,
        tokenizer=tokenizer,
        defaults=target.defaults,
        name=display_name(target.path),
        num_target_parameters=target.weights.num_parameters,
        num_drafter_parameters=drafter.weights.num_parameters if drafter else 0,
        weight_bytes=weight_bytes,
        dtype=dtype,
        threads=runtime.num_threads(),
        empty_thought=opens_empty_thought(target.chat_template),
    )


class ByteCounter:
    """Adds up the bytes read for a `LoadProgress`."""

    def __init__(self, total: int, progress: LoadProgress | None) -> None:
        self.total = total
        self.read = 0
        self.progress = progress

    def count(self, num_bytes: int) -> None:
        self.read += num_bytes
        if self.progress is not None:
            self.progress(self.read, self.total)


def find_target(target: str | Path | None) -> Path:
    """The target's folder.

    Raises:
        CheckpointError: there is none; a Hub name gets the line that downloads it.
    """
    if target is None:
        if not SHIPPED_FOLDER.is_dir():
            raise CheckpointError(
                f"the pair that ships with Paceline is not in {SHIPPED_FOLDER}: this "
                "installation is incomplete. Install Paceline again, or pass the folder of a model."
            )
        return SHIPPED_FOLDER
    return _existing_folder(target, "model")


def find_drafter(target_folder: Path, drafter: str | Path | None) -> Path | None:
    """The drafter's folder, or None for none.

    Raises:
        CheckpointError: a folder was named and is not there.
    """
    if drafter is None:
        return None
    if drafter != "auto":
        return _existing_folder(drafter, "drafter")
    resolved = target_folder.resolve()
    candidates = (
        target_folder / DRAFTER_FOLDER,
        resolved.with_name(resolved.name + DRAFTER_SUFFIX),
    )
    return next((folder for folder in candidates if folder.is_dir()), None)


def _existing_folder(given: str | Path, what: str) -> Path:
    path = Path(given)
    try:
        path = path.expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: no such home directory
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot read the folder {shown(str(path))}: {reason}") from error
    if is_folder:
        return path
    if exists:
        raise CheckpointError(
            f"{path} is a file: pass the folder of the {what}, which holds config.json and "
            "model.safetensors."
        )
    if isinstance(given, str) and _HUB_NAME.fullmatch(given):
        folder = given.partition("/")[2]
        raise CheckpointError(
            f"there is no folder {given}. Paceline does not download models yet: run "
            f"`hf download {given} --local-dir {folder}` and pass {folder}."
        )
    raise CheckpointError(f"there is no folder {shown(str(path))}: pass the folder of the {what}.")


def display_name(folder: Path) -> str:
    """What people call a model: its folder, or its Hub name if it lies in the Hub's cache."""
    resolved = folder.resolve()
    if resolved == SHIPPED_FOLDER.resolve():
        return SHIPPED_NAME
    for part in resolved.parts[-3:]:
        cached = _HUB_CACHE_NAME.fullmatch(part)
        if cached:
            return f"{cached[1]}/{cached[2]}"
    return resolved.name


def _load_tokenizer(target: TargetFolder) -> Tokenizer:
    path = target.tokenizer_file
    if not path.is_file():
        raise CheckpointError(
            f"{target.path} has no {path.name}: the tokenizer is missing. Is the download complete?"
        )
    tokenizer = Tokenizer.from_file(path)
    if tokenizer.vocab_size != target.config.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} tokens, but the model has "
            f"{target.config.vocab_size}: it belongs to another model."
        )
    return tokenizer


def _torch_runtime() -> ModuleType:
    try:
        from paceline.runtime.torch import load
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            "running a model needs PyTorch, which is not installed. Run: "
            "pip install 'paceline[torch]'"
        ) from error
    return load
