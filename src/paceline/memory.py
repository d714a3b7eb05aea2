"""What a model needs in memory, from its config alone, and what the machine has free.

The sizes are those of the torch runtime, which holds every weight in the type that it runs in.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from pathlib import Path

from paceline.checkpoint.names import drafter_table, target_table
from paceline.config import DrafterConfig, TargetConfig
from paceline.errors import OutOfMemoryError

ITEM_BYTES = {"float32": 4, "bfloat16": 2}  # of the types that models run in
ORDERING_BYTES = 8

# The torch runtime's cache: positions come in blocks, and a sliding layer's ring has one block
# and room for a round more than its window.
BLOCK = 64
RING_SLACK = 9

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
                f"{gigabytes(self.free_bytes)} are free. Close other programs, use --dtype "
                "bfloat16, or take a smaller model."
            )


def plan_memory(
    target: TargetConfig, drafter: DrafterConfig | None, *, dtype: str, context: int
) -> MemoryPlan:
    """What a pair needs to run one sequence of `context` tokens."""
    return MemoryPlan(
        target_bytes=target_bytes(target, dtype),
        drafter_bytes=drafter_bytes(drafter, dtype) if drafter is not None else 0,
        kv_bytes=kv_bytes(target, dtype, context),
        context=context,
        free_bytes=free_memory(),
    )


def num_weights(config: TargetConfig | DrafterConfig) -> int:
    table = target_table(config) if isinstance(config, TargetConfig) else drafter_table(config)
    return sum(math.prod(spec.shape) for spec in table.specs if spec.kind == "weight")


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
    needed = -(-context // BLOCK)
    most = -(-config.context_length // BLOCK)
    for layer in config.layers:
        if not layer.owns_kv:
            continue
        if layer.window is None:
            blocks = max(needed, 2 * (needed - 1))
        else:
            blocks = -(-(layer.window + RING_SLACK + BLOCK) // BLOCK)
        total += min(blocks, most) * BLOCK * layer.num_kv_heads * layer.head_dim * 2
    return total * ITEM_BYTES[dtype]


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


def gigabytes(num_bytes: int) -> str:
    """As disks and model cards count: 1 GB is a billion bytes; small models in MB."""
    if num_bytes < 100_000_000:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e9:.2f} GB"
