"""What `paceline doctor` looks at: this machine, then a pair of models, one thing after another.

Every look ends in a `Check`; none raises for what a machine or a file can get wrong. Nothing is
loaded, and the environment is not read here.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

from paceline import cpu
from paceline.bench.provenance import package_versions
from paceline.errors import MissingDependencyError, PacelineError
from paceline.loading import (
    OpenDrafter,
    OpenTarget,
    choose_runtime,
    display_name,
    find_target,
    load_tokenizer,
    open_drafter_of,
    open_model,
    outline,
)
from paceline.memory import MemoryPlan, free_memory, gigabytes, plan_memory, total_memory

Status = Literal["ok", "note", "problem"]
Found = TypeVar("Found")

READ_BYTES = 256 << 20
LITTLE_DISK = 10_000_000_000  # the smallest released pair in Q4_0 takes about a third of it
CONTEXT = 4096  # tokens that a memory plan is made for, or the model's limit


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Args:
        status: "note" for what works, but not as well as it could.
        text: what was found; of a problem also what to do.
        values: the same for programs.
    """

    name: str
    status: Status
    text: str
    values: dict[str, object] = field(default_factory=dict)


def check_machine(models_folder: Path, forced_isa: str | None) -> list[Check]:
    """This machine, as a model will find it.

    Args:
        models_folder: where models are downloaded to.
        forced_isa: the instruction set that PACELINE_ISA names, if it is set.
    """
    threads = cpu.default_threads()
    checks = [_processor(), _threads(threads)]
    native = _extension()
    if isinstance(native, Check):
        checks.append(native)
    else:
        checks += [_instructions(native, forced_isa), _read_speed(native, threads)]
    return [*checks, _memory(), _disk(models_folder), _versions()]


def check_model(model: str | Path | None, drafter: str | Path | None) -> list[Check]:
    """A pair: its files, geometry and tokenizer, its drafter, and the memory that it needs.

    What an earlier problem hides is not looked at.

    Args:
        model: and `drafter`: as `loading.load_pair` takes them.
    """
    looks = _Looks()
    path = looks.at("model", lambda: find_target(model), str)
    if path is None:
        return looks.checks
    target = looks.at("weights", lambda: open_model(path), _weights_text)
    if target is None:
        return looks.checks
    looks.at("tokenizer", lambda: load_tokenizer(target), lambda x: f"{x.vocab_size:,} tokens")
    opened: OpenDrafter | None = None
    if drafter is not None:
        opened = looks.at("drafter", lambda: open_drafter_of(target, drafter), _drafter_text)
    looks.at("needs", lambda: _plan(target, opened), _plan_text)
    return looks.checks


