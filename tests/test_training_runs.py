"""Training runs: the schedule, the losses, the unrolled draft against inference, and a tiny pair
from its corpus to its folder."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fakes import fake_engine
from paceline.config import DrafterConfig, TargetConfig
from paceline.engine import Engine
from paceline.errors import CheckpointError
from paceline.loading import load_pair
from paceline.runtime.protocols import DraftRequest, Rows
from paceline.runtime.torch import drafter as inference
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.runtime.torch.models import DrafterModel, TargetModel
from paceline.runtime.torch.target import TorchTarget
from paceline.sampling import DrawRule, SamplingParams
from paceline.speculative.acceptance import AcceptanceModel, Profiles
from paceline.speculative.controller import DraftContext, DraftPlan
from paceline.tokenizer import Tokenizer
from paceline.training import __main__ as command
from paceline.training import loop, schedule
from paceline.training.clusters import balanced_clusters
from paceline.training.corpus import Document
from paceline.training.drafter import (
    DrafterRun,
    acceptance_loss,
    agreement,
    batch_loss,
    cluster_loss,
    clusters_are_fixed,
    fix_clusters,
    pick_starts,
    teach,
    train_drafter,
    unrolled,
)
from paceline.training.evaluate import MAX_TOKENS, evaluate, held_out_prompts
from paceline.training.export import export_drafter, export_target, read_run_state
from paceline.training.profile import WholeDrafts, learn_profiles
from paceline.training.record import file_hash
from paceline.training.schedule import Budget, Optimisers, learning_rate_factor
from paceline.training.streams import HELD_OUT, TRAIN, build_streams, load_streams
from paceline.training.target import MIXTURE, TargetRun, train_target
from paceline.training.vocabulary import save_vocabulary, train_vocabulary
from training_texts import read_tiny_corpus, write_corpus

VOCAB_SIZE = 480
WINDOW = 8
STACK = {
    "vocab_size": VOCAB_SIZE,
    "num_heads": 2,
    "num_kv_heads": 1,
    "num_global_kv_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "ffn_size": 48,
    "sliding_window": WINDOW,
    "context_length": 512,
}
TARGET = TargetConfig(
    hidden_size=32,
    layer_kinds=("sliding", "global", "sliding", "global"),
    num_kv_shared_layers=2,
    per_layer_size=8,
    per_layer_vocab_size=VOCAB_SIZE,
    logit_softcap=30.0,
    eos_token_ids=(1, 106),
    **STACK,
)
DRAFTER = DrafterConfig(
    hidden_size=24,
    layer_kinds=("sliding", "global"),
    target_hidden_size=32,
    num_centroids=40,
    centroid_top_k=8,
    **STACK,
)


# Schedule


@pytest.mark.parametrize(
    ("progress", "factor"),
    [
        (0.0, 0.02),
        (0.01, 0.5),
        (0.02, 1.0),
        (0.3, 1.0),
        (0.45, 1.0),
        (0.725, 0.5),
        (1.0, 0.0),
        (1.1, 0.0),
    ],
)
def test_the_learning_rate_warms_up_holds_and_falls_to_zero(progress, factor):
    assert learning_rate_factor(progress) == pytest.approx(factor)


class Clock:
    """A second passes at every look; at one of them the user interrupts."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.now = 0
        self.interrupt_at = interrupt_at

    def __call__(self) -> float:
        self.now += 1
        if self.now == self.interrupt_at:
            raise KeyboardInterrupt
        return float(self.now)


