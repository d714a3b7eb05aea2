"""What a training run leaves beside its result: command, commit, versions, data hashes, curves."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from paceline.bench.provenance import source_commit


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_start(
    path: Path, step: int, settings: dict[str, Any], data_files: Iterable[Path]
) -> None:
    """Write everything needed to know how a run was made. One that goes on from `step` adds what
    it goes on with under "resumed"."""
    start = run_record(settings, data_files)
    if step and path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        record.setdefault("resumed", []).append({"step": step, **start})
    else:
        record = start
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def run_record(settings: dict[str, Any], data_files: Iterable[Path]) -> dict[str, Any]:
    return {
        "command": ["paceline.training", *sys.argv[1:]],
        "commit": source_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "processor_threads": torch.get_num_threads(),
        "settings": settings,
        "data": {path.name: file_hash(path) for path in data_files},
    }


def append_curve(path: Path, point: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")


def cut_curve(path: Path, step: int) -> None:
    """Drop the points after `step`: a run that goes on from there makes them again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")
