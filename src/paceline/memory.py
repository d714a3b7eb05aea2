"""What a model needs in memory before it is loaded, and what the machine has free.

The torch runtime holds every weight in the type that it runs in, so that its sizes follow from the
config alone. The native one holds weights in the types of their file.
"""

from __future__ import annotations

import ctypes
import math
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from paceline.checkpoint.names import TensorSpec, drafter_table, target_table
from paceline.checkpoint.quantise import stored_bytes
from paceline.config import DrafterConfig, LayerSpec, TargetConfig
from paceline.errors import OutOfMemoryError

ITEM_BYTES = {"float32": 4, "bfloat16": 2}  # of the types that models run in
ORDERING_BYTES = 8
NATIVE_ORDERING_BYTES = 8  # and its inverse, 4 bytes each

# The torch runtime's cache: positions come in blocks, and a sliding layer's ring has one block
# and room for a round more than its window.
BLOCK = 64
RING_SLACK = 9

# The native runtime's: matrices in panels of 32 rows, values in panels of 16 columns, and rings
# with room for the largest pass more than the window.
PANEL_ROWS = 32
VALUE_COLUMNS = 16
NATIVE_RING_SLACK = 128
FOLDER_DTYPE = "BF16"  # of a Hugging Face folder whose weights were not looked at
ROW_TABLE = "embed_tokens_per_layer.weight"  # stays in the file; rows are read as they are needed

RuntimeName = Literal["native", "torch"]

StoredTypes = Mapping[str, str]
"""The type of each tensor in its file, by the names of Paceline's modules."""

PROC_MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that a pair needs.

    Args:
        context: positions of one sequence that `kv_bytes` holds.
        free_bytes: what the machine has; None where that cannot be known.
    """

    target_bytes: int
    drafter_bytes: int
    kv_bytes: int
    context: int
    free_bytes: int | None

    @property
    def needed_bytes(self) -> int:
        return self.target_bytes + self.drafter_bytes + self.kv_bytes

    def check(self) -> None:
        """
        Raises:
            OutOfMemoryError: more is needed than is free.
        """
        if self.free_bytes is not None and self.needed_bytes > self.free_bytes:
            raise OutOfMemoryError(
                f"this model does not fit: it needs {gigabytes(self.needed_bytes)} (target "
                f"{gigabytes(self.target_bytes)}, drafter {gigabytes(self.drafter_bytes)}, KV "
                f"cache of {self.context} tokens {gigabytes(self.kv_bytes)}), and "
                f"{gigabytes(self.free_bytes)} are free. Close other programs, or take a smaller "
                "model, such as a GGUF file in Q4_0."
            )


@dataclass(frozen=True, kw_only=True)
class PairOutline:
    """What is known of a pair before it is loaded.

    Args:
        target_types: and `drafter_types`: what was looked at. A matrix that is not in them counts
            as `FOLDER_DTYPE`.
    """

    target: TargetConfig
    drafter: DrafterConfig | None = None
    target_types: StoredTypes = field(default_factory=dict)
    drafter_types: StoredTypes = field(default_factory=dict)


def plan_memory(
    pair: PairOutline, *, runtime: RuntimeName, dtype: str | None = None, context: int
) -> MemoryPlan:
    """What a pair needs to run one sequence of `context` tokens.

    Args:
        dtype: in which the torch runtime runs; None is float32.
    """
    if runtime == "native":
        target = native_weight_bytes(pair.target, pair.target_types)
        drafter = native_weight_bytes(pair.drafter, pair.drafter_types) if pair.drafter else 0
        kv = native_kv_bytes(pair.target, context)
    else:
        item = dtype or "float32"
        target = target_bytes(pair.target, item)
        drafter = drafter_bytes(pair.drafter, item) if pair.drafter else 0
        kv = kv_bytes(pair.target, item, context)
    return MemoryPlan(
        target_bytes=target,
        drafter_bytes=drafter,
        kv_bytes=kv,
        context=context,
        free_bytes=free_memory(),
    )


def tensor_specs(config: TargetConfig | DrafterConfig) -> tuple[TensorSpec, ...]:
    table = target_table(config) if isinstance(config, TargetConfig) else drafter_table(config)
    return table.specs


def num_weights(config: TargetConfig | DrafterConfig) -> int:
    return sum(math.prod(x.shape) for x in tensor_specs(config) if x.kind == "weight")


def native_weight_bytes(config: TargetConfig | DrafterConfig, types: StoredTypes) -> int:
    """What the native runtime holds of a model's weights."""
    return sum(
        packed_bytes(spec, types.get(spec.name, FOLDER_DTYPE)) for spec in tensor_specs(config)
    )


