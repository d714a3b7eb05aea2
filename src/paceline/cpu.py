"""The processor: its name, and how many threads a model should run on.

Linux tells all of it. Elsewhere every processor that the system shows counts as a core.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
PROCESSORS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")

SAME_CORE = ("core_cpus_list", "thread_siblings_list")  # the second before Linux 5.6


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as the system gives it, else its architecture."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def default_threads() -> int:
    """One thread per physical core that this process may use, within the container's quota.

    Reading weights is bound by memory: a core's second thread has nothing left to read with.
    """
    quota = processor_quota()
    cores = physical_cores(usable_processors())
    return cores if quota is None else max(1, min(cores, int(quota)))


def usable_processors() -> frozenset[int]:
    """Numbers of the logical processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return frozenset(affinity(0) if affinity else range(os.cpu_count() or 1))


def physical_cores(processors: Iterable[int], folder: Path = PROCESSORS) -> int:
    """How many cores these logical processors belong to."""
    return len({_core(processor, folder) for processor in processors})


def processor_quota(cgroup: Path = CGROUP) -> float | None:
    """Processors' worth of time that the container may use; None where there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # "max" where there is none
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return _first_version_quota(cgroup / "cpu")


def _first_version_quota(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())  # -1 where there is none
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _core(processor: int, folder: Path) -> str:
    """The list of a core's processors, which all of them share."""
    for name in SAME_CORE:
        try:
            return (folder / f"cpu{processor}" / "topology" / name).read_text().strip()
        except OSError:
            continue
    return str(processor)
