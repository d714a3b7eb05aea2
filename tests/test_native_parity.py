"""The native runtime agrees with its torch twin on the same stored weights, in every geometry.

The twin computes in float64 and rounds what the native runtime rounds on purpose. How far the
roundings of float32 may carry the two apart is derived (`error_bounds`), and planted bugs show what
the tolerance can see.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile

import numpy as np
import pytest
import torch

import geometries
import native_twins
import pairs
from error_bounds import SIGMAS, Float32Errors, fewest
from native_twins import Arithmetic
from paceline.checkpoint.quantise import BLOCK_BYTES
from paceline.checkpoint.weights import Weights
from paceline.runtime.protocols import DraftRequest, Rows, StopRule
from paceline.runtime.torch import layers
from paceline.sampling import DrawRule

SHORT = 2
SEQUENCES = {"F32": 256, "BF16": 256, "Q8_0": 128, "Q4_0": 128}  # of bytes, fewer jump
LONG = 330  # beyond a section of 256 keys, and round the rings


def prompts_of(count, length):
    return [pairs.tokens(length, seed) for seed in range(count)]


def of_native(pair, prompts):
    """Logits of every row of some fresh sequences in one pass. [sequences, rows, V]"""
    rows = [
        Rows(cache=pair.target.new_cache(len(prompt), 8), token_ids=prompt, num_outputs=len(prompt))
        for prompt in prompts
    ]
    return torch.from_numpy(np.stack([output.logits for output in pair.target.forward(rows)]))


def of_twin(pair, prompts, arithmetic=None):
    return native_twins.logits(pair, torch.tensor(prompts), arithmetic or Arithmetic(pair))


def distances(first, second):
    """Root mean square over the logits of a row. [..., V] -> [...]"""
    return (first - second).square().mean(dim=-1).sqrt()


def num_agreeing(logits, others, sigma):
    """How many sequences are within the tolerance in all rows."""
    return int((distances(logits, others) <= SIGMAS * sigma).all(dim=-1).sum())


@dataclass(frozen=True)
class Expected:
    """What the twin says of some short sequences, and how near to it float32 has to come."""

    prompts: list[list[int]]
    logits: torch.Tensor  # [sequences, rows, V]
    sigma: torch.Tensor  # [sequences, rows]
    fewest: int  # sequences that agree


@cache
def expected(name, dtype):
    pair, prompts = native_twins.twin(name, dtype), prompts_of(SEQUENCES[dtype], SHORT)
    exact = Arithmetic(pair)
    logits = of_twin(pair, prompts, exact)
    calm = of_twin(pair, prompts, Arithmetic(pair, Float32Errors(0), exact.decisions))
    free = of_twin(pair, prompts, Arithmetic(pair, Float32Errors(1)))
    sigma = distances(calm, logits)
    least = fewest(num_agreeing(free, logits, sigma), len(prompts))
    return Expected(prompts, logits, sigma, least)


@pytest.mark.parametrize("dtype", SEQUENCES)
@pytest.mark.parametrize("name", geometries.NAMES)
def test_logits_of_short_sequences(name, dtype):
    wanted = expected(name, dtype)
    got = of_native(native_twins.native(name, dtype), wanted.prompts)
    assert wanted.sigma.max() < 1e-4  # of logits up to 10
    assert num_agreeing(got, wanted.logits, wanted.sigma) >= wanted.fewest > 0


@pytest.mark.parametrize("name", ["e2b", "12b"])
def test_logits_of_a_long_sequence(name):
    """Rows that see more keys than a section has, and rings that have turned many times. So many
    values are stored that some always jump: errors that are free to do so give sigma."""
    pair, prompts = native_twins.twin(name, "F32"), prompts_of(1, LONG)
    logits = of_twin(pair, prompts)
    sigma = overall(of_twin(pair, prompts, Arithmetic(pair, Float32Errors(0))), logits)
    got = of_native(native_twins.native(name, "F32"), prompts)
    assert overall(got, logits) <= SIGMAS * sigma < 0.01
    with window_too_wide(pair):
        assert overall(got, of_twin(pair, prompts)) > SIGMAS * sigma


def overall(first, second):
    return float((first - second).square().mean().sqrt())


@contextmanager
def window_too_wide(pair):
    """By one position, in every sliding layer of the twin."""
    every = [layer.self_attn for layer in pair.target.model.layers if layer.self_attn.spec.window]
    specs = [attention.spec for attention in every]
    for attention, spec in zip(every, specs, strict=True):
        attention.spec = replace(spec, window=spec.window + 1)
    try:
        yield
    finally:
        for attention, spec in zip(every, specs, strict=True):
            attention.spec = spec


# Bugs: the native runtime must not agree with a twin that has one


def epsilon(pair, monkeypatch):
    """Of every norm ten times too large."""
    for module in pair.target.model.modules():
        if hasattr(module, "eps"):
            monkeypatch.setattr(module, "eps", 1e-5)


def one_head_turned(pair, monkeypatch):
    """The first head stands where the other row does: one position off."""
    honest, heads = layers.apply_rope, pair.target.config.num_heads

    def apply_rope(x, rope):
        y = honest(x, rope)
        if x.shape[-2] == heads:
            moved = tuple(table.roll(-1, dims=0) for table in rope)
            y = torch.cat((honest(x, moved)[..., :1, :], y[..., 1:, :]), dim=-2)
        return y

    monkeypatch.setattr(layers, "apply_rope", apply_rope)


def keys_and_values_in_bytes(pair, monkeypatch):
    def to_bytes(self, x):
        step = x.abs().amax(-1, keepdim=True) / 127
        return (x / step).round() * step

    monkeypatch.setattr(Arithmetic, "to_halves", to_bytes)


def keys_and_values_in_full(pair, monkeypatch):
    monkeypatch.setattr(Arithmetic, "to_halves", lambda self, x: x)


def activations_in_full(pair, monkeypatch):
    monkeypatch.setattr(Arithmetic, "to_bytes", lambda self, x: x)


@pytest.mark.parametrize(
    "bug",
    [
        epsilon,
        one_head_turned,
        keys_and_values_in_bytes,
        keys_and_values_in_full,
        activations_in_full,
    ],
)
@pytest.mark.parametrize("name", geometries.NAMES)
def test_a_bug_is_seen(name, bug, monkeypatch):
    pair, wanted = native_twins.twin(name, "Q4_0"), expected(name, "Q4_0")
    got = of_native(native_twins.native(name, "Q4_0"), wanted.prompts)
    bug(pair, monkeypatch)
    assert num_agreeing(got, of_twin(pair, wanted.prompts), wanted.sigma) < wanted.fewest


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", geometries.NAMES)
def test_a_row_off_by_one_step_is_seen(name, dtype):
    files, wanted = native_twins.stored(name, dtype), expected(name, dtype)
    weights = with_a_wrong_row(files.target_weights)
    wrong = native_twins.in_native(replace(files, target_weights=weights))
    got = of_native(wrong, wanted.prompts)
    assert num_agreeing(got, wanted.logits, wanted.sigma) < wanted.fewest


def with_a_wrong_row(weights):
    """What a runtime reads that takes the lowest bits of the weights behind one output wrong."""
    return Weights(
        tensors=tuple(
            off_by_one(x) if x.spec.name == "layers.0.self_attn.o_proj.weight" else x
            for x in weights.tensors
        )
    )


def off_by_one(weight):
    data = np.array(weight.data)
    blocks = data.reshape(weight.spec.shape[0], -1, BLOCK_BYTES[weight.dtype])
    blocks[0, :, 2:] ^= 1  # behind each block's scale
    return replace(weight, data=data)


# Drafts


def drafts_of(pair, new_cache, prompts, rule, stop=StopRule(), place="last_written"):
    """Drafts of up to 6 tokens behind the likeliest token after each prompt."""
    results = []
    pair.drafter.position = place
    for prompt in prompts:
        kv_cache = new_cache(len(prompt) + 8)
        (output,) = pair.target.forward([Rows(cache=kv_cache, token_ids=prompt)])
        request = DraftRequest(
            last_token=prompt[-1],
            hidden=output.hidden[0],
            cache=kv_cache,
            max_draft_tokens=6,
            draw=rule,
            stop=stop,
        )
        results += pair.drafter.draft([request])
    return results


def native_drafts(pair, prompts, rule, **settings):
    return drafts_of(
        pair, lambda length: pair.target.new_cache(length, 8), prompts, rule, **settings
    )


def twin_drafts(pair, prompts, rule, errors=None, **settings):
    with Arithmetic(pair, errors):
        return drafts_of(pair, pair.new_cache, prompts, rule, **settings)


def both_drafts(name, dtype, prompts, rule, **settings):
    """Of the native runtime and of the twin."""
    return (
        native_drafts(native_twins.native(name, dtype), prompts, rule, **settings),
        twin_drafts(native_twins.twin(name, dtype), prompts, rule, **settings),
    )


def differences(drafts, others):
    """Of confidences, as far as tokens agree. [tokens]"""
    found = []
    for draft, other in zip(drafts, others, strict=True):
        pairs_of_tokens = zip(draft.tokens, other.tokens, strict=False)
        same = list(takewhile(lambda tokens: tokens[0] == tokens[1], pairs_of_tokens))
        found.append(np.subtract(*(x.confidences[: len(same)] for x in (draft, other))))
    return np.concatenate(found)


def root_mean_square(x):
    return float(np.sqrt(np.mean(np.square(x))))


@cache
def sigma_of_drafts(name, length):
    """How far errors and jumps carry a confidence of plain weights."""
    pair, prompts = native_twins.twin(name, "F32"), prompts_of(96 // length or 2, length)
    plain = twin_drafts(pair, prompts, RULES["greedy"])
    free = twin_drafts(pair, prompts, RULES["greedy"], Float32Errors(0))
    return root_mean_square(differences(free, plain))


def compare(got, wanted, sigma):
    """Confidences within the tolerance, and tokens the same up to a choice near a tie.

    Returns:
        how many tokens were compared.
    """
    assert root_mean_square(differences(got, wanted)) <= SIGMAS * sigma
    count = 0
    for draft, other in zip(got, wanted, strict=True):
        clear = list(takewhile(lambda x: x > SIGMAS * sigma, other.confidences))
        assert draft.tokens[: len(clear)] == other.tokens[: len(clear)]
        count += len(clear)
    return count


RULES = {
    "greedy": DrawRule(temperature=0.0, seed=0),
    "sampled": DrawRule(temperature=1.0, seed=2**63 + 11),
    "biased": DrawRule(
        temperature=0.7,
        seed=5,
        bias_ids=np.array([1, 9, 106, 300], np.int64),
        biases=np.array([-np.inf, 4.0, -np.inf, -2.5]),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", geometries.NAMES)
def test_drafts(name, rule):
    """With noise and biases too, which no error moves. Of so long a prompt, some keys jump."""
    got, wanted = both_drafts(name, "F32", prompts_of(4, 24), RULES[rule])
    assert compare(got, wanted, sigma_of_drafts(name, 24)) >= 20
    assert sigma_of_drafts(name, 24) < 1e-3


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["e2b", "12b"])  # clusters, whole
def test_drafts_of_quantised_weights(name, dtype):
    """A jump can move a score by tenths, or exchange a cluster, but most short drafts meet none:
    then the median error tells sigma."""
    prompts, greedy = prompts_of(24, SHORT), RULES["greedy"]
    wanted = twin_drafts(native_twins.twin(name, dtype), prompts, greedy)
    free = twin_drafts(native_twins.twin(name, dtype), prompts, greedy, Float32Errors(1))
    sigma = 1.4826 * float(np.median(np.abs(differences(free, wanted))))  # of a normal number
    least = fewest(num_agreeing_drafts(free, wanted, sigma), len(prompts))
    pair = native_twins.native(name, dtype)
    assert sigma < 1e-5
    assert num_agreeing_drafts(native_drafts(pair, prompts, greedy), wanted, sigma) >= least > 0
    files = native_twins.stored(name, dtype)
    wrong = native_twins.in_native(
        replace(files, drafter_weights=with_a_wrong_row(files.drafter_weights))
    )
    assert num_agreeing_drafts(native_drafts(wrong, prompts, greedy), wanted, sigma) < least


def num_agreeing_drafts(drafts, others, sigma):
    return sum(
        draft.tokens == other.tokens
        and draft.confidences == pytest.approx(other.confidences, abs=SIGMAS * sigma)
        for draft, other in zip(drafts, others, strict=True)
    )


def test_drafts_of_a_long_sequence():
    got, wanted = both_drafts("e2b", "F32", prompts_of(2, LONG), RULES["greedy"])
    assert compare(got, wanted, sigma_of_drafts("e2b", LONG)) >= 10


def test_the_place_of_a_draft():
    """The switch moves the native drafter as it moves its twin, and back."""
    prompts, greedy, sigma = prompts_of(4, 24), RULES["greedy"], sigma_of_drafts("e2b", 24)
    here, wanted = both_drafts("e2b", "F32", prompts, greedy)
    there, moved = both_drafts("e2b", "F32", prompts, greedy, place="next")
    compare(there, moved, sigma)
    with pytest.raises(AssertionError):
        compare(there, wanted, sigma)
    assert both_drafts("e2b", "F32", prompts, greedy)[0] == here


@pytest.mark.parametrize("name", ["e2b", "12b"])
def test_a_draft_stops_as_its_rule_says(name):
    def both(**settings):
        got, wanted = both_drafts(name, "F32", prompts_of(1, 24), RULES["greedy"], **settings)
        return got[0], wanted[0]

    whole, _ = both()
    assert len(whole.tokens) == 6
    end = StopRule(end_token_ids=frozenset(whole.tokens[2:4]))
    ended, wanted = both(stop=end)
    first = min(whole.tokens.index(token) for token in end.end_token_ids)
    assert ended.tokens == wanted.tokens == whole.tokens[: first + 1]
    bounds = StopRule(min_confidences=(0.0, 0.0, whole.confidences[2] + 0.1))
    cut, wanted = both(stop=bounds)
    assert cut.tokens == wanted.tokens == whole.tokens[:2]
    assert cut.confidences == whole.confidences[:2]