def packed_bytes(spec: TensorSpec, dtype: str) -> int:
    if spec.name == ROW_TABLE:
        return 0
    if spec.kind == "token_ordering":
        return NATIVE_ORDERING_BYTES * math.prod(spec.shape)
    if len(spec.shape) == 1:
        return 4 * spec.shape[0]
    *outer, rows, columns = spec.shape
    return math.prod(outer) * stored_bytes(dtype, _rounded_up(rows, PANEL_ROWS) * columns)


def native_kv_bytes(config: TargetConfig, context: int) -> int:
    """As `kv_bytes`, in 16 bits, each head of values padded to whole panels."""
    total = 0
    for layer, positions in _kv_positions(config, context, NATIVE_RING_SLACK):
        padded = _rounded_up(layer.head_dim, VALUE_COLUMNS)
        total += positions * layer.num_kv_heads * (layer.head_dim + padded) * 2
    return total


def bytes_per_token(config: TargetConfig, sizes: Mapping[str, int]) -> int:
    """What one token reads of a target's weights: all but per-layer embeddings and experts that
    it does not use. The token table is read whole, as the output head.

    Args:
        sizes: bytes of each tensor as the runtime holds it.
    """
    total = sum(size for name, size in sizes.items() if name != ROW_TABLE)
    if config.num_experts:
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        total -= experts - experts * config.num_experts_per_token // config.num_experts
    return total


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def target_bytes(config: TargetConfig, dtype: str) -> int:
    """Weights; on x86 the output head is there a second time, in its kernel's layout."""
    head = config.vocab_size * config.hidden_size if is_x86() else 0
    return (num_weights(config) + head) * ITEM_BYTES[dtype]


def drafter_bytes(config: DrafterConfig, dtype: str) -> int:
    ordering = config.vocab_size * ORDERING_BYTES if config.num_centroids else 0
    return num_weights(config) * ITEM_BYTES[dtype] + ordering


def kv_bytes(config: TargetConfig, dtype: str, context: int) -> int:
    """The most that the KV cache of one sequence of `context` positions takes.

    Tables of global layers double when they are full, so that they may be half empty.
    """
    total = 0
    for layer, positions in _kv_positions(config, context, RING_SLACK + BLOCK):
        total += positions * layer.num_kv_heads * layer.head_dim * 2
    return total * ITEM_BYTES[dtype]


def _kv_positions(
    config: TargetConfig, context: int, ring_slack: int
) -> Iterator[tuple[LayerSpec, int]]:
    """Each layer that owns KV, with the positions that it has room for."""
    needed = -(-context // BLOCK)
    most = -(-config.context_length // BLOCK)
    for layer in config.layers:
        if not layer.owns_kv:
            continue
        if layer.window is None:
            blocks = max(needed, 2 * (needed - 1))
        else:
            blocks = -(-(layer.window + ring_slack) // BLOCK)
        yield layer, min(blocks, most) * BLOCK


def is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def free_memory(meminfo: Path = PROC_MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that can be allocated now: the system's, within the container's limit.

    None where neither can be read.
    """
    values = [x for x in (_system_free(meminfo), _container_free(cgroup)) if x is not None]
    return min(values, default=None)


def total_memory(meminfo: Path = PROC_MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes of the machine, or of the container's limit; None where neither can be read."""
    values = [x for x in (_system_total(meminfo), _container_limit(cgroup)) if x is not None]
    return min(values, default=None)


def _system_total(meminfo: Path) -> int | None:
    total = _numbers(meminfo, ":").get("MemTotal")
    return None if total is None else 1024 * total


def _container_limit(cgroup: Path) -> int | None:
    try:
        return int((cgroup / "memory.max").read_text())  # "max" where there is none
    except (OSError, ValueError):
        return None


def _system_free(meminfo: Path) -> int | None:
    """Available memory and free swap."""
    fields = _numbers(meminfo, ":")
    if "MemAvailable" not in fields:
        return None
    return 1024 * (fields["MemAvailable"] + fields.get("SwapFree", 0))


def _container_free(cgroup: Path) -> int | None:
    """The limit minus what is used; cached files can be dropped."""
    limit = _container_limit(cgroup)
    if limit is None:
        return None
    try:
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    cached = _numbers(cgroup / "memory.stat", " ").get("inactive_file", 0)
    return max(0, limit - used + cached)


def _numbers(path: Path, separator: str) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(separator, 1) for line in lines if separator in line)
    return {
        name.strip(): int(rest.split()[0])
        for name, rest in pairs
        if rest.split() and rest.split()[0].isdigit()
    }


def give_back_heap() -> None:
    """Have the C library return what was freed to the system. Building a tokenizer frees far more
    than it keeps, and glibc would hold on to it."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


def gigabytes(num_bytes: int) -> str:
    """As disks and model cards count: 1 GB is a billion bytes; small models in MB."""
    if num_bytes < 100_000_000:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e9:.2f} GB"
