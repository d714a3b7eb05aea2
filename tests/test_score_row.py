"""Native rows give the sampler what NumPy rows give it: the same choices, and sums to 1e-12."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import _native, sampling, score_row
from paceline.errors import LogitsError
from paceline.noise import MAX_SEED, gumbel
from paceline.sampling import Sampler, SamplingParams
from paceline.score_row import exact_weight_sum, temper
from score_row_twin import NumpyScoreRow

INF = math.inf
NO_IDS, NO_SCORES = np.empty(0, np.int64), np.empty(0)

LOGITS = st.one_of(
    st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0, -INF]),
    st.floats(-60, 60, width=32),
    st.sampled_from([3e38, -3e38, 1e-40]),
)
DAMAGE = st.sampled_from([None] * 8 + [math.nan, INF, -INF])
TEMPERATURES = st.one_of(st.sampled_from([0.0, 5e-324, 1e-9, 0.3, 1.0, 2.0]), st.floats(0.05, 2.0))


@st.composite
def rows(draw, max_vocab=300):
    """[V]: few random values, as often as the row is long, so that most of them are ties."""
    some = np.array(draw(st.lists(LOGITS, min_size=1, max_size=12)), np.float32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.choice(some, draw(st.integers(1, max_vocab)))
    if draw(st.booleans()):
        logits = logits + rng.normal(size=len(logits)).astype(np.float32)
    return logits


@st.composite
def requests(draw):
    logits = draw(rows())
    tokens = st.integers(0, len(logits) - 1)
    damage = draw(DAMAGE)
    if damage is not None:
        logits[draw(tokens)] = damage
    params = SamplingParams(
        temperature=draw(TEMPERATURES),
        top_k=draw(st.sampled_from([0, 0, 1, 5, 150, 400])),
        top_p=draw(st.one_of(st.sampled_from([1.0, 0.5, 1.0 - 2**-53]), st.floats(0.01, 1.0))),
        min_p=draw(st.one_of(st.just(0.0), st.sampled_from([1e-300, 0.5]), st.floats(0.0, 0.9))),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -0.7])),
        logit_bias=draw(st.dictionaries(tokens, st.floats(-100, 100), max_size=3)),
        top_logprobs=draw(st.sampled_from([None, 0, 5, 20])),
    )
    sampler = Sampler(
        params,
        vocab_size=len(logits),
        seed=draw(st.integers(0, MAX_SEED)),
        prompt_token_ids=draw(st.lists(tokens, max_size=5)),
        suppressed_token_ids=draw(st.lists(tokens, max_size=4)),
    )
    for token in draw(st.lists(tokens, max_size=6)):
        sampler.commit(token)
    return sampler, logits, draw(st.integers(0, 2**40))


def chosen(sampler, logits, position, new_row):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "score_row", new_row)
        try:
            return sampler.choose(logits, position)
        except LogitsError as error:
            return str(error)


def assert_alike(ours, theirs):
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
        return
    assert ours.token_id == theirs.token_id
    assert [v for v, _ in ours.top] == [v for v, _ in theirs.top]
    # Two sums, each right to 1e-13 of its value, and differences up to 1e38.
    numbers, expected = (
        [x for x in (choice.logprob, *(y for _, y in choice.top)) if x is not None]
        for choice in (ours, theirs)
    )
    assert numbers == pytest.approx(expected, rel=1e-12, abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(requests())
def test_native_rows_change_no_choice(request_):
    logits = request_[1]
    before = logits.copy()
    ours = chosen(*request_, _native.ScoreRow)
    assert_alike(ours, chosen(*request_, NumpyScoreRow))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 2.0},
        {"temperature": 0.1},
        {"temperature": 0.0, "top_logprobs": 20},
        {"top_logprobs": 5},
        {"top_p": 0.95},
        {"top_p": 0.95, "min_p": 0.01},
        {"top_p": 0.999, "temperature": 1.5},
        {"min_p": 0.05},
        {"top_k": 64, "top_p": 0.9, "top_logprobs": 0},
        {"top_k": 3000},
        {"repetition_penalty": 1.2, "presence_penalty": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
def test_native_rows_change_no_choice_of_a_large_vocabulary(fields, spread):
    size = 50_001
    rng = np.random.default_rng(int(spread * 10))
    logits = (rng.normal(size=size) * spread).astype(np.float32)
    sampler = Sampler(
        SamplingParams(**fields),
        vocab_size=size,
        seed=9,
        prompt_token_ids=rng.integers(0, size, 500).tolist(),
        suppressed_token_ids=[0, 1, int(logits.argmax()), size - 1],
    )
    for position in range(6):
        ours = chosen(sampler, logits, position, _native.ScoreRow)
        assert_alike(ours, chosen(sampler, logits, position, NumpyScoreRow))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(rows(max_vocab=700), st.integers(0, 800), st.floats(0.05, 2.0), st.integers(0, MAX_SEED))
def test_native_answers_are_those_of_numpy(logits, count, temperature, seed):
    ours = _native.ScoreRow(logits, NO_IDS, NO_SCORES)
    theirs = NumpyScoreRow(logits, NO_IDS, NO_SCORES)
    assert ours.peak == theirs.peak
    if not math.isfinite(theirs.peak):
        return
    assert ours.highest(count).tolist() == theirs.highest(count).tolist()
    for floor in (theirs.peak, theirs.peak - 2.5, -1e308, -INF):
        assert ours.at_least(floor).tolist() == theirs.at_least(floor).tolist()
    ids = np.arange(len(logits))[::-1].copy()
    np.testing.assert_array_equal(ours.scores(ids), theirs.scores(ids))
    exact = exact_weight_sum(theirs, temperature)
    assert exact_weight_sum(ours, temperature) == exact
    assert ours.weight_sum(temperature) == pytest.approx(exact, rel=1e-12)
    noised = temper(logits, temperature) + gumbel(seed, 3, np.arange(len(logits)))
    winners = np.flatnonzero(noised == noised.max())
    assert set(winners) <= set(ours.contenders(temperature, seed, 3).tolist())


def test_contenders_are_few():
    """Otherwise the sampler would hash in Python what was hashed natively."""
    logits = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    row = _native.ScoreRow(logits, NO_IDS, NO_SCORES)
    counts = [len(row.contenders(1.0, 5, position)) for position in range(50)]
    assert max(counts) <= 2  # two within 1e-9 have a chance of about 1e-9


class SkewedRow(NumpyScoreRow):
    """Its sum is as wrong as it may be, and exact sums are counted."""

    factor, num_exact = 1.0, 0

    def weight_sum(self, temperature):
        return self.factor * exact_weight_sum(self, temperature)

    def at_least(self, floor):
        type(self).num_exact += floor < -1e308
        return super().at_least(floor)


@pytest.mark.parametrize("factor", [1 - 1e-10, 1 + 1e-10])
@pytest.mark.parametrize("size", [2, 4, 1024])
def test_an_edge_within_the_tolerance_is_decided_by_the_exact_sum(monkeypatch, factor, size):
    """Half of equal tokens is a nucleus whose edge lies exactly on a sum."""
    monkeypatch.setattr(SkewedRow, "factor", factor)
    monkeypatch.setattr(SkewedRow, "num_exact", 0)
    row = SkewedRow(np.zeros(size, np.float32), NO_IDS, NO_SCORES)
    kept = sampling._nucleus_of_row(row, SamplingParams(top_p=0.5))
    assert kept.tolist() == list(range(size // 2))
    assert SkewedRow.num_exact == 2  # the test's own, and that of the edge
    off_the_edge = sampling._nucleus_of_row(row, SamplingParams(top_p=0.5 + 1 / (4 * size)))
    assert off_the_edge.tolist() == list(range(size // 2 + 1))
    assert SkewedRow.num_exact == 3


PROGRAM = """
import numpy as np
from paceline import _native
assert _native.isa_name() == "{isa}"
logits = (np.random.default_rng(1).normal(size=20_077) * 4).astype(np.float32)
row = _native.ScoreRow(logits, np.array([0, 700, 20_076]), np.array([-np.inf, 3.25, 20.5]))
print(row.peak, [row.weight_sum(t).hex() for t in (1e-3, 0.7, 1.0, 2.0)])
print(row.highest(300).tolist(), row.at_least(11.0).tolist())
print([row.contenders(t, 2**63 + 11, 2**33 + p).tolist() for t in (0.2, 1.0) for p in range(40)])
"""


def test_all_instruction_sets_give_the_same_bits():
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(isa=isa)],
            env=os.environ | {"PACELINE_ISA": isa},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for isa in _native.isa_names()
    ]
    assert len(outputs[0]) > 1000
    assert set(outputs) == {outputs[0]}


def test_a_row_keeps_the_logits_that_it_reads():
    row = _native.ScoreRow(np.arange(100_000, dtype=np.float32), NO_IDS, NO_SCORES)
    assert row.highest(2).tolist() == [99_999, 99_998]


def test_logits_need_not_lie_side_by_side():
    logits = np.arange(10, dtype=np.float32)
    row = score_row.score_row(logits[::-2], NO_IDS, NO_SCORES)
    assert row.scores(np.arange(5)).tolist() == [9, 7, 5, 3, 1]


@pytest.mark.parametrize(
    ("logits", "ids", "scores"),
    [
        ([], [], []),
        ([0.0, 1.0], [0], []),
        ([0.0, 1.0], [1, 0], [2.0, 2.0]),
        ([0.0, 1.0], [1, 1], [2.0, 2.0]),
        ([0.0, 1.0], [2], [2.0]),
        ([0.0, 1.0], [-1], [2.0]),
    ],
)
def test_native_rows_refuse_changes_of_no_token(logits, ids, scores):
    with pytest.raises(ValueError, match=r"expected|changed"):
        _native.ScoreRow(np.array(logits, np.float32), np.array(ids, np.int64), np.array(scores))


@pytest.mark.parametrize("peak", [math.nan, INF, -INF])
def test_native_rows_refuse_what_has_no_answer(peak):
    broken = _native.ScoreRow(np.array([peak, -INF], np.float32), NO_IDS, NO_SCORES)
    sound = _native.ScoreRow(np.zeros(2, np.float32), NO_IDS, NO_SCORES)
    for ask in (
        lambda: broken.highest(1),
        lambda: broken.weight_sum(1.0),
        lambda: broken.contenders(1.0, 0, 0),
        lambda: sound.weight_sum(0.0),
        lambda: sound.contenders(math.nan, 0, 0),
        lambda: sound.scores(np.array([2])),
        lambda: sound.scores(np.array([-1])),
    ):
        with pytest.raises(ValueError, match=r"finite|out of range|not in a row"):
            ask()
