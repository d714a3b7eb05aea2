"""Finds a pair of models on disk and loads it into a runtime.

The only module that imports `runtime.native` and `runtime.torch`, and only when a pair is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

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
from paceline.config import check_pair, check_range
from paceline.errors import (
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    PairMismatchError,
)
from paceline.memory import (
    ITEM_BYTES,
    PairOutline,
    RuntimeName,
    StoredTypes,
    bytes_per_token,
    give_back_heap,
    packed_bytes,
    plan_memory,
)
from paceline.runtime.protocols import Drafter, Target
from paceline.tokenizer import Tokenizer

MAX_THREADS = 1024

SHIPPED_FILE = Path(__file__).parent / "models" / "default" / "paceline-default.gguf"
DRAFTER_FOLDER = "assistant"
DRAFTER_SUFFIX = "-assistant"
DRAFTER_PREFIX = "mtp-"
DRAFTER_FILES = ("*assistant*" + SUFFIX, DRAFTER_PREFIX + "*" + SUFFIX)
MAX_DRAFTER_FILES = 16  # looked at beside a model's file

RuntimeChoice = Literal["auto", "native", "torch"]

OpenTarget = TargetFolder | TargetFile
OpenDrafter = DrafterFolder | DrafterFile

LoadProgress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all) while weights load."""

