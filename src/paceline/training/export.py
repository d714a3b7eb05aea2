"""Turns the state of finished runs into the two folders of a pair, in Hugging Face's form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from paceline.checkpoint.huggingface import (
    GenerationDefaults,
    write_drafter_folder,
    write_target_folder,
)
from paceline.config import DrafterConfig, TargetConfig
from paceline.errors import CheckpointError
from paceline.loading import DRAFTER_FOLDER
from paceline.training.drafter import SHIPPED_DRAFTER
from paceline.training.target import SHIPPED_TARGET

RUN_FILES = ("run.json", "curve.jsonl")


def read_run_state(path: Path) -> dict[str, Any]:
    """The model state of a run.

    Raises:
        CheckpointError: the run has not written one.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: run the training step that writes it first.")
    state: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return state


def export_target(
    run: Path, folder: Path, config: TargetConfig = SHIPPED_TARGET, name: str = "target"
) -> None:
    """Write the target of a run, its tokenizer, and how it was made."""
    write_target_folder(
        folder,
        config,
        _arrays(read_run_state(run / f"{name}.state")),
        defaults=GenerationDefaults(
            temperature=1.0,
            top_k=64,
            top_p=0.95,
            eos_token_ids=config.eos_token_ids,
            suppressed_token_ids=(),
        ),
        tokenizer_file=run / "tokenizer.json",
    )
    _copy_records(run, folder, name)


def export_drafter(
    run: Path, folder: Path, config: DrafterConfig = SHIPPED_DRAFTER, name: str = "drafter"
) -> None:
    """Write the drafter of a run beside its target, and how it was made."""
    drafter_folder = folder / DRAFTER_FOLDER
    write_drafter_folder(drafter_folder, config, _arrays(read_run_state(run / f"{name}.state")))
    _copy_records(run, drafter_folder, name)


def _arrays(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def _copy_records(run: Path, folder: Path, name: str) -> None:
    target = folder / "training"
    target.mkdir(exist_ok=True)
    for file in RUN_FILES:
        shutil.copyfile(run / f"{name}.{file}", target / file)
