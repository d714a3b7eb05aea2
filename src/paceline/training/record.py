"""What a training run leaves beside its result: command, commit, versions, data hashes, curves."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_record(settings: dict[str, Any], data_files: Iterable[Path]) -> dict[str, Any]:
    """Everything needed to know how a run was made."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "command": ["paceline.training", *sys.argv[1:]],
        "commit": commit.stdout.strip() or None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "processor_threads": torch.get_num_threads(),
        "settings": settings,
        "data": {path.name: file_hash(path) for path in data_files},
    }


def append_curve(path: Path, point: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")
