"""Trains a drafter against a frozen target's hidden states and KV, several unrolled steps deep.

Every position of a batch is the start of a draft. Step k is fed the text's own token and what
step k - 1 handed on, at one frozen position and over the KV up to the start, as in a round
(reference section 3). The loss compares whole distributions: the target's rows come for free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.config import DrafterConfig
from paceline.runtime.torch.models import DrafterModel, TargetModel
from paceline.runtime.torch.whole import KeysValues, WholeAttention, forward_whole
from paceline.training.clusters import balanced_clusters
from paceline.training.record import append_curve, run_record
from paceline.training.schedule import (
    Budget,
    Optimisers,
    learning_rate_factor,
    load_state,
    save_state,
)
from paceline.training.streams import HELD_OUT, TRAIN, Mixture, load_streams
from paceline.training.target import SHIPPED_TARGET

SHIPPED_DRAFTER = DrafterConfig(
    vocab_size=SHIPPED_TARGET.vocab_size,
    target_hidden_size=SHIPPED_TARGET.hidden_size,
    hidden_size=128,
    layer_kinds=("sliding", "global"),
    ffn_size=512,
    num_heads=4,
    num_kv_heads=SHIPPED_TARGET.num_kv_heads,
    num_global_kv_heads=SHIPPED_TARGET.num_global_kv_heads,
    head_dim=SHIPPED_TARGET.head_dim,
    global_head_dim=SHIPPED_TARGET.global_head_dim,
    sliding_window=SHIPPED_TARGET.sliding_window,
    context_length=SHIPPED_TARGET.context_length,
    num_centroids=256,
    centroid_top_k=16,
)

MIXTURE = {
    "shell-chat": 0.32,
    "maths-chat": 0.30,
    "code-chat": 0.12,
    "prose-chat": 0.08,
    "reference-chat": 0.04,
    "chat-chat": 0.04,
    "code-plain": 0.04,
    "prose-plain": 0.03,
    "reference-plain": 0.03,
}


@dataclass(frozen=True, kw_only=True)
class DrafterRun:
    """Settings of a run; recorded beside its result."""

    folder: Path
    minutes: float
    batch_size: int = 8
    length: int = 512  # draft starts per window
    steps: int = 5  # unrolled draft steps
    step_decay: float = 0.8  # loss weight of a step relative to the one before
    starts: int = 1024  # draft starts of a batch that are scored against the vocabulary
    matrix_rate: float = 4e-3
    table_rate: float = 4e-3
    clusters_from: float = 0.7  # share of the budget after which clusters are fixed and trained
    checkpoint_every: int = 100
    seed: int = 1
    config: DrafterConfig = field(default=SHIPPED_DRAFTER)

    def settings(self) -> dict[str, Any]:
        return {key: str(value) for key, value in vars(self).items() if key != "folder"}


@dataclass(frozen=True)
class Taught:
    """What the frozen target says of a batch of windows [B, T + steps]."""

    token_ids: Tensor  # [B, T + steps]
    hidden: Tensor  # [B, T + steps, D] final-normed
    donors: dict[int, KeysValues]  # KV of the donor layers, cut to the T draft starts


def teach(target: TargetModel, token_ids: Tensor, length: int) -> Taught:
    """One pass of the target without gradients."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, stored = forward_whole(target, token_ids)
    kinds = set(target.config.layer_kinds)
    layers = {target.config.kv_layer(kind) for kind in kinds}
    donors = {i: (stored[i][0][:, :length], stored[i][1][:, :length]) for i in layers}
    return Taught(token_ids, hidden, donors)


