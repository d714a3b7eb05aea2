"""Parity with transformers: hidden states and logits of targets and drafters, float32, eager.

Every tolerance is derived from the judge. One layer may differ by a number of roundings times
epsilon and the row's norm. What that grows to over the depth is not guessed: the judge runs a
second time with noise of just that size added to each of its layers, and how far it moves is the
tolerance.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch

import geometries
import pairs
from paceline.runtime.protocols import DraftRequest, Rows
from paceline.runtime.torch import drafter as drafter_module
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.runtime.torch.models import DrafterModel, TargetModel
from paceline.runtime.torch.whole import WholeAttention, forward_whole
from paceline.sampling import DrawRule

EPSILON = 2.0**-23
LENGTH = 200  # longer than the window (16), a block (64) and a ring (128)
GREEDY = DrawRule(temperature=0.0, seed=0)


@dataclass(frozen=True)
class Judged:
    """What transformers says of one text, and how far an honest float32 twin may stray."""

    token_ids: list[int]
    hidden: list[torch.Tensor]  # after the embedding, each layer but the last, the final norm
    logits: torch.Tensor
    hidden_tolerance: list[float]  # of a row's difference, in units of its norm; like `hidden`
    logits_tolerance: float


def worst_roundings(attention) -> float:
    """How many epsilons one layer may add to a row's norm.

    About 20 operations round in turn. A score s carries an error of epsilon times |s| into its
    weight, and |s| <= |q| |k| <= H max|q_norm| max|k_norm|.
    """
    return 20 + attention.head_dim * float(
        attention.q_norm.weight.detach().max() * largest_key(attention)
    )


def usual_roundings(attention) -> float:
    """The same for errors that are independent: they add up in quadrature, and of two unrelated
    vectors s has the standard deviation |q| |k| / sqrt(H); three of them are rarely passed."""
    largest = attention.q_norm.weight.detach().square().mean().sqrt() * largest_key(attention)
    return float((20 + 9 * attention.head_dim * largest**2).sqrt())


def largest_key(attention) -> float:
    """A drafter's keys come from its target, whose norms `geometries` draws up to 1.5."""
    return float(attention.k_norm.weight.detach().max()) if hasattr(attention, "k_norm") else 1.5


