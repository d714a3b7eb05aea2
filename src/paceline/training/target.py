"""Trains the shipped target: a mixture of texts first, then answers in the chat format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from paceline.config import LayerKind, TargetConfig
from paceline.runtime.torch.models import TargetModel
from paceline.runtime.torch.whole import forward_whole
from paceline.training.loop import Run, mixed_precision, train
from paceline.training.streams import (
    HELD_OUT,
    NOT_PREDICTED,
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

HELD_OUT_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class TargetRun(Run):
    """Settings of a target's run."""

    name: ClassVar[str] = "target"
    answers_from: float = 0.7  # share of the budget after which only answers are predicted
    config: TargetConfig = field(default=SHIPPED_TARGET)


def initialise(model: nn.Module, per_layer_size: int = 0) -> None:
    """Start values that keep every branch at unit size under scale-1 attention, and the head
    small: of a target (with the width of its per-layer embeddings) or of a drafter."""
    for name, parameter in model.named_parameters():
        if name.endswith("q_norm.weight"):
            nn.init.constant_(parameter, len(parameter) ** -0.5)
        elif name == "embed_tokens_per_layer.weight":
            nn.init.normal_(parameter, std=per_layer_size**-0.5)
        elif name == "embed_tokens.weight":
            nn.init.normal_(parameter, std=0.03)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)


def loss_of(model: TargetModel, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labels that are to be predicted."""
    with mixed_precision():
        hidden, _ = forward_whole(model, inputs)
        logits = model.logits(hidden)
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=NOT_PREDICTED
    )


@torch.no_grad()
def held_out_losses(model: TargetModel, streams: dict[str, Stream], limit: int) -> dict[str, float]:
    """Nats per token on each held-out stream that fills a window."""
    losses = {}
    for name, stream in streams.items():
        windows = held_out_windows(stream, HELD_OUT_LENGTH, limit)
        if len(windows):
            batches = windows.split(8)  # type: ignore[no-untyped-call]
            total = sum(float(loss_of(model, b[:, :-1], b[:, 1:])) * len(b) for b in batches)
            losses[name] = round(total / len(windows), 4)
    return losses


def train_target(run: TargetRun) -> TargetModel:
    """Run to the end of the budget; the result is `target.state` in the run folder."""
    streams = load_streams(run.streams, TRAIN)
    held_out = load_streams(run.streams, HELD_OUT)
    mixture, answers = Mixture(streams, MIXTURE), Mixture(streams, ANSWERS)
    torch.manual_seed(run.seed)
    model = TargetModel(run.config)
    initialise(model, run.config.per_layer_size)
    # fuses norms and gates: 2.5 x faster
    fast_loss = torch.compile(loss_of, dynamic=False) if run.compile else loss_of

    def loss_at(progress: float, random: np.random.Generator) -> torch.Tensor:
        tuning = progress >= run.answers_from
        source = answers if tuning else mixture
        inputs, labels = source.batch(random, run.batch_size, run.length, answers_only=tuning)
        return fast_loss(model, inputs, labels)

    def measure(final: bool) -> dict[str, Any]:
        losses = held_out_losses(model, held_out, 64 if final else 8)
        return {"final_held_out" if final else "held_out": losses}

    train(run, model, sorted(run.streams.glob("*.npz")), loss_at, measure)
    return model
