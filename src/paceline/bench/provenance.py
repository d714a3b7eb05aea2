"""Where a measurement comes from: commit, command, processor, threads, versions."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from paceline.cpu import processor_name

PACKAGES = ("paceline", "numpy", "tokenizers", "torch")


def provenance(*, threads: int) -> dict[str, object]:
    """Everything needed to judge and to repeat a measurement.

    Args:
        threads: that the models ran on.
    """
    commit = source_commit()
    return {
        "commit": commit,
        "uncommitted_changes": _git("status", "--porcelain") != "" if commit else None,
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "threads": threads,
        "versions": {"python": platform.python_version()} | package_versions(),
    }


def command_line() -> str:
    """What was typed: the command, or a script of this repository."""
    program, *arguments = sys.argv
    is_script = program.endswith(".py") and Path(program).name != "__main__.py"
    return shlex.join([*(["python", program] if is_script else ["paceline"]), *arguments])


def source_commit() -> str | None:
    """The commit that this source stands at; None when it was installed without a repository.

    A file must be tracked: an environment inside another project's folder is not that project.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    """What git says about the folder of this file; None if it says no or is not there."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Of those of `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