@contextmanager
def noise(judge, seed=0):
    """Adds to every layer's output rows of noise as long as its rounding errors."""
    generator = torch.Generator().manual_seed(seed)

    def add(layer, _, output):
        size = usual_roundings(layer.self_attn) * EPSILON * output.norm(dim=-1, keepdim=True)
        direction = torch.randn(output.shape, generator=generator)
        return output + size * direction / direction.norm(dim=-1, keepdim=True)

    handles = [layer.register_forward_hook(add) for layer in judge.model.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of a row, in units of its norm."""
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@torch.no_grad()
def run_judge(judge, token_ids):
    output = judge(torch.tensor([token_ids]), output_hidden_states=True)
    return [x[0] for x in output.hidden_states], output.logits[0]


@cache
def judged(name: str) -> Judged:
    judge = pairs.judges(name)[0]
    token_ids = pairs.tokens(LENGTH)
    hidden, logits = run_judge(judge, token_ids)
    with noise(judge):
        noisy_hidden, noisy_logits = run_judge(judge, token_ids)
    return Judged(
        token_ids=token_ids,
        hidden=hidden,
        logits=logits,
        hidden_tolerance=[0.0]
        + [
            # What a layer adds itself is not in its recorded output yet.
            distance(noisy, clean) + usual_roundings(layer.self_attn) * EPSILON
            for noisy, clean, layer in zip(
                noisy_hidden[1:], hidden[1:], judge.model.layers, strict=True
            )
        ],
        logits_tolerance=float((noisy_logits - logits).abs().max()),
    )


@contextmanager
def layer_outputs(model):
    """Collects what each layer returns, one list per layer."""
    outputs: list[list[torch.Tensor]] = [[] for _ in model.layers]
    handles = [
        layer.register_forward_hook(lambda _, __, output, into=into: into.append(output))
        for layer, into in zip(model.layers, outputs, strict=True)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", geometries.NAMES)
def test_the_tolerances_are_small(name):
    """They would prove nothing if rounding could move a row by a visible part of itself."""
    expected = judged(name)
    assert max(expected.hidden_tolerance) < 0.01
    assert expected.logits_tolerance < 0.03 * float(expected.logits.std())


@pytest.mark.parametrize("name", geometries.NAMES)
def test_each_layer_agrees_on_the_judges_input(name):
    """From the judge's own rows a layer can only be off by its own rounding: no depth is in it."""
    expected = judged(name)
    judge, model = pairs.judges(name)[0], pairs.load(name).target.model
    attention = WholeAttention()
    with torch.no_grad():
        rope = model.rope_tables(torch.arange(LENGTH), torch.float32)
        ids = torch.tensor([expected.token_ids])
        per_layer = model.per_layer_inputs(ids, model.embed(ids))
        assert torch.equal(model.embed(ids)[0], expected.hidden[0])
        for index, layer in enumerate(model.layers):
            kind = layer.spec.kind
            x = layer(expected.hidden[index][None], rope[kind], attention, per_layer[index])[0]
            if index == model.config.num_layers - 1:
                x = model.norm(x)
            tolerance = worst_roundings(judge.model.layers[index].self_attn) * EPSILON
            assert distance(x, expected.hidden[index + 1]) < tolerance, index


@pytest.mark.parametrize("name", geometries.NAMES)
def test_whole_forward_agrees_in_all_hidden_states_and_logits(name):
    expected = judged(name)
    model = pairs.load(name).target.model
    with torch.no_grad(), layer_outputs(model) as outputs:
        hidden, _ = forward_whole(model, torch.tensor([expected.token_ids]))
        logits = model.logits(hidden)[0]
    got = [x[0][0] for x in outputs[:-1]] + [hidden[0]]
    for index, (x, tolerance) in enumerate(zip(got, expected.hidden_tolerance[1:], strict=True)):
        assert distance(x, expected.hidden[index + 1]) < tolerance, index
    assert float((logits - expected.logits).abs().max()) < expected.logits_tolerance


@pytest.mark.parametrize("name", geometries.NAMES)
def test_passes_over_a_cache_agree_in_all_hidden_states_and_logits(name):
    """Eight rows a pass, through the wrap of the sliding rings, every layer compared."""
    expected = judged(name)
    target = pairs.load(name).target
    kv_cache = target.new_cache(LENGTH, 8)
    with layer_outputs(target.model) as outputs:
        passes = pairs.feed(target, kv_cache, expected.token_ids, [8] * (LENGTH // 8))
    got = [torch.cat(x) for x in outputs[:-1]] + [pairs.hidden_of(passes)]
    for index, (x, tolerance) in enumerate(zip(got, expected.hidden_tolerance[1:], strict=True)):
        assert distance(x, expected.hidden[index + 1]) < tolerance, index
    logits = pairs.logits_of(passes)
    assert float((logits - expected.logits).abs().max()) < expected.logits_tolerance


@pytest.mark.parametrize("name", geometries.NAMES)
def test_prefill_then_single_tokens_agree(name):
    """Prefill that wants no outputs skips the layers without KV, and nothing may miss them."""
    expected = judged(name)
    target = pairs.load(name).target
    kv_cache = target.new_cache(LENGTH, 8)
    pairs.feed(target, kv_cache, expected.token_ids[:171], [100, 71], all_outputs=False)
    steps = pairs.feed(target, kv_cache, expected.token_ids[171:], [1] * (LENGTH - 171))
    assert (
        distance(pairs.hidden_of(steps), expected.hidden[-1][171:])
        < (expected.hidden_tolerance[-1])
    )
    difference = pairs.logits_of(steps) - expected.logits[171:]
    assert float(difference.abs().max()) < expected.logits_tolerance


@pytest.mark.parametrize("name", geometries.NAMES)
def test_bfloat16_is_as_close_as_its_epsilon_allows(name):
    """Rows of 8 bits: after one layer, off by at most that layer's roundings of 2^-8 each."""
    expected = judged(name)
    target = pairs.load(name, "bfloat16").target
    kv_cache = target.new_cache(LENGTH, 8)
    with layer_outputs(target.model) as outputs:
        pairs.feed(target, kv_cache, expected.token_ids[:48], [8] * 6)
    judge = pairs.judges(name)[0]
    tolerance = worst_roundings(judge.model.layers[0].self_attn) * 2.0**-8
    assert distance(torch.cat(outputs[0]).float(), expected.hidden[1][:48]) < min(tolerance, 0.3)


@pytest.mark.parametrize("name", geometries.NAMES)
def test_every_tensor_moves_the_result_beyond_the_tolerance(name):
    """A tensor that could change by 5 % unseen would be read wrongly unseen."""
    expected = judged(name)
    loaded = pairs.load(name).target.model
    model = TargetModel(loaded.config)
    model.load_state_dict(loaded.state_dict())
    ids = torch.tensor([expected.token_ids[:40]])
    generator = torch.Generator().manual_seed(0)
    last = f"layers.{model.config.num_layers - 1}.layer_scalar"  # the final norm takes it out
    unseen = []
    for key, tensor in model.state_dict().items():
        if key == last:
            continue
        original = tensor.clone()
        tensor.mul_(1 + 0.05 * torch.randn(tensor.shape, generator=generator))
        with torch.no_grad():
            hidden, _ = forward_whole(model, ids)
        tensor.copy_(original)
        if distance(hidden[0], expected.hidden[-1][:40]) < expected.hidden_tolerance[-1]:
            unseen.append(key)
    assert unseen == []


@dataclass(frozen=True)
class Step:
    """Scores of one draft step and the tokens that they belong to."""

    token_ids: np.ndarray
    scores: np.ndarray


class JudgeRound:
    """transformers' drafter beside a clean view of its target's cache (reference 4.7)."""

    @torch.no_grad()
    def __init__(self, name, token_ids, passes):
        self.target, self.drafter = pairs.judges(name)
        self.length = len(token_ids)
        past, begin = None, 0
        for size in passes:
            output = self.target(
                torch.tensor([token_ids[begin : begin + size]]),
                past_key_values=past,
                output_hidden_states=True,
                return_shared_kv_states=True,
            )
            if past is None:
                past = output.past_key_values
                past.activate_past_recording()
            begin += size
        assert begin == self.length
        self.hidden = output.hidden_states[-1][:, -1:]
        self.shared = output.shared_kv_states
        self.next_token = int(output.logits[0, -1].argmax())

    def rows(self, kind):
        """Keys and values as [S, G, H], the newest last."""
        return [x[0].transpose(0, 1) for x in self.shared[kind]]

    @torch.no_grad()
    def draft(self, count):
        """Logits of `count` greedy steps."""
        hidden, token, rows = self.hidden, self.next_token, []
        for _ in range(count):
            embedded = self.target.get_input_embeddings()(torch.tensor([[token]]))
            output = self.drafter(
                inputs_embeds=torch.cat((embedded, hidden), dim=-1),
                position_ids=torch.tensor([[self.length]]),
                shared_kv_states=self.shared,
            )
            rows.append(output.logits[0, 0])
            hidden, token = output.last_hidden_state, int(output.logits.argmax())
        return torch.stack(rows)


HF_KINDS = {"sliding": "sliding_attention", "global": "full_attention"}


def cache_of(name, judge: JudgeRound):
    """A cache of ours that holds the judge's keys and values in the donor layers."""
    target = pairs.load(name).target
    kv_cache = target.new_cache(LENGTH, 8)
    kv_cache.reserve(judge.length)
    for kind, hf_kind in HF_KINDS.items():
        keys, values = judge.rows(hf_kind)
        store = kv_cache.layers[target.config.kv_layer(kind)]
        store.write(judge.length - len(keys), keys, values)
    kv_cache.advance(judge.length)
    return kv_cache


def our_steps(name, judge: JudgeRound, count, monkeypatch) -> tuple[list[Step], tuple[int, ...]]:
    """Ours as transformers runs it: at position N, with W + 1 sliding keys (reference 3.4, 3.5),
    from the judge's own hidden state, keys and values."""
    pair = pairs.load(name)
    config = pair.drafter.config
    model = DrafterModel(replace(config, sliding_window=config.sliding_window + 1))
    model.load_state_dict(pair.drafter.model.state_dict())
    steps: list[Step] = []

    def recorded(scores, position, rule, ids=None):
        steps.append(Step(np.arange(len(scores)) if ids is None else ids, scores))
        return original(scores, position, rule, ids)

    original = drafter_module.draw
    monkeypatch.setattr(drafter_module, "draw", recorded)
    request = DraftRequest(
        last_token=judge.next_token,
        hidden=judge.hidden[0, 0],
        cache=cache_of(name, judge),
        max_draft_tokens=count,
        draw=GREEDY,
    )
    (draft,) = TorchDrafter(model, pair.target.model, position="next").draft([request])
    return steps, draft.tokens


CLEAN_VIEWS = {
    "after prefill, inside the window": (9, [9]),
    "after prefill, beyond the window": (LENGTH, [LENGTH]),
    "after full acceptance, inside the window": (14, [9, 5]),
    "after full acceptance, beyond the window": (150, [141, 5, 4]),
}


@pytest.mark.parametrize("view", CLEAN_VIEWS)
@pytest.mark.parametrize("name", geometries.NAMES)
def test_what_the_drafter_reads_agrees(name, view):
    """The donors' keys and values, after norm and rotation, and the hidden state."""
    length, passes = CLEAN_VIEWS[view]
    token_ids = judged(name).token_ids[:length]
    clean = JudgeRound(name, token_ids, passes)
    with noise(clean.target):
        noisy = JudgeRound(name, token_ids, passes)
    target = pairs.load(name).target
    kv_cache = target.new_cache(LENGTH, 8)
    hidden = pairs.feed(target, kv_cache, token_ids, passes)[-1].hidden[-1]
    assert (
        distance(hidden, clean.hidden[0, 0]) < distance(noisy.hidden, clean.hidden) + EPSILON * 50
    )
    for kind, hf_kind in HF_KINDS.items():
        first = 0 if kind == "global" else max(0, length - target.config.sliding_window)
        ours = kv_cache.layers[target.config.kv_layer(kind)].read(first, length - 1)
        for got, expected, moved in zip(
            ours, clean.rows(hf_kind), noisy.rows(hf_kind), strict=True
        ):
            count = length - first
            tolerance = distance(moved[-count:], expected[-count:])
            assert distance(got.transpose(0, 1), expected[-count:]) < tolerance


@pytest.mark.parametrize("view", CLEAN_VIEWS)
@pytest.mark.parametrize("name", geometries.NAMES)
def test_drafter_agrees_over_unrolled_steps(name, view, monkeypatch):
    """Dense and centroid heads, five steps each of which eats the one before."""
    length, passes = CLEAN_VIEWS[view]
    judge = JudgeRound(name, judged(name).token_ids[:length], passes)
    logits = judge.draft(5)
    noisy = []
    for seed in range(8):  # a step is one row: several draws, for one may be lucky
        with noise(judge.drafter, seed):
            noisy.append(judge.draft(5))
    steps, drafted = our_steps(name, judge, 5, monkeypatch)
    assert drafted == tuple(logits.argmax(dim=-1).tolist())
    tolerances = (torch.stack(noisy) - logits).abs().amax(dim=(0, 2)).tolist()
    for step, row, tolerance in zip(steps, logits, tolerances, strict=True):
        scores = torch.from_numpy(step.scores)
        assert tolerance < 0.01 * float(scores.std())
        assert float((scores - row[step.token_ids]).abs().max()) < tolerance
        # The judge fills what its centroids left out with one constant.
        left_out = np.setdiff1d(np.arange(len(row)), step.token_ids)
        assert len(set(row[left_out].tolist())) <= 1
        assert len(np.unique(step.token_ids)) == len(step.token_ids)


def test_the_position_switch_moves_the_scores(monkeypatch):
    """Both positions run, and they are not the same."""
    pair = pairs.load("e2b")
    kv_cache = pair.target.new_cache(64, 8)
    hidden = pairs.feed(pair.target, kv_cache, pairs.tokens(20), [20])[-1].hidden[-1]
    request = DraftRequest(
        last_token=5, hidden=hidden, cache=kv_cache, max_draft_tokens=1, draw=GREEDY
    )
    margins = [
        TorchDrafter(pair.drafter.model, pair.target.model, position=position)
        .draft([request])[0]
        .confidences
        for position in ("last_written", "next")
    ]
    assert margins[0] != margins[1]
    assert margins[0] == pair.drafter.draft([request])[0].confidences


@pytest.mark.parametrize("name", ["e2b", "12b"])
def test_greedy_text_equals_assisted_generation(name):
    """64 tokens of `generate(assistant_model=..., do_sample=False)`, through our own rounds."""
    pair = pairs.load(name)
    prompt = pairs.tokens(30, seed=3)
    pair.judge_drafter.generation_config.num_assistant_tokens = 4
    for model in (pair.judge_target, pair.judge_drafter):
        model.generation_config.eos_token_id = None
    expected = pair.judge_target.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        assistant_model=pair.judge_drafter,
        do_sample=False,
        max_new_tokens=64,
    )[0].tolist()
    assert len(expected) == len(prompt) + 64
    # No token was decided by rounding: the runner-up was further away than we are off.
    logits = run_judge(pair.judge_target, expected)[1][29:-1]
    ours = pairs.feed(pair.target, pair.target.new_cache(LENGTH, 8), expected, [len(expected)])
    error = float((pairs.logits_of(ours)[29:-1] - logits).abs().max())
    first, second = logits.topk(2).values.unbind(-1)
    assert float((first - second).min()) > 2 * error
    assert pairs.generate(pair.target, pair.drafter, prompt, 64, draft=4) == expected[30:]
    assert pairs.generate(pair.target, None, prompt, 64, draft=0) == expected[30:]


def test_rows_of_a_prefill_without_outputs_do_not_run_the_shared_layers():
    target = pairs.load("e2b").target
    kv_cache = target.new_cache(64, 8)
    with layer_outputs(target.model) as outputs:
        target.forward([Rows(cache=kv_cache, token_ids=pairs.tokens(20), num_outputs=1)])
    first_shared = target.config.first_shared_layer
    calls = [len(x) for x in outputs]
    assert calls[:first_shared] == [3] * first_shared
    assert set(calls[first_shared:]) == {1}
