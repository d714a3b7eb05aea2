"""Trains the shipped target: a mixture of texts first, then answers in the chat format.

Checkpoints every few minutes; started again with the same folder, a run goes on where it stood.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from paceline.config import LayerKind, TargetConfig
from paceline.runtime.torch.models import TargetModel
from paceline.runtime.torch.whole import forward_whole
from paceline.training.record import append_curve, run_record
from paceline.training.schedule import (
    Budget,
    Optimisers,
    learning_rate_factor,
    load_state,
    save_state,
)
from paceline.training.streams import (
    HELD_OUT,
    TRAIN,
    Mixture,
    Stream,
    held_out_windows,
    load_streams,
)

PERIOD: tuple[LayerKind, ...] = ("sliding", "sliding", "sliding", "sliding", "global")

SHIPPED_TARGET = TargetConfig(
    vocab_size=8192,
    hidden_size=256,
    layer_kinds=PERIOD * 2,
    num_kv_shared_layers=5,
    ffn_size=768,
    num_heads=4,
    num_kv_heads=1,
    num_global_kv_heads=1,
    head_dim=64,
    global_head_dim=128,
    sliding_window=128,
    context_length=1024,
    per_layer_size=64,
    per_layer_vocab_size=8192,
    logit_softcap=30.0,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_ids=(1, 106, 50),
)

MIXTURE = {
    "shell-chat": 0.30,
    "maths-chat": 0.25,
    "code-plain": 0.11,
    "code-chat": 0.05,
    "prose-plain": 0.12,
    "prose-chat": 0.02,
    "reference-plain": 0.10,
    "reference-chat": 0.02,
    "chat-chat": 0.03,
}
ANSWERS = {
    "shell-chat": 0.42,
    "maths-chat": 0.34,
    "code-chat": 0.10,
    "prose-chat": 0.06,
    "reference-chat": 0.04,
    "chat-chat": 0.04,
}


@dataclass(frozen=True, kw_only=True)
class TargetRun:
    """Settings of a run; recorded beside its result."""

    folder: Path
    minutes: float
    batch_size: int = 8
    length: int = 512
    matrix_rate: float = 3e-3
    table_rate: float = 2e-3
    answers_from: float = 0.7  # share of the budget after which only answers are predicted
    checkpoint_every: int = 100
    seed: int = 1
    config: TargetConfig = field(default=SHIPPED_TARGET)

    def settings(self) -> dict[str, Any]:
        return {key: str(value) for key, value in vars(self).items() if key != "folder"}


def initialise(model: TargetModel) -> None:
    """Start values that keep every branch at unit size under scale-1 attention."""
    for name, parameter in model.named_parameters():
        if name.endswith("q_norm.weight"):
            nn.init.constant_(parameter, len(parameter) ** -0.5)
        elif name == "embed_tokens_per_layer.weight":
            nn.init.normal_(parameter, std=model.config.per_layer_size**-0.5)
        elif name == "embed_tokens.weight":
            nn.init.normal_(parameter, std=0.03)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)


def loss_of(model: TargetModel, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labels that are not -100."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = forward_whole(model, inputs)
        logits = model.logits(hidden)
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


@torch.no_grad()
def held_out_losses(model: TargetModel, streams: dict[str, Stream], limit: int) -> dict[str, float]:
    """Nats per token on each held-out stream."""
    losses = {}
    for name, stream in streams.items():
        windows = held_out_windows(stream, 256, limit)
        batches = windows.split(8)  # type: ignore[no-untyped-call]
        total = sum(float(loss_of(model, b[:, :-1], b[:, 1:])) * len(b) for b in batches)
        losses[name] = round(total / len(windows), 4)
    return losses


def train_target(run: TargetRun) -> TargetModel:
    """Run to the end of the budget; the result is `target.pt` state in the run folder."""
    torch.manual_seed(run.seed)
    model = TargetModel(run.config)
    initialise(model)
    optimisers = Optimisers(model, run.matrix_rate, run.table_rate)
    budget = Budget(run.minutes * 60)
    streams = load_streams(run.folder / "streams", TRAIN)
    held_out = load_streams(run.folder / "streams", HELD_OUT)
    state_file = run.folder / "target.state"
    step = load_state(state_file, model, optimisers, budget)
    if step == 0:
        files = sorted((run.folder / "streams").glob("*.npz"))
        record = run_record(run.settings(), files)
        (run.folder / "target.run.json").write_text(json.dumps(record, indent=2) + "\n")
    mixture = Mixture(streams, MIXTURE, run.seed + step)
    answers = Mixture(streams, ANSWERS, run.seed + step)
    compiled_loss = torch.compile(loss_of, dynamic=False)  # fuses norms and gates: 2.5 x faster
    smooth = math.nan
    while (progress := budget.progress()) < 1.0:
        tuning = progress >= run.answers_from
        source = answers if tuning else mixture
        inputs, labels = source.batch(run.batch_size, run.length, answers_only=tuning)
        loss = compiled_loss(model, inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimisers.step(learning_rate_factor(progress))
        step += 1
        value = float(loss.detach())
        smooth = value if math.isnan(smooth) else 0.95 * smooth + 0.05 * value
        if step % 20 == 0:
            point = {"step": step, "progress": round(progress, 4), "loss": round(smooth, 4)}
            append_curve(run.folder / "target.curve.jsonl", point)
        if step % run.checkpoint_every == 0:
            budget.pause()
            losses = held_out_losses(model, held_out, 8)
            append_curve(run.folder / "target.curve.jsonl", {"step": step, "held_out": losses})
            save_state(state_file, model, optimisers, budget, step)
            budget.resume()
    losses = held_out_losses(model, held_out, 64)
    append_curve(run.folder / "target.curve.jsonl", {"step": step, "final_held_out": losses})
    save_state(state_file, model, optimisers, budget, step)
    return model
