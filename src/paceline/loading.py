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
from paceline.checkpoint.config_file import read_drafter_config, read_target_config
from paceline.checkpoint.gguf_format import MAGIC
from paceline.checkpoint.gguf_model import (
    SUFFIX,
    DrafterFile,
    TargetFile,
    open_drafter_file,
    open_target_file,
)
from paceline.checkpoint.gguf_tokenizer import read_tokenizer
from paceline.checkpoint.huggingface import (
    DrafterFolder,
    GenerationDefaults,
    TargetFolder,
    config_file,
    open_drafter,
    open_target,
)
from paceline.checkpoint.strict_json import shown
from paceline.config import DrafterConfig, TargetConfig, check_pair, check_range
from paceline.errors import (
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    PairMismatchError,
)
from paceline.memory import ITEM_BYTES, plan_memory
from paceline.runtime.protocols import Drafter, Target
from paceline.tokenizer import Tokenizer

MAX_THREADS = 1024

SHIPPED_FOLDER = Path(__file__).parent / "models" / "default"
SHIPPED_NAME = "paceline-default"
DRAFTER_FOLDER = "assistant"
DRAFTER_SUFFIX = "-assistant"
DRAFTER_PREFIX = "mtp-"
DRAFTER_FILES = ("*assistant*" + SUFFIX, DRAFTER_PREFIX + "*" + SUFFIX)
MAX_DRAFTER_FILES = 16  # looked at beside a model's file

OpenTarget = TargetFolder | TargetFile
OpenDrafter = DrafterFolder | DrafterFile

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
        target: a Hugging Face folder or a GGUF file; None is the pair that ships with Paceline.
        drafter: a folder or file; "auto" takes the one that lies with the target (see
            `open_drafter_of`), if any; None takes none.
        dtype: "float32" or "bfloat16".
        threads: processor threads for the whole process; None leaves them as they are.
        progress: called between slices of weights.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
        PairMismatchError: the drafter was made for another target.
        ConfigError: `dtype` or `threads` is not possible.
        OutOfMemoryError: the weights alone are more than the free memory.
        MissingDependencyError: the runtime is not installed.
    """
    if dtype not in ITEM_BYTES:
        raise ConfigError(f"dtype {dtype!r} is not possible: expected {' or '.join(ITEM_BYTES)}.")
    if threads is not None:
        check_range("threads", threads, 1, MAX_THREADS)
    opened = open_model(find_target(target))
    opened_drafter = open_drafter_of(opened, drafter)
    _check_memory(opened, opened_drafter, dtype)
    tokenizer = load_tokenizer(opened)
    runtime = _torch_runtime()
    if threads is not None:
        runtime.set_threads(threads)
    return _load(runtime, opened, opened_drafter, tokenizer, dtype, progress)


def _load(
    runtime: ModuleType,
    target: OpenTarget,
    drafter: OpenDrafter | None,
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
    """The target's folder or file.

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
    return _existing_model(target, "model")


def open_drafter_of(target: OpenTarget, drafter: str | Path | None) -> OpenDrafter | None:
    """The drafter that was asked for, checked to fit its target; None for none.

    Beside a target's file `X.gguf`, "auto" takes `X-assistant.gguf` or `mtp-X.gguf`; else the
    first by name of the files `*assistant*.gguf` and `mtp-*.gguf` that was made for the target.
    For a folder see `find_drafter`.

    Raises:
        CheckpointError: it is damaged, or was named and is not there.
        PairMismatchError: it was made for another target.
    """
    path = find_drafter(target.path, drafter)
    if path is None:
        return _drafter_beside(target) if drafter == "auto" and target.path.is_file() else None
    opened = _open_drafter(path)
    check_pair(target.config, opened.config)
    return opened


def find_drafter(target: Path, drafter: str | Path | None) -> Path | None:
    """The drafter's folder or file, or None for none; nothing is opened.

    "auto" takes `assistant/` inside the target's folder, else the folder's name with `-assistant`;
    for a file the two names that `open_drafter_of` looks for first.

    Raises:
        CheckpointError: one was named and is not there.
    """
    if drafter is None:
        return None
    if drafter != "auto":
        return _existing_model(drafter, "drafter")
    resolved = target.resolve()
    if target.is_file():
        names = (resolved.stem + DRAFTER_SUFFIX + SUFFIX, DRAFTER_PREFIX + resolved.name)
        files = (resolved.with_name(name) for name in names)
        return next((file for file in files if file.is_file()), None)
    candidates = (target / DRAFTER_FOLDER, resolved.with_name(resolved.name + DRAFTER_SUFFIX))
    return next((folder for folder in candidates if folder.is_dir()), None)


