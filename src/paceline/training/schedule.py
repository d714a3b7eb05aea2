"""Optimisers and the schedule that both training runs share.

A run has a budget of time, not of steps: its learning rate follows the share of the budget that
is used, so that it ends well on a busy machine too, and a resumed run goes on where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from torch import nn

WARM_UP = 0.02
DECAY_FROM = 0.45


def learning_rate_factor(progress: float) -> float:
    """Warm up, hold, then fall linearly to zero; `progress` in [0, 1]."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.02)
    if progress < DECAY_FROM:
        return 1.0
    return max((1.0 - progress) / (1.0 - DECAY_FROM), 0.0)


@dataclass
class Budget:
    """Seconds of training, counted across restarts."""

    seconds: float
    used: float = 0.0

    def __post_init__(self) -> None:
        self._last = monotonic()

    def progress(self) -> float:
        now = monotonic()
        self.used += now - self._last
        self._last = now
        return min(self.used / self.seconds, 1.0)

    def pause(self) -> None:
        """Do not count the time until `resume`: evaluation is not training."""
        self.progress()

    def resume(self) -> None:
        self._last = monotonic()


class Optimisers:
    """Muon for the matrices inside layers, AdamW for tables, norms and scalars."""

    def __init__(self, model: nn.Module, matrix_rate: float, table_rate: float) -> None:
        matrices, tables, vectors = [], [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() < 2:
                vectors.append(parameter)
            elif "embed_tokens" in name:
                tables.append(parameter)
            else:
                matrices.append(parameter)
        self.parameters = [*matrices, *tables, *vectors]
        self.muon = torch.optim.Muon(
            matrices, lr=matrix_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        )
        groups = [
            {"params": tables, "weight_decay": 0.01, "lr": table_rate},
            {"params": vectors, "weight_decay": 0.0, "lr": table_rate},
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.rates = (matrix_rate, table_rate)

    def step(self, factor: float) -> None:
        """One update at `factor` of the full learning rates; clears the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser, rate in ((self.muon, self.rates[0]), (self.adam, self.rates[1])):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()  # type: ignore[no-untyped-call]
            optimiser.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [self.muon.state_dict(), self.adam.state_dict()]

    def load_state(self, state: list[dict[str, object]]) -> None:
        self.muon.load_state_dict(state[0])
        self.adam.load_state_dict(state[1])


def save_state(
    path: Path, model: nn.Module, optimisers: Optimisers, budget: Budget, step: int
) -> None:
    """Write a checkpoint from which `load_state` goes on; whole or not at all."""
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimisers": optimisers.state(),
        "used": budget.used,
        "step": step,
    }
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path, model: nn.Module, optimisers: Optimisers, budget: Budget) -> int:
    """Go on from a checkpoint if there is one. Returns the number of steps done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimisers.load_state(state["optimisers"])
    budget.used = float(state["used"])
    budget.resume()
    return int(state["step"])