class _Looks:
    """Collects checks, one for each thing that can be at fault."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def at(
        self, name: str, look: Callable[[], Found], text: Callable[[Found], str]
    ) -> Found | None:
        """What `look` returns, described by `text`; None if something is at fault. To find None
        is worth a note."""
        try:
            found = look()
        except (PacelineError, OSError) as error:
            self.checks.append(Check(name=name, status="problem", text=_reason(error)))
            return None
        status: Status = "note" if found is None else "ok"
        self.checks.append(Check(name=name, status=status, text=text(found)))
        return found


def _reason(error: Exception) -> str:
    if isinstance(error, PacelineError):
        return str(error)
    assert isinstance(error, OSError)
    return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))


def _weights_text(target: OpenTarget) -> str:
    weights = target.weights
    types = sorted({weight.dtype for weight in weights.tensors})
    return (
        f"{display_name(target.path)}, {target.config.num_layers} layers, "
        f"{weights.num_parameters:,} weights in {', '.join(types)}, {gigabytes(weights.num_bytes)}"
    )


def _drafter_text(drafter: OpenDrafter | None) -> str:
    if drafter is None:
        return (
            "none lies with this model, so it runs without drafting. Download the one that was "
            "published for it, and name it with --drafter."
        )
    weights = drafter.weights
    return (
        f"{display_name(drafter.path)}, made for this model, {drafter.config.num_layers} layers, "
        f"{weights.num_parameters:,} weights, {gigabytes(weights.num_bytes)}"
    )


def _plan(target: OpenTarget, drafter: OpenDrafter | None) -> MemoryPlan:
    context = min(CONTEXT, target.config.context_length)
    plan = plan_memory(
        outline(target, drafter), runtime=choose_runtime(), dtype=None, context=context
    )
    plan.check()
    return plan


def _plan_text(plan: MemoryPlan) -> str:
    free = "unknown" if plan.free_bytes is None else gigabytes(plan.free_bytes)
    return (
        f"{gigabytes(plan.needed_bytes)} of memory with {plan.context:,} tokens of context; "
        f"free: {free}"
    )


def _processor() -> Check:
    usable = cpu.usable_processors()
    cores = cpu.physical_cores(usable)
    return Check(
        name="processor",
        status="ok",
        text=f"{cpu.processor_name()}, {_count(cores, 'physical core')}, "
        f"{_count(len(usable), 'logical processor')}",
        values={"name": cpu.processor_name(), "cores": cores, "processors": len(usable)},
    )


def _threads(threads: int) -> Check:
    quota = cpu.processor_quota()
    limit = "" if quota is None else f", as the container may use {quota:g} processors"
    return Check(
        name="threads",
        status="ok",
        text=f"{threads} by default{limit}",
        values={"default": threads, "quota": quota},
    )


def _extension() -> ModuleType | Check:
    try:
        from paceline.extension import _native
    except MissingDependencyError as error:
        return Check(name="native runtime", status="problem", text=str(error))
    return _native


def _instructions(native: ModuleType, forced_isa: str | None) -> Check:
    available: list[str] = native.isa_names()
    values: dict[str, object] = {"available": available, "forced": forced_isa}
    try:
        in_use: str = native.isa_name()
    except ValueError as error:
        text = f"PACELINE_ISA: {error}"
        return Check(name="instructions", status="problem", text=text, values=values)
    text = f"{in_use}; this processor has {', '.join(available)}"
    status: Status = "ok"
    if in_use != available[-1]:
        status, text = "note", f"{text}. PACELINE_ISA forces a slower one than {available[-1]}."
    elif in_use == "portable":
        status, text = "note", "portable: no vector instructions that we know, so it runs slowly."
    return Check(name="instructions", status=status, text=text, values={"in_use": in_use} | values)


def _read_speed(native: ModuleType, threads: int) -> Check:
    free = free_memory()
    size = READ_BYTES if free is None else min(READ_BYTES, max(free // 8, 1 << 20))
    speed: float = native.read_bandwidth(native.Pool(threads), size)
    return Check(
        name="read speed",
        status="ok",
        text=f"{speed / 1e9:.1f} GB/s from memory with {_count(threads, 'thread')}",
        values={"bytes_per_s": round(speed), "threads": threads},
    )


def _memory() -> Check:
    free, total = free_memory(), total_memory()
    sizes = ["unknown" if size is None else gigabytes(size) for size in (free, total)]
    return Check(
        name="memory",
        status="ok",
        text=f"{sizes[0]} free of {sizes[1]}",
        values={"free_bytes": free, "total_bytes": total},
    )


def _disk(folder: Path) -> Check:
    """The disk on which the folder lies, or will lie."""
    place = next(x for x in (folder, *folder.parents) if x.exists() or x == x.parent)
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        text = f"{place}: {error.strerror or error}"
        return Check(name="disk", status="note", text=text, values={"folder": str(folder)})
    little = free < LITTLE_DISK
    return Check(
        name="disk",
        status="note" if little else "ok",
        text=f"{gigabytes(free)} free in {folder}" + (": little for a model" if little else ""),
        values={"folder": str(folder), "free_bytes": free},
    )


def _versions() -> Check:
    versions = package_versions() | {"python": platform.python_version()}
    return Check(
        name="versions",
        status="ok",
        text=", ".join(f"{name} {version}" for name, version in versions.items()),
        values={"system": f"{platform.system()} {platform.release()}", **versions},
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
