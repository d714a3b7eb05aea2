"""The native runtime agrees with its torch twin on the same stored weights, in every geometry.

The twin rounds what the native runtime rounds on purpose, so that float32 sums in another order are
all that differs. How far those carry is measured and not guessed: the twin runs again with every
product disturbed by what another order could change (`native_twins.native_arithmetic`), and the
native runtime may be `TIMES` as far from the plain twin as the farthest of these runs.

Such a disturbance may also send a value over the edge between two halves of a key, two bytes of a
quantised activation or two experts: a jump that no small tolerance holds. In short sequences that
is rare enough that a quarter must agree as if nothing were rounded to halves or bytes.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import torch

import geometries
import native_twins
import pairs
from native_twins import native_arithmetic
from paceline.runtime.protocols import DraftRequest, Rows, StopRule
from paceline.sampling import DrawRule

TIMES = 4.0
DRAWS = 3
SHORT = 2
SEQUENCES = 16
LONG = 330  # beyond a section of 256 keys, and round the rings


def outputs(target, new_cache, prompts):
    """Logits of every row of some fresh sequences in one pass. [sequences, rows, V]"""
    rows = [
        Rows(cache=new_cache(len(prompt)), token_ids=prompt, num_outputs=len(prompt))
        for prompt in prompts
    ]
    return np.stack([output.logits for output in target.forward(rows)])


def of_native(pair, prompts):
    return outputs(pair.target, lambda length: pair.target.new_cache(length, 8), prompts)


def of_twin(pair, prompts, seed=None, cache_dtype=torch.float16):
    noise = None if seed is None else torch.Generator().manual_seed(seed)
    with native_arithmetic(pair, noise):
        return outputs(pair.target, partial(pair.new_cache, dtype=cache_dtype), prompts)


def farthest(first, second):
    return float(np.abs(first - second).max())


@cache
def tolerance(name, count, length, cache_dtype=torch.float16):
    """How far disturbed sums carry with plain weights, times `TIMES`."""
    pair, prompts = native_twins.twin(name, "F32"), prompts_of(count, length)
    plain = of_twin(pair, prompts, cache_dtype=cache_dtype)
    disturbed = (of_twin(pair, prompts, seed, cache_dtype) for seed in range(DRAWS))
    return TIMES * max(farthest(other, plain) for other in disturbed)


def prompts_of(count, length):
    return [pairs.tokens(length, seed) for seed in range(count)]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", geometries.NAMES)
def test_logits_of_short_sequences(name, dtype):
    prompts = prompts_of(SEQUENCES, SHORT)
    got = of_native(native_twins.native(name, dtype), prompts)
    pair = native_twins.twin(name, dtype)
    smooth = tolerance(name, SEQUENCES, SHORT, torch.float32)
    assert smooth < 5e-3  # of logits up to 10
    distances = np.abs(got - of_twin(pair, prompts)).max(axis=(1, 2))
    assert (distances <= smooth).sum() >= SEQUENCES // 4
    if dtype in ("F32", "BF16"):
        assert distances.max() <= tolerance(name, SEQUENCES, SHORT)
    unrounded = outputs(pair.target, partial(pair.new_cache, dtype=torch.float32), prompts)
    assert (np.abs(got - unrounded).max(axis=(1, 2)) > smooth).all()


@pytest.mark.parametrize("name", ["e2b", "12b"])
def test_logits_of_a_long_sequence(name):
    """Rows that see more keys than a section has, and rings that have turned many times."""
    prompts = prompts_of(1, LONG)
    got = of_native(native_twins.native(name, "F32"), prompts)
    expected = of_twin(native_twins.twin(name, "F32"), prompts)
    assert farthest(got, expected) <= tolerance(name, 1, LONG) < 0.5


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


def both(name, dtype, prompts, rule, **settings):
    pair, other = native_twins.native(name, dtype), native_twins.twin(name, dtype)
    got = drafts_of(
        pair, lambda length: pair.target.new_cache(length, 8), prompts, rule, **settings
    )
    with native_arithmetic(other):
        expected = drafts_of(other, other.new_cache, prompts, rule, **settings)
    return got, expected


def agreeing(got, expected, near):
    """How many tokens agree, up to the first whose choice was nearer than `near` to a tie."""
    count = 0
    for token, other, margin, confidence in zip(
        got.tokens, expected.tokens, got.confidences, expected.confidences, strict=False
    ):
        if confidence <= near:
            break
        assert token == other
        assert margin == pytest.approx(confidence, abs=near)
        count += 1
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
@pytest.mark.parametrize("name", ["e2b", "e4b", "12b", "31b"])  # clusters, clusters, whole, whole
def test_drafts(name, rule):
    """Tokens and margins, with noise and biases, as long as no choice was near a tie: plain
    weights' scores differ by thousandths at most."""
    got, expected = both(name, "F32", prompts_of(8, 24), RULES[rule])
    counts = [agreeing(*drafts, 0.01) for drafts in zip(got, expected, strict=True)]
    assert sum(counts) >= 24


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["e2b", "12b"])
def test_drafts_of_quantised_weights(name, dtype):
    """A jump can move a score by tenths, or exchange a cluster: most drafts meet none that does."""
    for rule in RULES.values():
        got, expected = both(name, dtype, prompts_of(8, 24), rule)
        same = [x.tokens == y.tokens for x, y in zip(got, expected, strict=True)]
        assert sum(same) >= 4


def test_drafts_of_a_long_sequence():
    got, expected = both("e2b", "F32", prompts_of(2, LONG), RULES["greedy"])
    assert sum(agreeing(*drafts, 0.05) for drafts in zip(got, expected, strict=True)) >= 6


def test_the_place_of_a_draft():
    """The switch moves the native drafter as it moves its twin."""
    prompts = prompts_of(8, 24)
    here = both("e2b", "F32", prompts, RULES["greedy"])
    there = both("e2b", "F32", prompts, RULES["greedy"], place="next")
    for got, expected in zip(*there, strict=True):
        agreeing(got, expected, 0.01)
    assert [draft.confidences for draft in here[0]] != [draft.confidences for draft in there[0]]
    both("e2b", "F32", prompts[:1], RULES["greedy"])  # and back


@pytest.mark.parametrize("name", ["e2b", "12b"])
def test_a_draft_stops_as_its_rule_says(name):
    (whole,), _ = both(name, "F32", prompts_of(1, 24), RULES["greedy"])
    assert len(whole.tokens) == 6
    end = StopRule(end_token_ids=frozenset(whole.tokens[2:4]))
    (ended,), (expected,) = both(name, "F32", prompts_of(1, 24), RULES["greedy"], stop=end)
    first = min(whole.tokens.index(token) for token in end.end_token_ids)
    assert ended.tokens == expected.tokens == whole.tokens[: first + 1]
    bounds = StopRule(min_confidences=(0.0, 0.0, whole.confidences[2] + 0.1))
    (cut,), (expected,) = both(name, "F32", prompts_of(1, 24), RULES["greedy"], stop=bounds)
    assert cut.tokens == expected.tokens == whole.tokens[:2]
    assert cut.confidences == whole.confidences[:2]
