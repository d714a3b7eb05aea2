"""Trains a drafter against a frozen target's hidden states and KV, several unrolled steps deep.

Every position of a batch is the start of a draft. Step k is fed the text's own token and what
step k - 1 handed on, at one frozen position and over the KV up to the start, as in a round
(reference section 3). The loss compares whole distributions: the target's rows come for free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.config import DrafterConfig
from paceline.runtime.torch.models import DrafterModel, TargetModel
from paceline.runtime.torch.whole import KeysValues, WholeAttention, forward_whole
from paceline.training.clusters import balanced_clusters
from paceline.training.loop import Run, mixed_precision, train
from paceline.training.streams import (
    HELD_OUT,
    NOT_PREDICTED,
    TRAIN,
    Mixture,
    load_streams,
)
from paceline.training.target import SHIPPED_TARGET, initialise

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
class DrafterRun(Run):
    """Settings of a drafter's run; `length` is the number of draft starts in a window."""

    name: ClassVar[str] = "drafter"
    matrix_rate: float = 4e-3
    table_rate: float = 4e-3
    steps: int = 5  # unrolled draft steps
    step_decay: float = 0.8  # loss weight of a step relative to the one before
    starts: int = 1024  # draft starts of a batch that are scored against the vocabulary
    clusters_from: float = 0.7  # share of the budget after which clusters are fixed and trained
    config: DrafterConfig = field(default=SHIPPED_DRAFTER)


@dataclass(frozen=True)
class Taught:
    """What the frozen target says of a batch of windows [B, T + steps]."""

    token_ids: Tensor  # [B, T + steps]
    hidden: Tensor  # [B, T + steps, D] final-normed
    donors: dict[int, KeysValues]  # KV of the donor layers, cut to the T draft starts


@torch.no_grad()
def teach(target: TargetModel, token_ids: Tensor, length: int) -> Taught:
    """One pass of the target without gradients."""
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


def pick_starts(labels: Tensor, length: int, count: int, random: np.random.Generator) -> Tensor:
    """Random draft starts whose first drafted token belongs to an answer, as flat indices into
    [B, T]; others only where these do not suffice. [count]"""
    wanted = (labels[:, 1 : length + 1] != NOT_PREDICTED).flatten().double().numpy() + 1e-6
    return torch.from_numpy(random.choice(len(wanted), count, False, wanted / wanted.sum()))


@torch.no_grad()
def agreement(
    drafter: DrafterModel, target: TargetModel, windows: Tensor, run: DrafterRun
) -> list[float]:
    """Share of draft starts whose first 1, 2, ... greedy tokens are the target's. Text is the
    held-out corpus, so this is lower than the acceptance on the target's own text."""
    taught = teach(target, windows, run.length)
    alive: Tensor | None = None
    shares = []
    for step, row in enumerate(unrolled(drafter, target, taught, run.steps, run.length)):
        expected = target.logits(taught.hidden[:, step + 1 : step + 1 + run.length])
        guess = F.linear(row, drafter.embed_tokens.weight)
        same = expected.argmax(-1) == guess.argmax(-1)
        alive = same if alive is None else alive & same
        shares.append(round(float(alive.float().mean()), 4))
    return shares


def clusters_are_fixed(drafter: DrafterModel) -> bool:
    ordering = drafter.masked_embedding.token_ordering
    return not torch.equal(ordering, torch.arange(len(ordering)))


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
    """Run to the end of the budget; the result is `drafter.state` in the run folder."""
    mixture = Mixture(load_streams(run.streams, TRAIN), MIXTURE)
    held_out = Mixture(load_streams(run.streams, HELD_OUT), MIXTURE)
    tokens = run.length + run.steps
    windows, _ = held_out.batch(np.random.default_rng(run.seed), 16, tokens, answers_only=True)
    torch.manual_seed(run.seed)
    target.requires_grad_(False)
    drafter = DrafterModel(run.config)
    initialise(drafter)
    fast_teach = torch.compile(teach, dynamic=False) if run.compile else teach
    fast_loss = torch.compile(batch_loss, dynamic=False) if run.compile else batch_loss

    def loss_at(progress: float, random: np.random.Generator) -> Tensor:
        clustered = bool(run.config.num_centroids) and progress >= run.clusters_from
        if clustered and not clusters_are_fixed(drafter):
            fix_clusters(drafter, run.seed)
        inputs, labels = mixture.batch(random, run.batch_size, tokens, answers_only=True)
        starts = pick_starts(labels, run.length, run.starts, random)
        with mixed_precision():
            taught = fast_teach(target, inputs, run.length)
            return fast_loss(drafter, target, taught, starts, run, clustered)

    def measure(final: bool) -> dict[str, Any]:
        with mixed_precision():
            shares = agreement(drafter, target, windows, run)
        return {"final_agreement" if final else "agreement": shares}

    data = [*sorted(run.streams.glob("*.npz")), run.folder / "target.state"]
    train(run, drafter, data, loss_at, measure)
    return drafter