def test_a_budget_counts_training_only(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(schedule, "monotonic", clock)
    budget = Budget(8.0)
    clock.now += 3
    assert budget.progress() == 4 / 8
    budget.pause()
    assert budget.used == 5.0
    clock.now += 100
    budget.resume()
    assert budget.progress() == 6 / 8
    clock.now += 100
    assert budget.progress() == 1.0


class TwoLayers(nn.Module):
    """A parameter of every sort, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 4)
        self.matrix = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)

    def loss(self) -> torch.Tensor:
        return self.frozen(self.matrix(self.embed_tokens(torch.arange(6)))).pow(2).mean()


def two_layers(seed: int = 0) -> tuple[TwoLayers, Optimisers]:
    torch.manual_seed(seed)
    model = TwoLayers()
    return model, Optimisers(model, matrix_rate=0.02, table_rate=0.01)


def steps(model: TwoLayers, optimisers: Optimisers, count: int, factor: float = 0.5) -> None:
    for _ in range(count):
        model.loss().backward()
        optimisers.step(factor)


def groups(optimiser: torch.optim.Optimizer) -> list[list[torch.Tensor]]:
    return [group["params"] for group in optimiser.param_groups]


def test_each_parameter_has_its_optimiser():
    model, optimisers = two_layers()
    assert groups(optimisers.muon) == [[model.matrix.weight]]
    assert groups(optimisers.adam) == [[model.embed_tokens.weight], [model.matrix.bias]]


def test_a_step_of_the_optimisers_follows_the_schedule():
    model, optimisers = two_layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, optimisers, 1, factor=0.5)
    assert all(parameter.grad is None for parameter in optimisers.parameters)
    assert [group["lr"] for group in optimisers.muon.param_groups] == [0.01]
    assert [group["lr"] for group in optimisers.adam.param_groups] == [0.005, 0.005]
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == set(before) - {"frozen.weight"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, optimisers, 1, factor=0.0)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_brings_back_weights_moments_budget_and_step(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(schedule, "monotonic", clock)
    file = tmp_path / "run.state"
    model, optimisers = two_layers()
    steps(model, optimisers, 3)
    schedule.save_state(file, model, optimisers, Budget(100.0, used=40.0), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["run.state"]

    other, other_optimisers = two_layers(seed=1)
    budget = Budget(50.0)
    clock.now += 1000
    assert schedule.load_state(file, other, other_optimisers, budget) == 3
    assert budget.progress() == 41 / 50
    for one, its in ((model, optimisers), (other, other_optimisers)):
        steps(one, its, 2)
    assert all(
        value.equal(other.state_dict()[name])
        for name, value in model.state_dict().items()
        if name != "frozen.weight"
    )


def test_without_a_checkpoint_a_run_starts_at_zero(tmp_path):
    model, optimisers = two_layers()
    assert schedule.load_state(tmp_path / "none", model, optimisers, Budget(1.0)) == 0


# Losses


def random_logits(seed: int, rows: int = 5, size: int = 12) -> torch.Tensor:
    return 2 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def probabilities(logits: torch.Tensor) -> np.ndarray:
    scores = logits.double().numpy()
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_acceptance_loss_is_the_formula():
    target, drafter = random_logits(0), random_logits(1)
    losses = []
    for p, q in zip(probabilities(target), probabilities(drafter), strict=True):
        overlap = sum(min(a, b) for a, b in zip(p, q, strict=True))
        divergence = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
        weight = np.exp(-3 * overlap)
        losses.append(weight * divergence + (1 - weight) * (1 - overlap))
    # float32 sums of 12 terms of size one: some 12 roundings of 6e-8
    assert float(acceptance_loss(target, drafter)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_acceptance_loss_is_zero_where_the_drafter_knows_the_target():
    logits = random_logits(0)
    assert float(acceptance_loss(logits, logits + 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(acceptance_loss(logits, random_logits(1))) > 0.1


def overlap_of(target: torch.Tensor, drafter: torch.Tensor) -> float:
    return float(np.minimum(probabilities(target), probabilities(drafter)).sum(axis=-1).mean())


@pytest.mark.parametrize("distance", [0.0, 12.0])
def test_the_gradient_leads_to_more_overlap(distance):
    """Also from a cold start, where the overlap alone has hardly a slope."""
    target = random_logits(0)
    target[:, 0] += distance
    drafter = random_logits(1)
    drafter[:, 1] += distance
    drafter.requires_grad_()
    acceptance_loss(target, drafter).backward()
    assert float(drafter.grad.norm()) > 0.05
    moved = (drafter - 2.0 * drafter.grad).detach()
    assert overlap_of(target, moved) > overlap_of(target, drafter.detach())


def test_the_weight_of_the_divergence_is_held_fixed():
    """Its own slope would reward a drafter for being far from the target."""
    target, drafter = random_logits(0), random_logits(1).requires_grad_()
    acceptance_loss(target, drafter).backward()
    p, q = torch.softmax(target, -1), torch.softmax(drafter.detach(), -1)
    weight = torch.exp(-3 * torch.minimum(p, q).sum(-1, keepdim=True))
    # slope of KL is q - p; of TV, through the softmax, q * (s - sum(q * s)) with s = sign / 2
    sign = 0.5 * torch.sign(q - p)
    slope = weight * (q - p) + (1 - weight) * q * (sign - (q * sign).sum(-1, keepdim=True))
    torch.testing.assert_close(drafter.grad, slope / len(p), rtol=1e-4, atol=1e-6)


def test_cluster_loss_is_the_formula():
    target, scores = random_logits(0), random_logits(1, size=4)
    ordering = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    p, q = probabilities(target), probabilities(scores)
    expected = [
        -sum(p[row, token] * np.log(q[row, place // 3]) for place, token in enumerate(ordering))
        for row in range(5)
    ]
    got = float(cluster_loss(target, scores, ordering))
    assert got == pytest.approx(np.mean(expected), rel=1e-5)


def test_cluster_loss_falls_when_the_centroids_find_the_likely_cluster():
    target, scores = random_logits(0), random_logits(1, size=4).requires_grad_()
    ordering = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    before = cluster_loss(target, scores, ordering)
    before.backward()
    moved = (scores - scores.grad).detach()
    assert float(cluster_loss(target, moved, ordering)) < float(before.detach())


def test_draft_starts_are_those_before_an_answer():
    """Start t stands after token t; the first token to draft is t + 2, label t + 1."""
    labels = torch.full((2, 10), -100)
    labels[0, 3:6] = 7
    labels[1, 1] = 7
    labels[1, 9] = 7  # belongs to no start: a window of 8 starts ends before it
    random = np.random.default_rng(0)
    assert sorted(pick_starts(labels, 8, 4, random).tolist()) == [2, 3, 4, 8]
    everything = pick_starts(labels, 8, 16, random)
    assert sorted(everything.tolist()) == list(range(16))


# The unrolled draft against inference


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Weights under which every branch, key and position matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scaled = noise * parameter.shape[-1] ** -0.5
            parameter.copy_(scaled if parameter.dim() > 1 else 1.0 + 0.3 * noise)
    return model.requires_grad_(False)


TARGET_MODEL = randomised(TargetModel(TARGET), 0)
DRAFTER_MODEL = randomised(DrafterModel(DRAFTER), 1)
STEPS = 4
TOLERANCE = 2e-4
"""Both ways round float32 sums of up to 48 terms differently, some 1e-6 of rows of size one, and
six layers of attention without a scale make a few tens of it. A row, key or position that is not
the right one moves a row by 0.1 and more (test_a_wrong_position_is_seen)."""


def random_tokens(rows: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(3, VOCAB_SIZE, (rows, count), generator=generator)


def drafted_rows(
    monkeypatch: pytest.MonkeyPatch, tokens: list[int], start: int, **position: str
) -> torch.Tensor:
    """The rows of a draft as inference makes it after `tokens[:start + 1]`, in which every draw
    gives the text's own token. [STEPS, D]"""
    target = TorchTarget(TARGET_MODEL)
    cache = target.new_cache(len(tokens), STEPS)
    share = Rows(cache=cache, token_ids=tokens[: start + 1])
    output = target.forward([share])[0]
    rows: list[torch.Tensor] = []
    head = DrafterModel.head

    def recorded(x):
        rows.append(x.clone())
        return head(DRAFTER_MODEL, x)

    with monkeypatch.context() as patch:
        patch.setattr(DRAFTER_MODEL, "head", recorded, raising=False)
        patch.setattr(inference, "draw", lambda scores, at, rule, ids: (tokens[at], 0.0))
        TorchDrafter(DRAFTER_MODEL, TARGET_MODEL, **position).draft(
            [
                DraftRequest(
                    last_token=tokens[start + 1],
                    hidden=output.hidden[-1],
                    cache=cache,
                    max_draft_tokens=STEPS,
                    draw=DrawRule(temperature=0.0, seed=0),
                )
            ]
        )
    return torch.stack(rows)


@pytest.mark.parametrize("length", [3 * WINDOW, 3 * WINDOW - 3, WINDOW])
def test_the_unrolled_draft_is_the_draft_of_inference(length, monkeypatch):
    """At every start: same frozen position, keys, hidden row and tokens, also past the window.
    The lengths take the three ways in which whole-sequence attention masks."""
    token_ids = random_tokens(2, length + STEPS)
    taught = teach(TARGET_MODEL, token_ids, length)
    got = torch.stack(list(unrolled(DRAFTER_MODEL, TARGET_MODEL, taught, STEPS, length)))
    starts = {0, 1, WINDOW - 2, WINDOW - 1, WINDOW, 2 * WINDOW + 1, length - 1}
    for row, start in itertools.product(range(2), starts & set(range(length))):
        # no draw follows the last step, so the text may end with the token that it would give
        tokens = [*token_ids[row].tolist(), 0]
        expected = drafted_rows(monkeypatch, tokens, start)
        torch.testing.assert_close(got[:, row, start], expected, rtol=0, atol=TOLERANCE)


def test_a_wrong_position_is_seen(monkeypatch):
    tokens = random_tokens(1, 40)[0].tolist()
    right = drafted_rows(monkeypatch, tokens, 20)
    other = drafted_rows(monkeypatch, tokens, 20, position="next")
    assert float((right - other).abs().max()) > 100 * TOLERANCE


def settings(**changes: object) -> DrafterRun:
    return DrafterRun(
        folder=Path(), minutes=1.0, steps=STEPS, config=DRAFTER, compile=False, **changes
    )


def cached_logits(tokens: list[int]) -> torch.Tensor:
    """What inference scores after each of the tokens. [T, V]"""
    target = TorchTarget(TARGET_MODEL)
    share = Rows(cache=target.new_cache(len(tokens), 0), token_ids=tokens, num_outputs=len(tokens))
    return torch.from_numpy(target.forward([share])[0].logits)


@pytest.mark.parametrize("with_clusters", [False, True])
def test_the_loss_compares_a_draft_with_what_verifies_it(with_clusters, monkeypatch):
    """Step k of a draft after token t proposes token t + 2 + k: the target's row after token
    t + 1 + k has to say the same."""
    run = settings(length=12, step_decay=0.5)
    token_ids = random_tokens(2, 12 + STEPS)
    head = DRAFTER_MODEL.masked_embedding
    starts = {3: (0, 3), 12 + 10: (1, 10)}
    losses = [[] for _ in range(STEPS)]
    for row, start in starts.values():
        tokens = [*token_ids[row].tolist(), 0]
        verified = cached_logits(tokens)
        for k, drafted in enumerate(drafted_rows(monkeypatch, tokens, start)):
            expected = verified[start + 1 + k][None]
            loss = acceptance_loss(expected, (DRAFTER_MODEL.embed_tokens.weight @ drafted)[None])
            if with_clusters:
                scores = (head.centroids.weight @ drafted)[None]
                loss = loss + 0.2 * cluster_loss(expected, scores, head.token_ordering)
            losses[k].append(float(loss))
    expected = sum(0.5**k * np.mean(losses[k]) for k in range(STEPS)) / 1.875
    got = batch_loss(
        DRAFTER_MODEL,
        TARGET_MODEL,
        teach(TARGET_MODEL, token_ids, 12),
        torch.tensor(list(starts)),
        run,
        with_clusters,
    )
    assert float(got) == pytest.approx(expected, rel=1e-3)


def test_agreement_counts_the_drafts_that_are_right_so_far(monkeypatch):
    right = torch.tensor(
        [[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    )
    length = len(right)
    windows = random_tokens(1, length + STEPS)
    tokens = [*windows[0].tolist(), 0]
    likely = cached_logits(tokens).argmax(dim=-1)
    drafted = torch.cat([drafted_rows(monkeypatch, tokens, t) for t in range(length)])
    # a head that gives each of the 24 rows the likely token or, where it shall be wrong, token 0
    said = torch.stack([likely[t + 1 : t + 1 + STEPS] for t in range(length)]) * right
    scores = nn.functional.one_hot(said.flatten(), VOCAB_SIZE).double()
    head = torch.linalg.solve(drafted.double(), scores).T.float()
    assert ((drafted @ head.T).argmax(dim=-1) == said.flatten()).all()
    assert (likely > 0).all()
    monkeypatch.setattr(DRAFTER_MODEL.embed_tokens, "weight", nn.Parameter(head))
    got = agreement(DRAFTER_MODEL, TARGET_MODEL, windows, settings(length=length))
    assert got == pytest.approx([4 / 6, 3 / 6, 2 / 6, 2 / 6], abs=1e-4)


def test_fixed_clusters_are_those_of_the_head():
    drafter = randomised(DrafterModel(DRAFTER), 2)
    assert not clusters_are_fixed(drafter)
    fix_clusters(drafter, seed=4)
    assert clusters_are_fixed(drafter)
    table, head = drafter.embed_tokens.weight, drafter.masked_embedding
    ordering = balanced_clusters(table.numpy(), 40, 4)
    assert head.token_ordering.tolist() == ordering.tolist()
    means = torch.stack([table[ordering[12 * c : 12 * c + 12]].mean(0) for c in range(40)])
    torch.testing.assert_close(head.centroids.weight.data, means)


# A tiny pair, from its corpus to its folder


def target_run(folder: Path, seconds: int) -> TargetRun:
    return TargetRun(
        folder=folder,
        minutes=seconds / 60,
        batch_size=4,
        length=24,
        checkpoint_every=4,
        config=TARGET,
        compile=False,
    )


def drafter_run(folder: Path, seconds: int) -> DrafterRun:
    return DrafterRun(
        folder=folder,
        minutes=seconds / 60,
        batch_size=4,
        length=16,
        steps=2,
        starts=32,
        checkpoint_every=4,
        clusters_from=0.5,
        config=DRAFTER,
        compile=False,
    )


def run_target(folder: Path, seconds: int, clock: Clock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "monotonic", clock)
        patch.setattr(loop, "CURVE_EVERY", 2)
        train_target(target_run(folder, seconds))


def run_drafter(folder: Path, seconds: int, clock: Clock) -> None:
    target = TargetModel(TARGET)
    target.load_state_dict(read_run_state(folder / "target.state"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "monotonic", clock)
        patch.setattr(loop, "CURVE_EVERY", 2)
        train_drafter(drafter_run(folder, seconds), target)


RUNS = {"target": run_target, "drafter": run_drafter}


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> list[Document]:
    return read_tiny_corpus(write_corpus(tmp_path_factory.mktemp("corpus") / "texts"))


@pytest.fixture(scope="module")
def run_folder(documents, tmp_path_factory) -> Path:
    """A finished run of a target and a drafter."""
    folder = tmp_path_factory.mktemp("run")
    texts = [one.text for one in documents]
    save_vocabulary(train_vocabulary(texts, VOCAB_SIZE), folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    build_streams(documents, tokenizer, folder / "streams")
    run_target(folder, 60, Clock())
    run_drafter(folder, 60, Clock())
    return folder


def curve(folder: Path, name: str) -> list[dict[str, object]]:
    text = (folder / f"{name}.curve.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_target_learns(run_folder):
    points = curve(run_folder, "target")
    first = next(point["held_out"] for point in points if "held_out" in point)
    last = points[-1]["final_held_out"]
    assert last.keys() == {"shell-chat", "maths-chat", "code-plain", "code-chat", *first}
    assert all(last[name] < first[name] - 0.5 for name in last), (first, last)


def test_a_drafter_learns(run_folder):
    points = curve(run_folder, "drafter")
    first = next(point["agreement"] for point in points if "agreement" in point)
    last = points[-1]["final_agreement"]
    assert len(last) == 2
    assert last[0] > first[0] + 0.2, (first, last)
    assert last[0] >= last[1]


def test_a_run_records_how_it_was_made(run_folder):
    for name, own in (("target", {"answers_from": "0.7"}), ("drafter", {"steps": "2"})):
        record = json.loads((run_folder / f"{name}.run.json").read_text())
        assert record["settings"].items() >= {"seed": "1", "batch_size": "4", **own}.items()
        assert record["settings"].keys().isdisjoint({"folder", "name"})
        streams = {path.name: path for path in (run_folder / "streams").glob("*.npz")}
        assert streams
        assert record["data"].items() >= {k: file_hash(p) for k, p in streams.items()}.items()
        assert record.keys() >= {"command", "commit", "started", "versions"}
    assert record["data"]["target.state"] == file_hash(run_folder / "target.state")


def equal_states(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        same = one.keys() == other.keys()
        return same and all(equal_states(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal_states, one, other))
    return one == other


def begin(folder: Path, run_folder: Path, name: str) -> Path:
    """A folder in which the step `name` has not begun."""
    shutil.copytree(run_folder / "streams", folder / "streams")
    if name == "drafter":
        shutil.copy(run_folder / "target.state", folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(run_folder, tmp_path_factory) -> dict[str, Path]:
    """Short runs of each step that nobody stopped."""
    folders = {}
    for name, run in RUNS.items():
        folders[name] = begin(tmp_path_factory.mktemp("unbroken") / name, run_folder, name)
        run(folders[name], 20, Clock())
    return folders


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("interrupt_at", [5, 12, 20])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    name, interrupt_at, unbroken, run_folder, tmp_path
):
    """Stopped before the first checkpoint, and some steps after the first and the second: weights,
    moments, budget and curve of the resumed run are those of a run without a stop, to the bit."""
    folder = begin(tmp_path / "stopped", run_folder, name)
    with pytest.raises(KeyboardInterrupt):
        RUNS[name](folder, 20, Clock(interrupt_at))
    RUNS[name](folder, 20, Clock())
    states = [
        torch.load(path / f"{name}.state", weights_only=True) for path in (folder, unbroken[name])
    ]
    assert states[0]["step"] > 12
    assert states[0].keys() == {"model", "optimisers", "used", "step"}
    assert equal_states(*states)
    assert curve(folder, name) == curve(unbroken[name], name)


def test_a_resumed_run_records_what_it_went_on_with(run_folder, tmp_path):
    folder = begin(tmp_path / "stopped", run_folder, "target")
    with pytest.raises(KeyboardInterrupt):
        run_target(folder, 20, Clock(12))
    first = json.loads((folder / "target.run.json").read_text())
    assert "resumed" not in first
    run_target(folder, 30, Clock())
    record = json.loads((folder / "target.run.json").read_text())
    (resumed,) = record.pop("resumed")
    assert record == first
    assert 0 < resumed["step"] < 12
    assert resumed["settings"]["minutes"] != record["settings"]["minutes"]
    assert resumed.keys() >= {"command", "commit", "started", "versions", "data"}


def test_a_finished_run_trains_no_more(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "again")
    run_target(tmp_path / "again", 60, Clock())
    states = [read_run_state(f / "target.state") for f in (run_folder, tmp_path / "again")]
    assert equal_states(*states)
    assert curve(tmp_path / "again", "target")[-1] == curve(run_folder, "target")[-1]


@pytest.fixture(scope="module")
def pair_folder(run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair") / "tiny"
    export_target(run_folder, folder, TARGET)
    export_drafter(run_folder, folder, DRAFTER)
    return folder


def test_an_exported_pair_loads_with_the_weights_of_its_run(run_folder, pair_folder):
    pair = load_pair(pair_folder, runtime="torch")
    assert (pair.target.config, pair.drafter.config) == (TARGET, DRAFTER)
    for name, model in (("target", pair.target.model), ("drafter", pair.drafter.model)):
        trained = read_run_state(run_folder / f"{name}.state")
        loaded = model.state_dict()
        assert loaded.keys() == trained.keys()
        for key, value in trained.items():
            stored = value.bfloat16().float() if value.is_floating_point() else value
            assert torch.equal(loaded[key], stored), key
    assert pair.tokenizer.encode_text("a fox") == (
        Tokenizer.from_file(run_folder / "tokenizer.json").encode_text("a fox")
    )
    assert (pair.defaults.temperature, pair.defaults.top_k, pair.defaults.top_p) == (1.0, 64, 0.95)
    assert set(pair.defaults.eos_token_ids) == set(TARGET.eos_token_ids)


def test_an_exported_pair_brings_the_records_of_its_runs(run_folder, pair_folder):
    for folder, name in ((pair_folder, "target"), (pair_folder / "assistant", "drafter")):
        for file in ("run.json", "curve.jsonl"):
            copied = (folder / "training" / file).read_bytes()
            assert copied == (run_folder / f"{name}.{file}").read_bytes()


def test_an_exported_pair_answers_the_same_with_drafting_on_and_off(pair_folder):
    engine = Engine.load(pair_folder)
    sampling = SamplingParams(temperature=1.0, seed=3)
    off, on = (
        engine.generate("Take a small key.", draft=draft, sampling=sampling, max_tokens=24)
        for draft in (0, 3)
    )
    assert off.token_ids == on.token_ids
    assert on.stats.drafted_tokens


def test_a_run_without_a_result_cannot_be_exported(tmp_path):
    with pytest.raises(CheckpointError, match=r"target\.state is missing: run the training step"):
        export_target(tmp_path, tmp_path / "pair", TARGET)


# Evaluation


def test_prompts_are_held_out_and_spread_over_their_kind(documents):
    prompts = held_out_prompts(documents, 4)
    held_out = {
        kind: [one.prompt for one in documents if one.held_out and one.prompt and one.kind == kind]
        for kind in ("prose", "reference", "shell", "maths", "code")
    }
    assert prompts.keys() == held_out.keys()
    assert len(held_out["shell"]) == 12
    assert prompts["shell"] == held_out["shell"][::3]
    assert prompts["maths"] == held_out["maths"][::2]
    assert prompts["code"] == held_out["code"]  # three, for there are no four
    trained = {one.prompt for one in documents if not one.held_out} - {None}
    assert trained.isdisjoint(prompts["maths"])


@pytest.mark.parametrize(("errs", "rate", "length"), [(False, 1.0, 4.0), (True, 0.0, 1.0)])
def test_evaluation_counts_every_answer(errs, rate, length):
    """A drafter that is always right has every draft accepted, one that errs always has none."""
    engine = fake_engine(lambda position: errs)
    rows = evaluate(engine, {"maths": ["one", "two"], "shell": ["three"]}, 3)
    assert [(row["kind"], row["temperature"]) for row in rows] == [
        ("maths", 0.0),
        ("maths", 1.0),
        ("shell", 0.0),
        ("shell", 1.0),
    ]
    for row in rows:
        count = 2 if row["kind"] == "maths" else 1
        assert (row["prompts"], row["draft"]) == (count, 3)
        assert row["generated_tokens"] == count * MAX_TOKENS
        assert row["acceptance_rate"] == rate
        # the last round of an answer may draft less than three
        assert row["acceptance_length"] == pytest.approx(length, abs=0.1)
        assert sum(row["acceptance_histogram"]) >= count * (MAX_TOKENS - 1) // 4


def test_evaluation_samples_each_prompt_with_a_seed_of_its_own(monkeypatch):
    engine = fake_engine()
    asked = []

    def recorded(prompt, **answer):
        asked.append((prompt, answer["sampling"]))
        return Engine.generate(engine, prompt, **answer)

    monkeypatch.setattr(engine, "generate", recorded)
    evaluate(engine, {"maths": ["one", "two"]}, 2)
    usual = engine.default_sampling()
    assert asked == [
        (prompt, replace(usual, temperature=temperature, seed=seed))
        for temperature in (0.0, 1.0)
        for seed, prompt in enumerate(("one", "two"))
    ]


@pytest.mark.parametrize("errs", [False, True])
def test_a_profile_says_how_often_drafts_are_taken(errs):
    engine, told = fake_engine(lambda position: errs), []
    prompts = {"maths": ["one", "two"], "shell": ["three"]}
    profiles = learn_profiles(engine, prompts, lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]
    assert list(profiles.to_dict()["profiles"]) == ["prose", "sampled prose"]
    for kind in ("prose", "sampled prose"):
        first = AcceptanceModel(profiles.of(kind)).survivals()[1]
        assert first < 0.5 if errs else first > 0.8
    again = learn_profiles(engine, prompts)
    assert again.to_dict() == profiles.to_dict()


def test_a_profile_is_of_whole_drafts_whatever_they_cost():
    profiles = Profiles()
    policy = WholeDrafts(profiles, 6)
    context = DraftContext(room=15, context_length=9, kind="code")
    assert policy.plan(context) == DraftPlan(max_draft_tokens=6)
    assert policy.plan(context._replace(room=2)) == DraftPlan(max_draft_tokens=2)


# The command


def test_the_command_says_what_it_can_do():
    shown = subprocess.run(
        [sys.executable, "-m", "paceline.training", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for step in ("prepare", "target", "drafter", "export", "evaluate", "profile"):
        assert step in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "--corpus", "none"), "books.jsonl is missing: pass --corpus"),
        (("prepare", "--corpus", "texts"), "yield only"),
        (("target", "--run", "none"), "no train streams in none/streams: run"),
        (("drafter", "--run", "none"), "none/target.state is missing: run the training step"),
        (("export", "pair", "--run", "none"), "none/target.state is missing"),
        (("evaluate", "none"), "there is no folder"),
        (("profile", "none"), "there is no folder"),
    ],
)
def test_a_failure_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paceline.training.corpus.MAX_CODE_BYTES", -1)  # no standard library
    monkeypatch.setattr(sys, "argv", ["paceline.training", *arguments])
    with pytest.raises(SystemExit) as failure:
        command.main()
    assert failure.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "pair").exists()


def test_the_streams_of_a_run_feed_the_mixture(run_folder):
    assert load_streams(run_folder / "streams", TRAIN).keys() == MIXTURE.keys()
    assert load_streams(run_folder / "streams", HELD_OUT).keys() < MIXTURE.keys()