def _drafter_beside(target: OpenTarget) -> DrafterFile | None:
    """The first drafter's file in the target's folder that fits. Others may lie there too."""
    folder = target.path.resolve().parent
    files = sorted({file for pattern in DRAFTER_FILES for file in folder.glob(pattern)})
    for file in files[:MAX_DRAFTER_FILES]:
        try:
            opened = open_drafter_file(file)
            check_pair(target.config, opened.config)
        except (CheckpointError, PairMismatchError):
            continue
        return opened
    return None


def read_configs(
    target: Path, drafter: str | Path | None
) -> tuple[TargetConfig, DrafterConfig | None]:
    """The geometry of a pair; of a folder nothing but config.json is read.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
        PairMismatchError: the drafter was made for another target.
    """
    if target.is_file():
        opened = open_target_file(target)
        opened_drafter = open_drafter_of(opened, drafter)
        return opened.config, None if opened_drafter is None else opened_drafter.config
    config = read_target_config(config_file(target))
    path = find_drafter(target, drafter)
    if path is None:
        return config, None
    drafter_config = (
        open_drafter_file(path).config if path.is_file() else read_drafter_config(config_file(path))
    )
    check_pair(config, drafter_config)
    return config, drafter_config


def _check_memory(target: OpenTarget, drafter: OpenDrafter | None, dtype: str) -> None:
    """The KV cache grows later, so that only its first tokens count here."""
    drafter_config = None if drafter is None else drafter.config
    plan_memory(target.config, drafter_config, dtype=dtype, context=1).check()


def open_model(path: Path) -> OpenTarget:
    """A target's folder or file, its tensors checked against its geometry; none is read.

    Raises:
        CheckpointError: it is damaged or of another kind.
    """
    return open_target_file(path) if path.is_file() else open_target(path)


def _open_drafter(path: Path) -> OpenDrafter:
    return open_drafter_file(path) if path.is_file() else open_drafter(path)


def _is_gguf(path: Path) -> bool:
    if path.suffix == SUFFIX:
        return path.is_file()
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _existing_model(given: str | Path, what: str) -> Path:
    """A folder, or a GGUF file of any name."""
    path = Path(given)
    try:
        path = path.expanduser()
        is_model, exists = path.is_dir() or (path.is_file() and _is_gguf(path)), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: no such home directory
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot read the folder {shown(str(path))}: {reason}") from error
    if is_model:
        return path
    if exists:
        raise CheckpointError(
            f"{path} is a file: pass the folder of the {what}, which holds config.json and "
            "model.safetensors, or a GGUF file."
        )
    if isinstance(given, str) and _HUB_NAME.fullmatch(given):
        folder = given.partition("/")[2]
        raise CheckpointError(
            f"there is no folder {given}. Paceline does not download models yet: run "
            f"`hf download {given} --local-dir {folder}` and pass {folder}."
        )
    raise CheckpointError(f"there is no folder {shown(str(path))}: pass the folder of the {what}.")


def display_name(path: Path) -> str:
    """What people call a model: its folder or file, or its Hub name if it lies in the Hub's
    cache."""
    if path.is_file():
        return path.stem
    resolved = path.resolve()
    if resolved == SHIPPED_FOLDER.resolve():
        return SHIPPED_NAME
    for part in resolved.parts[-3:]:
        cached = _HUB_CACHE_NAME.fullmatch(part)
        if cached:
            return f"{cached[1]}/{cached[2]}"
    return resolved.name


def load_tokenizer(target: OpenTarget) -> Tokenizer:
    """
    Raises:
        CheckpointError: it is missing, damaged or another model's.
    """
    path = target.tokenizer_file
    if isinstance(target, TargetFile) and not path.is_file():
        path, tokenizer = target.path, read_tokenizer(target.file)
    elif path.is_file():
        tokenizer = Tokenizer.from_file(path)
    else:
        raise CheckpointError(
            f"{target.path} has no {path.name}: the tokenizer is missing. Is the download complete?"
        )
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