def unrolled(
    drafter: DrafterModel, target: TargetModel, taught: Taught, steps: int, length: int
) -> Iterator[Tensor]:
    """The drafter's normed row of every draft start, step by step. Each [B, T, D drafter]

    Start t stands after token t: step k reads token t + 1 + k, and its row predicts the token
    after that.
    """
    donor_of = {kind: target.config.kv_layer(kind) for kind in set(drafter.config.layer_kinds)}
    attention = WholeAttention(taught.donors, {str(kind): i for kind, i in donor_of.items()})
    hidden = taught.hidden[:, :length]
    rope = drafter.rope_tables(torch.arange(length), hidden.dtype)
    for step in range(steps):
        embedded = target.embed(taught.token_ids[:, step + 1 : step + 1 + length])
        row = drafter.step(embedded.to(hidden.dtype), hidden, rope, attention)
        yield row
        hidden = drafter.post_projection(row)


def acceptance_loss(target_logits: Tensor, drafter_logits: Tensor) -> Tensor:
    """Mean over rows of `w KL(p|q) + (1 - w) TV(p, q)`, with `w = exp(-3 overlap)` held fixed.

    The overlap, sum of min(p, q), is the acceptance of ideal sampling: KL teaches from a cold
    start, TV is what is wanted in the end. Source: LK losses, arXiv 2602.23881.
    """
    log_p = F.log_softmax(target_logits.float(), dim=-1)
    log_q = F.log_softmax(drafter_logits.float(), dim=-1)
    p, q = log_p.exp(), log_q.exp()
    divergence = (p * (log_p - log_q)).sum(dim=-1)
    distance = 0.5 * (p - q).abs().sum(dim=-1)
    weight = torch.exp(-3.0 * (1.0 - distance)).detach()
    return (weight * divergence + (1.0 - weight) * distance).mean()


def cluster_loss(target_logits: Tensor, centroid_scores: Tensor, ordering: Tensor) -> Tensor:
    """Cross-entropy of the centroids against the target's probability of each cluster."""
    p = F.softmax(target_logits.float(), dim=-1)
    clusters = p[:, ordering].view(len(p), centroid_scores.shape[-1], -1).sum(dim=-1)
    log_scores = F.log_softmax(centroid_scores.float(), dim=-1)
    return torch.mean(-(clusters * log_scores).sum(dim=-1))


def batch_loss(
    drafter: DrafterModel,
    target: TargetModel,
    taught: Taught,
    starts: Tensor,
    run: DrafterRun,
    with_clusters: bool,
) -> Tensor:
    """Loss of one batch over the draft starts [n] (flat indices into [B, T])."""
    total = taught.hidden.new_zeros((), dtype=torch.float32)
    weights = [run.step_decay**step for step in range(run.steps)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for step, row in enumerate(unrolled(drafter, target, taught, run.steps, run.length)):
            truth = taught.hidden[:, step + 1 : step + 1 + run.length].flatten(0, 1)[starts]
            expected = target.logits(truth).detach()
            chosen = row.flatten(0, 1)[starts]
            scores = F.linear(chosen, drafter.embed_tokens.weight)
            loss = acceptance_loss(expected, scores)
            if with_clusters:
                head = drafter.masked_embedding
                loss = loss + 0.2 * cluster_loss(
                    expected, head.centroids(chosen.detach()), head.token_ordering
                )
            total = total + weights[step] * loss
    return total / sum(weights)


def pick_starts(labels: Tensor, length: int, count: int) -> Tensor:
    """Random draft starts whose first drafted token belongs to an answer. [count]"""
    wanted = (labels[:, 1 : length + 1] != -100).flatten().float() + 1e-6
    return torch.multinomial(wanted, count, replacement=False)


def initialise(model: DrafterModel) -> None:
    """Unit-size branches under scale-1 attention; the head starts small."""
    for name, parameter in model.named_parameters():
        if name.endswith("q_norm.weight"):
            nn.init.constant_(parameter, len(parameter) ** -0.5)
        elif name == "embed_tokens.weight":
            nn.init.normal_(parameter, std=0.03)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)