CountBytes = Callable[[int], None]
"""Called with the number of bytes read since the last call."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
_HUB_CACHE_NAME = re.compile(r"models--(.+)--(.+)")


@dataclass(frozen=True, kw_only=True)
class LoadedPair:
    """A target with its drafter, ready to run.

    Args:
        name: of the target, for people.
        num_target_parameters: and `num_drafter_parameters`: counts of weights.
        weight_bytes: of both models in their files.
        bytes_per_token: what the target reads of its weights for one token.
        runtime: which one they run in.
        dtype: in which they run; in the native runtime that of most of the target's weights.
        threads: processor threads that they run on.
        empty_thought: the model's template opens plain answers with an empty thought channel.
        drafter_path: the drafter's folder or file.
    """

    target: Target
    drafter: Drafter | None
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    name: str
    num_target_parameters: int = 0
    num_drafter_parameters: int = 0
    weight_bytes: int = 0
    bytes_per_token: int = 0
    runtime: RuntimeName = "torch"
    dtype: str = "float32"
    threads: int = 1
    empty_thought: bool = False
    drafter_path: Path | None = None


def load_pair(
    target: str | Path | None = None,
    drafter: str | Path | None = "auto",
    *,
    runtime: RuntimeChoice = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    progress: LoadProgress | None = None,
) -> LoadedPair:
    """Load a target and its drafter.

    Args:
        target: a Hugging Face folder or a GGUF file; None is the pair that ships with Paceline.
        drafter: a folder or file; "auto" takes the one that lies with the target (see
            `open_drafter_of`), if any; None takes none.
        runtime: see `choose_runtime`.
        dtype: "float32" or "bfloat16", of the torch runtime only; None is float32. The native one
            runs weights in the types of their file.
        threads: processor threads. None is what suits the model in the native runtime, and
            leaves the torch one's as they are.
        progress: called between tensors or slices of them.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
        PairMismatchError: the drafter was made for another target.
        ConfigError: `runtime`, `dtype` or `threads` is not possible.
        OutOfMemoryError: the weights alone are more than the free memory.
        MissingDependencyError: the runtime is not installed.
    """
    if dtype is not None and dtype not in ITEM_BYTES:
        raise ConfigError(f"dtype {dtype!r} is not possible: expected {' or '.join(ITEM_BYTES)}.")
    if threads is not None:
        check_range("threads", threads, 1, MAX_THREADS)
    chosen = choose_runtime(runtime, dtype)
    opened = open_model(find_target(target))
    opened_drafter = open_drafter_of(opened, drafter)
    # The KV cache grows, so that a load needs its first tokens only.
    plan_memory(outline(opened, opened_drafter), runtime=chosen, dtype=dtype, context=1).check()
    tokenizer = load_tokenizer(opened)
    weight_bytes = opened.weights.num_bytes
    weight_bytes += opened_drafter.weights.num_bytes if opened_drafter else 0
    count = ByteCounter(weight_bytes, progress).count
    if chosen == "native":
        models = _load_native(opened, opened_drafter, threads, count)
    else:
        models = _load_torch(opened, opened_drafter, dtype or "float32", threads, count)
    give_back_heap()
    return LoadedPair(
        target=models.target,
        drafter=models.drafter,
        tokenizer=tokenizer,
        defaults=opened.defaults,
        name=display_name(opened.path),
        num_target_parameters=opened.weights.num_parameters,
        num_drafter_parameters=opened_drafter.weights.num_parameters if opened_drafter else 0,
        weight_bytes=weight_bytes,
        bytes_per_token=bytes_per_token(opened.config, models.sizes),
        runtime=chosen,
        dtype=models.dtype,
        threads=models.threads,
        empty_thought=opens_empty_thought(opened.chat_template),
        drafter_path=opened_drafter.path if opened_drafter else None,
    )


def choose_runtime(runtime: str = "auto", dtype: str | None = None) -> RuntimeName:
    """Which runtime will run: what was asked for. "auto" is the native one, unless a `dtype` asks
    for the torch one.

    Raises:
        ConfigError: there is no such runtime, or it has no `dtype`.
    """
    if runtime not in get_args(RuntimeChoice):
        raise ConfigError(f"runtime {runtime!r} is not possible: expected auto, native or torch.")
    if runtime == "native" and dtype is not None:
        raise ConfigError(
            f"dtype {dtype!r} belongs to the torch runtime: the native one runs weights in the "
            "types of their file. Leave out dtype, or ask for the torch runtime."
        )
    return "torch" if runtime == "torch" or dtype is not None else "native"


@dataclass(frozen=True, kw_only=True)
class _Models:
    """What a runtime made of a pair's files; `sizes` are the target's bytes by tensor."""

    target: Target
    drafter: Drafter | None
    sizes: Mapping[str, int]
    dtype: str
    threads: int


def _load_native(
    target: OpenTarget, drafter: OpenDrafter | None, threads: int | None, count: CountBytes
) -> _Models:
    from paceline.runtime.native import load

    pool = load.new_pool(threads, target.weights.num_bytes)
    loaded = load.load_target(target.config, target.weights, pool, count)
    loaded_drafter = None
    if drafter is not None:
        loaded_drafter = load.load_drafter(drafter.config, drafter.weights, pool, count, loaded)
    tensors = target.weights.tensors
    return _Models(
        target=loaded,
        drafter=loaded_drafter,
        sizes={x.spec.name: packed_bytes(x.spec, x.dtype) for x in tensors},
        dtype=target.weights.main_dtype,
        threads=pool.threads,
    )


def _load_torch(
    target: OpenTarget,
    drafter: OpenDrafter | None,
    dtype: str,
    threads: int | None,
    count: CountBytes,
) -> _Models:
    runtime = _torch_runtime()
    if threads is not None:
        runtime.set_threads(threads)
    loaded = runtime.load_target(target.config, target.weights, dtype, count)
    loaded_drafter = None
    if drafter is not None:
        loaded_drafter = runtime.load_drafter(drafter.config, drafter.weights, dtype, count, loaded)
    tensors = target.weights.tensors
    return _Models(
        target=loaded,
        drafter=loaded_drafter,
        sizes={x.spec.name: x.num_elements * ITEM_BYTES[dtype] for x in tensors},
        dtype=dtype,
        threads=runtime.num_threads(),
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
        if not SHIPPED_FILE.is_file():
            raise CheckpointError(
                f"the pair that ships with Paceline is not at {SHIPPED_FILE}: this "
                "installation is incomplete. Install Paceline again, or pass a model."
            )
        return SHIPPED_FILE
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


def outline(target: OpenTarget, drafter: OpenDrafter | None) -> PairOutline:
    """What a memory plan needs of an opened pair."""
    return PairOutline(
        target=target.config,
        drafter=None if drafter is None else drafter.config,
        target_types=target.weights.dtypes,
        drafter_types={} if drafter is None else drafter.weights.dtypes,
    )


def read_outline(target: Path, drafter: str | Path | None) -> PairOutline:
    """The same of a pair on disk; of a folder nothing but config.json is read.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
        PairMismatchError: the drafter was made for another target.
    """
    if target.is_file():
        opened = open_target_file(target)
        return outline(opened, open_drafter_of(opened, drafter))
    config = read_target_config(config_file(target))
    path = find_drafter(target, drafter)
    if path is None:
        return PairOutline(target=config)
    types: StoredTypes = {}
    if path.is_file():
        file = open_drafter_file(path)
        drafter_config, types = file.config, file.weights.dtypes
    else:
        drafter_config = read_drafter_config(config_file(path))
    check_pair(config, drafter_config)
    return PairOutline(target=config, drafter=drafter_config, drafter_types=types)


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
            "the torch runtime needs PyTorch, which is not installed. Run: "
            "pip install 'paceline[torch]', or take the native runtime."
        ) from error
    return load