@torch.no_grad()
def agreement(
    drafter: DrafterModel, target: TargetModel, windows: Tensor, run: DrafterRun
) -> list[float]:
    """Share of draft starts whose first 1, 2, ... greedy tokens are the target's. Text is the
    held-out corpus, so this is lower than the acceptance on the target's own text."""
    taught = teach(target, windows, run.length)
    alive: Tensor | None = None
    shares = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for step, row in enumerate(unrolled(drafter, target, taught, run.steps, run.length)):
            expected = target.logits(taught.hidden[:, step + 1 : step + 1 + run.length])
            guess = F.linear(row, drafter.embed_tokens.weight)
            same = expected.argmax(-1) == guess.argmax(-1)
            alive = same if alive is None else alive & same
            shares.append(round(float(alive.float().mean()), 4))
    return shares


@torch.no_grad()
def fix_clusters(drafter: DrafterModel, seed: int) -> None:
    """Group the head's rows into equal clusters and start the centroids at their means."""
    table = drafter.embed_tokens.weight
    head = drafter.masked_embedding
    ordering = balanced_clusters(table.numpy(), head.centroids.out_features, seed)
    head.token_ordering.copy_(torch.from_numpy(ordering))
    rows = table[head.token_ordering].view(-1, head.cluster_size, table.shape[1])
    head.centroids.weight.copy_(rows.mean(dim=1))


def train_drafter(run: DrafterRun, target: TargetModel) -> DrafterModel:
    """Run to the end of the budget; the result is the state file in the run folder."""
    torch.manual_seed(run.seed)
    target.requires_grad_(False)
    drafter = DrafterModel(run.config)
    initialise(drafter)
    optimisers = Optimisers(drafter, run.matrix_rate, run.table_rate)
    budget = Budget(run.minutes * 60)
    state_file = run.folder / "drafter.state"
    step, clustered = load_state(state_file, drafter, optimisers, budget), False
    if step == 0:
        files = [*sorted((run.folder / "streams").glob("*.npz")), run.folder / "target.state"]
        record = run_record(run.settings(), files)
        (run.folder / "drafter.run.json").write_text(json.dumps(record, indent=2) + "\n")
    mixture = Mixture(load_streams(run.folder / "streams", TRAIN), MIXTURE, run.seed + step)
    held_out = Mixture(load_streams(run.folder / "streams", HELD_OUT), MIXTURE, run.seed)
    windows, _ = held_out.batch(16, run.length + run.steps, answers_only=True)
    compiled_teach = torch.compile(teach, dynamic=False)
    compiled_loss = torch.compile(batch_loss, dynamic=False)
    smooth = 0.0
    while (progress := budget.progress()) < 1.0:
        if progress >= run.clusters_from and run.config.num_centroids and not clustered:
            resumed_later = bool(drafter.masked_embedding.token_ordering[:2].tolist() != [0, 1])
            if not resumed_later:
                fix_clusters(drafter, run.seed)
            clustered = True
        inputs, labels = mixture.batch(run.batch_size, run.length + run.steps, answers_only=True)
        taught = compiled_teach(target, inputs, run.length)
        starts = pick_starts(labels, run.length, run.starts)
        loss = compiled_loss(drafter, target, taught, starts, run, clustered)
        loss.backward()  # type: ignore[no-untyped-call]
        optimisers.step(learning_rate_factor(progress))
        step += 1
        smooth = float(loss.detach()) if step == 1 else 0.95 * smooth + 0.05 * float(loss.detach())
        if step % 20 == 0:
            point = {"step": step, "progress": round(progress, 4), "loss": round(smooth, 4)}
            append_curve(run.folder / "drafter.curve.jsonl", point)
        if step % run.checkpoint_every == 0:
            budget.pause()
            shares = agreement(drafter, target, windows, run)
            append_curve(run.folder / "drafter.curve.jsonl", {"step": step, "agreement": shares})
            save_state(state_file, drafter, optimisers, budget, step)
            budget.resume()
    shares = agreement(drafter, target, windows, run)
    append_curve(run.folder / "drafter.curve.jsonl", {"step": step, "final_agreement": shares})
    save_state(state_file, drafter, optimisers, budget, step)
    return drafter
