"""Choosing and drawing equal their slow obvious definitions, bit for bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import candidates_of
from paceline import sampling
from paceline.errors import ConfigError, LogitsError, PacelineError
from paceline.noise import MAX_GUMBEL, MAX_SEED, MIN_GUMBEL, gumbel
from paceline.sampling import (
    MAX_CANDIDATES,
    DrawRule,
    Sampler,
    SamplingParams,
    draw,
    random_seed,
)
from paceline.score_row import score_row
from score_row_twin import NumpyScoreRow

INF = math.inf

# --- The definition -----------------------------------------------------------------------------


def slow_scores(logits, params, prompt, output, suppressed):
    scores = [float(value) for value in logits]
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    for token in set(output):
        count = output.count(token)
        scores[token] -= params.presence_penalty + params.frequency_penalty * count
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in suppressed:
        scores[token] = -INF
    return scores


def slow_survivors(scores, ranked, params):
    kept = [v for v in ranked if scores[v] > -INF]
    if params.top_k:
        kept = kept[: params.top_k]
    weights = {v: math.exp((scores[v] - scores[ranked[0]]) / params.temperature) for v in kept}
    if params.top_p < 1:
        wanted, mass, nucleus = params.top_p * sum(weights.values()), 0.0, []
        for v in kept:
            if mass >= wanted:
                break
            nucleus.append(v)
            mass += weights[v]
        kept = nucleus
    return [v for v in kept if weights[v] >= params.min_p]


def slow_choose(logits, position, params, seed, prompt=(), output=(), suppressed=()):
    scores = slow_scores(logits, params, prompt, output, suppressed)
    ranked = sorted(range(len(scores)), key=lambda v: (-scores[v], v))
    best = scores[ranked[0]]
    if params.temperature == 0:
        return ranked[0]
    noise = gumbel(seed, position, np.arange(len(scores)))
    noised = {
        v: (scores[v] - best) / params.temperature + noise[v]
        for v in slow_survivors(scores, ranked, params)
    }
    return min(noised, key=lambda v: (-noised[v], v))


def slow_draw(scores, position, rule, ids):
    biases = dict(zip(rule.bias_ids.tolist(), rule.biases.tolist(), strict=True))
    values = {v: float(s) + biases.get(v, 0.0) for v, s in zip(ids, scores, strict=True)}
    if rule.temperature > 0:
        best, noise = max(values.values()), gumbel(rule.seed, position, np.array(ids))
        for v, g in zip(ids, noise, strict=True):
            values[v] = (values[v] - best) / rule.temperature + g
    first, *rest = sorted(ids, key=lambda v: (-values[v], v))
    return first, values[first] - values[rest[0]] if rest else INF


# Few distinct values make ties, wide ones make losers that cannot win.
LOGITS = st.one_of(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), st.floats(-60, 60, width=32))
TEMPERATURES = st.one_of(st.just(0.0), st.sampled_from([1e-9, 0.3, 1.0]), st.floats(0.05, 2.0))
SEEDS = st.integers(0, MAX_SEED)
POSITIONS = st.integers(0, 2**40)


@st.composite
def requests(draw_from):
    vocab = draw_from(st.integers(1, 12))
    tokens = st.integers(0, vocab - 1)
    params = SamplingParams(
        temperature=draw_from(TEMPERATURES),
        top_k=draw_from(st.integers(0, 14)),
        top_p=draw_from(st.one_of(st.just(1.0), st.floats(0.01, 1.0))),
        min_p=draw_from(st.one_of(st.just(0.0), st.floats(0.0, 0.9))),
        repetition_penalty=draw_from(st.one_of(st.just(1.0), st.floats(0.1, 10.0))),
        presence_penalty=draw_from(st.one_of(st.just(0.0), st.floats(-2.0, 2.0))),
        frequency_penalty=draw_from(st.one_of(st.just(0.0), st.floats(-2.0, 2.0))),
        logit_bias=draw_from(st.dictionaries(tokens, st.floats(-100.0, 100.0), max_size=3)),
    )
    return {
        "logits": np.array(draw_from(st.lists(LOGITS, min_size=vocab, max_size=vocab)), np.float32),
        "position": draw_from(POSITIONS),
        "params": params,
        "seed": draw_from(SEEDS),
        "prompt": draw_from(st.lists(tokens, max_size=5)),
        "output": draw_from(st.lists(tokens, max_size=8)),
        "suppressed": draw_from(st.lists(tokens, max_size=vocab - 1)),
    }


def sampler_of(params, *, vocab_size, seed=1, prompt=(), output=(), suppressed=()):
    sampler = Sampler(
        params,
        vocab_size=vocab_size,
        seed=seed,
        prompt_token_ids=prompt,
        suppressed_token_ids=suppressed,
    )
    for token in output:
        sampler.commit(token)
    return sampler


def choose(request):
    rest = {k: v for k, v in request.items() if k not in ("logits", "position", "params")}
    sampler = sampler_of(request["params"], vocab_size=len(request["logits"]), **rest)
    return sampler.choose(request["logits"], request["position"])


# --- choose -------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=500)
@given(requests())
def test_choose_equals_the_definition(request_):
    before = request_["logits"].copy()
    assert choose(request_).token_id == slow_choose(**request_)
    assert (request_["logits"] == before).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.4},
        {"top_k": 64, "top_p": 0.95},
        {"top_p": 0.9},
        {"top_p": 0.999},  # more tokens than the first step of the nucleus sorts
        {"min_p": 0.02},
        {"top_k": 500, "top_p": 0.97, "min_p": 0.001, "temperature": 1.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.5, 4.0, 20.0])
def test_choose_equals_the_definition_on_a_large_vocabulary(fields, spread):
    params = SamplingParams(**fields)
    rng = np.random.default_rng(int(spread * 10))
    for position in range(5):
        logits = (rng.normal(size=3000) * spread).round(2).astype(np.float32)
        expected = slow_choose(logits, position, params, seed=5)
        sampler = sampler_of(params, vocab_size=3000, seed=5)
        assert sampler.choose(logits, position).token_id == expected


def test_choose_does_not_advance_anything():
    """Calls in any order and number give the same tokens; only a commit may change them."""
    params = SamplingParams(frequency_penalty=2.0)
    logits = np.linspace(0, 1, 9, dtype=np.float32)
    sampler = sampler_of(params, vocab_size=9)
    forward = [sampler.choose(logits, t) for t in range(30)]
    backward = [sampler.choose(logits, t) for t in reversed(range(30))]
    assert forward == backward[::-1]
    for _ in range(9):
        sampler.commit(8)
    assert [sampler.choose(logits, t) for t in range(30)] != forward


def test_repetition_looks_at_prompt_and_output_the_others_at_output_only():
    logits = np.array([2.0, 1.9, 1.8], np.float32)
    repetition = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    presence = SamplingParams(temperature=0.0, presence_penalty=1.5)
    sees_prompt = sampler_of(repetition, vocab_size=3, prompt=[0], output=[1])
    assert sees_prompt.choose(logits, 0).token_id == 2
    skips_prompt = sampler_of(presence, vocab_size=3, prompt=[0], output=[1])
    assert skips_prompt.choose(logits, 0).token_id == 0


def test_a_tie_at_the_edge_of_top_k_keeps_the_lowest_ids():
    logits = np.array([0, 1, 0, 0, 1, 0, 0], np.float32)
    sampler = sampler_of(SamplingParams(top_k=4), vocab_size=7)
    assert {sampler.choose(logits, t).token_id for t in range(200)} == {0, 1, 2, 4}


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-12])
def test_a_vanishing_temperature_is_greedy(temperature):
    logits = np.array([1, 3e38, -3e38, 2.9e38], np.float32)
    sampler = sampler_of(SamplingParams(temperature=temperature), vocab_size=4)
    assert {sampler.choose(logits, t).token_id for t in range(20)} == {1}
    assert draw(logits, 0, sampler.draw_rule)[0] == 1


def test_suppression_beats_the_strongest_bias():
    params = SamplingParams(logit_bias={1: 100.0})
    sampler = sampler_of(params, vocab_size=3, suppressed=[1])
    assert 1 not in {sampler.choose(np.zeros(3, np.float32), t).token_id for t in range(50)}


def test_filters_keep_what_transformers_keeps():
    """The outside judge: the survivors of its processors, in its order, on rows without ties."""
    torch = pytest.importorskip("torch")
    judge = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(3)
    for temperature, k, p, m in [(0.6, 20, 0.9, 0.05), (1.3, 50, 0.8, 0.01), (1.0, 7, 0.99, 0.1)]:
        params = SamplingParams(
            temperature=temperature, top_k=k, top_p=p, min_p=m, repetition_penalty=1.3
        )
        logits = (rng.normal(size=100) * 2).astype(np.float32)
        prompt = rng.integers(0, 100, 20).tolist()
        row = torch.tensor(logits)[None]
        for step in (
            judge.RepetitionPenaltyLogitsProcessor(1.3),
            judge.TemperatureLogitsWarper(temperature),
            judge.TopKLogitsWarper(k),
            judge.TopPLogitsWarper(p),
            judge.MinPLogitsWarper(m),
        ):
            row = step(torch.tensor([prompt]), row)
        sampler = sampler_of(params, vocab_size=100, prompt=prompt)
        scores = score_row(logits, sampler._changed_ids, sampler._changed_scores(logits))
        ids, _ = sampling._filtered(scores, params, 100)
        assert sorted(ids.tolist()) == torch.isfinite(row[0]).nonzero()[:, 0].tolist()


# --- Candidates ---------------------------------------------------------------------------------


@st.composite
def requests_with_candidates(draw_from):
    """Requests without penalties, whose rows are mostly long enough."""
    vocab = draw_from(st.integers(2, 24))
    tokens = st.integers(0, vocab - 1)
    bias = st.one_of(st.sampled_from([-100.0, -1.0, -0.5, 0.5]), st.floats(-100.0, 100.0))
    params = SamplingParams(
        temperature=draw_from(TEMPERATURES),
        top_k=draw_from(st.integers(0, 14)),
        top_p=draw_from(st.one_of(st.just(1.0), st.floats(0.01, 1.0))),
        min_p=draw_from(st.one_of(st.just(0.0), st.floats(0.0, 0.9))),
        logit_bias=draw_from(st.dictionaries(tokens, bias, max_size=3)),
    )
    return {
        "logits": np.array(draw_from(st.lists(LOGITS, min_size=vocab, max_size=vocab)), np.float32),
        "position": draw_from(POSITIONS),
        "params": params,
        "seed": draw_from(SEEDS),
        "suppressed": draw_from(st.lists(tokens, max_size=min(3, vocab - 1), unique=True)),
    }


@settings(derandomize=True, deadline=None, max_examples=700)
@given(requests_with_candidates(), st.integers(-3, 3))
def test_candidates_change_no_choice(request_, more):
    """Exactly as many as are asked for, more, or too few."""
    logits, position = request_["logits"], request_["position"]
    sampler = sampler_of(
        request_["params"],
        vocab_size=len(logits),
        seed=request_["seed"],
        suppressed=request_["suppressed"],
    )
    candidates = candidates_of(logits, max(0, sampler.num_candidates + more))
    whole = sampler.choose(logits, position)
    if sampler.num_candidates and more >= 0:  # then nothing else of the row is read
        rest = np.setdiff1d(np.arange(len(logits)), sampler.draw_rule.bias_ids)
        logits[rest] = math.nan
    assert sampler.choose(logits, position, candidates) == whole
    if sampler.takes_order:
        found = sampler.best_of([token for token in candidates.token_ids.tolist() if token >= 0])
        assert found == (whole.token_id if more >= 0 else None)


@pytest.mark.parametrize(
    ("fields", "suppressed", "expected"),
    [
        ({"temperature": 0.0}, (), True),
        ({"temperature": 0.0}, (7, 8), True),
        ({"top_k": 1}, (7,), True),
        ({"temperature": 0.0, "logit_bias": {7: 1.0}}, (8,), False),
        ({"temperature": 0.0, "repetition_penalty": 1.1}, (), False),
        ({"temperature": 0.0, "top_logprobs": 0}, (), False),
        ({"top_k": 2}, (), False),
        ({}, (), False),
    ],
)
def test_where_the_order_of_the_best_is_enough(fields, suppressed, expected):
    sampler = sampler_of(SamplingParams(**fields), vocab_size=1000, suppressed=suppressed)
    assert sampler.takes_order == expected


@pytest.mark.parametrize(
    ("fields", "suppressed", "expected"),
    [
        ({"temperature": 0.0}, (), 1),
        ({"temperature": 0.0, "top_k": 5}, (), 1),
        ({"temperature": 0.0, "logit_bias": {3: 1.0}}, (3, 4), 3),
        ({"top_k": 64}, (), 64),
        ({"top_k": 64, "top_p": 0.95, "min_p": 0.1}, (7, 8), 66),
        ({"top_k": 64, "logit_bias": {1: -3.0, 9: 2.0}}, (7,), 67),
        ({"top_k": MAX_CANDIDATES}, (), MAX_CANDIDATES),
        ({"top_k": MAX_CANDIDATES + 1}, (), 0),
        ({"top_k": MAX_CANDIDATES}, (5,), 0),
        ({"top_k": 500}, (), 0),
        ({}, (), 0),
        ({"top_p": 0.9}, (), 0),
        ({"top_k": 64, "top_logprobs": 0}, (), 0),
        ({"temperature": 0.0, "repetition_penalty": 1.1}, (), 0),
        ({"top_k": 64, "presence_penalty": 0.1}, (), 0),
        ({"top_k": 64, "frequency_penalty": -0.1}, (), 0),
    ],
    ids=str,
)
def test_how_many_candidates_are_asked_for(fields, suppressed, expected):
    sampler = sampler_of(SamplingParams(**fields), vocab_size=400, suppressed=suppressed)
    assert sampler.num_candidates == expected


def test_no_more_candidates_are_asked_for_than_a_whole_row_has():
    for vocab_size, expected in ((64, 0), (65, 64)):
        sampler = sampler_of(SamplingParams(top_k=64), vocab_size=vocab_size)
        assert sampler.num_candidates == expected


# --- Log-probabilities --------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(requests(), st.integers(0, 20))
def test_logprobs_describe_the_processed_row(request_, top_logprobs):
    plain = request_["params"]
    fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    request_["params"] = SamplingParams(**{**fields, "top_logprobs": top_logprobs})
    choice = choose(request_)
    kept = {k: v for k, v in request_.items() if k not in ("position", "seed")}
    scores = slow_scores(**kept)
    peak = max(scores)
    total = peak + math.log(math.fsum(math.exp(s - peak) for s in scores))
    ranked = sorted(range(len(scores)), key=lambda v: (-scores[v], v))
    expected = [(v, scores[v] - total) for v in ranked[:top_logprobs] if scores[v] > -INF]
    # Sums of at most 12 terms of size 160: a few units in the last place of 160.
    assert choice.logprob == pytest.approx(scores[choice.token_id] - total, abs=1e-12)
    assert [v for v, _ in choice.top] == [v for v, _ in expected]
    assert [x for _, x in choice.top] == pytest.approx([x for _, x in expected], abs=1e-12)


def test_logprobs_cost_nothing_and_change_nothing():
    logits = np.linspace(-3, 3, 50, dtype=np.float32)
    without = sampler_of(SamplingParams(), vocab_size=50)
    with_them = sampler_of(SamplingParams(top_logprobs=3), vocab_size=50)
    for t in range(50):
        choice = without.choose(logits, t)
        assert (choice.logprob, choice.top) == (None, ())
        assert choice.token_id == with_them.choose(logits, t).token_id


# --- draw ---------------------------------------------------------------------------------------


@st.composite
def draws(draw_from):
    ids = draw_from(st.lists(st.integers(0, 40), min_size=1, max_size=15, unique=True))
    biased = draw_from(st.dictionaries(st.sampled_from(range(41)), st.floats(-100, 100)))
    hidden = draw_from(st.sets(st.sampled_from(ids), max_size=len(ids) - 1))
    table = {**biased, **dict.fromkeys(hidden, -INF)}
    rule = DrawRule(
        temperature=draw_from(st.one_of(st.just(0.0), st.floats(0.05, 2.0))),
        seed=draw_from(SEEDS),
        bias_ids=np.array(sorted(table), np.int64),
        biases=np.array([table[v] for v in sorted(table)], np.float64),
    )
    scores = draw_from(st.lists(LOGITS, min_size=len(ids), max_size=len(ids)))
    return np.array(scores, np.float32), draw_from(POSITIONS), rule, ids


@settings(derandomize=True, deadline=None, max_examples=500)
@given(draws())
def test_draw_equals_noise_on_every_token(case):
    scores, position, rule, ids = case
    before = scores.copy()
    assert draw(scores, position, rule, np.array(ids)) == slow_draw(scores, position, rule, ids)
    assert (scores == before).all()


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spread", [0.5, 5.0, 30.0])
def test_draw_equals_noise_on_every_token_of_a_large_head(temperature, spread):
    rule = DrawRule(temperature=temperature, seed=8)
    rng = np.random.default_rng(1)
    for position in range(10):
        scores = (rng.normal(size=2000) * spread).round(1).astype(np.float32)
        ids = rng.permutation(9000)[:2000]
        assert draw(scores, position, rule, ids) == slow_draw(scores, position, rule, ids.tolist())
        expected = slow_draw(scores, position, rule, list(range(2000)))
        assert draw(scores, position, rule) == expected


@settings(derandomize=True, deadline=None)
@given(requests())
def test_a_drafter_with_the_target_scores_draws_the_target_token(request_):
    """The two draws share temperature, noise, bias and suppression: nothing else may differ."""
    rest = {k: request_[k] for k in ("seed", "suppressed")}
    params = SamplingParams(
        temperature=request_["params"].temperature, logit_bias=request_["params"].logit_bias
    )
    sampler = sampler_of(params, vocab_size=len(request_["logits"]), **rest)
    chosen = sampler.choose(request_["logits"], request_["position"]).token_id
    assert draw(request_["logits"], request_["position"], sampler.draw_rule)[0] == chosen


@pytest.fixture
def numpy_rows(monkeypatch):
    """For scripted noise, of which the native rows know nothing."""
    monkeypatch.setattr(sampling, "score_row", NumpyScoreRow)


class ScriptedNoise:
    """Noise by token id; remembers which ids were asked for."""

    def __init__(self, noise):
        self.noise, self.asked = noise, []

    def __call__(self, seed, position, token_ids):
        self.asked += token_ids.tolist()
        return np.array([self.noise[v] for v in token_ids.tolist()])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_shortcut_leaves_out_only_what_no_noise_could_save(
    monkeypatch, numpy_rows, temperature
):
    """The worst case there is: the least noise on the leader, the most on the outsider."""
    reach = MAX_GUMBEL - MIN_GUMBEL
    noise = ScriptedNoise({0: MIN_GUMBEL, 1: MIN_GUMBEL, 2: MAX_GUMBEL, 3: MAX_GUMBEL})
    monkeypatch.setattr(sampling, "gumbel", noise)
    within, beyond = (temperature * (reach + slack) for slack in (-0.01, 1.0))
    scores = np.array([0.0, -beyond, -within, -beyond], np.float32)
    sampler = sampler_of(SamplingParams(temperature=temperature), vocab_size=4)
    assert sampler.choose(scores, 0).token_id == 2
    assert sorted(noise.asked) == [0, 2]


def test_the_shortcut_keeps_the_runner_up(monkeypatch):
    """The margin needs the second place, so the reach counts from the runner-up."""
    noise = ScriptedNoise({0: 0.0, 1: MIN_GUMBEL, 2: MAX_GUMBEL, 3: MAX_GUMBEL})
    monkeypatch.setattr(sampling, "gumbel", noise)
    scores = np.array([500.0, 100.0, 60.0, 50.0], np.float32)
    token, margin = draw(scores, 0, DrawRule(temperature=1.0, seed=0))
    assert (token, margin) == (0, pytest.approx(440.0 - MAX_GUMBEL, abs=1e-9))
    assert sorted(noise.asked) == [0, 1, 2]


def test_ties_go_to_the_lowest_id_in_any_order(monkeypatch, numpy_rows):
    monkeypatch.setattr(sampling, "gumbel", lambda seed, position, ids: np.zeros(len(ids)))
    scores = np.array([1.0, 2.0, 2.0, 2.0], np.float32)
    ids = np.array([3, 30, 7, 20])
    for temperature in (0.0, 1.0):
        assert draw(scores, 0, DrawRule(temperature=temperature, seed=0), ids) == (7, 0.0)
        sampler = sampler_of(SamplingParams(temperature=temperature), vocab_size=4)
        assert sampler.choose(scores, 0).token_id == 1


def test_one_candidate_is_certain():
    for temperature in (0.0, 1.0):
        rule = DrawRule(temperature=temperature, seed=0)
        assert draw(np.array([-5.0], np.float32), 3, rule, np.array([9])) == (9, INF)


@pytest.mark.parametrize("row", [[math.nan] * 3, [0, math.nan, 1], [INF, 0, 0], [-INF] * 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_drafter_draws_some_token_without_confidence(row, temperature):
    rule = DrawRule(
        temperature=temperature, seed=0, bias_ids=np.array([4]), biases=np.array([-INF])
    )
    ids = np.array([4, 2, 8])
    token, confidence = draw(np.array(row, np.float32), 0, rule, ids)
    assert (token in ids, confidence) == (True, 0.0) or token == 8  # inf was on the suppressed one


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "temperature=-0.1 is out of range: expected 0 to 2"),
        ("temperature", 2.01, "expected 0 to 2"),
        ("temperature", math.nan, "temperature=nan is out of range"),
        ("temperature", "1", "temperature must be a number, got '1'"),
        ("temperature", True, "must be a number"),
        ("temperature", None, "must be a number"),
        ("top_k", -1, "top_k=-1 is out of range"),
        ("top_k", 1.5, "whole number"),
        ("top_p", 0.0, "top_p=0 keeps no token"),
        ("top_p", 1.1, "expected 0 to 1"),
        ("top_p", math.nan, "out of range"),
        ("min_p", 1.0, "min_p must be below 1"),
        ("min_p", -0.1, "expected 0 to 1"),
        ("repetition_penalty", 0.0, "expected 1e-06 to 10"),
        ("repetition_penalty", 10.5, "expected 1e-06 to 10"),
        ("repetition_penalty", INF, "out of range"),
        ("presence_penalty", 2.1, "expected -2 to 2"),
        ("frequency_penalty", -2.1, "expected -2 to 2"),
        ("frequency_penalty", math.nan, "out of range"),
        ("logit_bias", [(1, 2.0)], "must map token ids to biases, got list"),
        ("logit_bias", {1: 100.5}, "logit_bias of token 1=100.5 is out of range"),
        ("logit_bias", {1: math.nan}, "out of range"),
        ("logit_bias", {-1: 0.0}, "token id in logit_bias=-1 is out of range"),
        ("logit_bias", {"1": 0.0}, "whole number"),
        ("logit_bias", dict.fromkeys(range(1025), 0.0), "1025 entries: expected at most 1024"),
        ("seed", -1, "seed=-1 is out of range"),
        ("seed", 2**64, "out of range"),
        ("seed", 1.0, "whole number"),
        ("top_logprobs", 21, "expected 0 to 20"),
        ("top_logprobs", -1, "expected 0 to 20"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(field, value, message):
    with pytest.raises(ConfigError) as refusal:
        SamplingParams(**{field: value})
    assert message in str(refusal.value)


def test_the_edges_of_the_ranges_are_accepted():
    SamplingParams(temperature=2, top_p=1, min_p=0.99, repetition_penalty=10, seed=MAX_SEED)
    SamplingParams(logit_bias={0: -100, 5: 100.0}, top_logprobs=0, presence_penalty=-2)


def test_params_keep_their_own_copy_of_the_bias():
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = math.nan
    assert params.logit_bias == {1: 2.0}


@pytest.mark.parametrize("where", ["bias", "suppressed"])
def test_tokens_outside_the_vocabulary_are_refused(where):
    params = SamplingParams(logit_bias={7: 1.0} if where == "bias" else {})
    with pytest.raises(ConfigError, match="token id=7 is out of range: expected 0 to 6"):
        sampler_of(params, vocab_size=7, suppressed=[7] if where == "suppressed" else [])


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {}, {"top_k": 2}, {"presence_penalty": 1}]
)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, math.nan, 1.0], "position 12 hold nan"),
        ([0.0, INF, 1.0], "position 12 hold inf"),
        ([-INF] * 3, "no token is left to choose at position 12"),
    ],
)
def test_an_unusable_row_is_refused(fields, row, message):
    sampler = sampler_of(SamplingParams(**fields), vocab_size=3)
    with pytest.raises(LogitsError, match=message) as refusal:
        sampler.choose(np.array(row, np.float32), 12)
    assert isinstance(refusal.value, PacelineError)


def test_suppression_does_not_hide_a_damaged_row():
    sampler = sampler_of(SamplingParams(), vocab_size=3, suppressed=[1])
    for damage in (math.nan, INF):
        with pytest.raises(LogitsError):
            sampler.choose(np.array([0.0, damage, 1.0], np.float32), 0)


def test_suppressing_everything_is_refused():
    sampler = sampler_of(SamplingParams(), vocab_size=3, suppressed=[0, 1, 2])
    with pytest.raises(LogitsError, match="Suppress fewer tokens"):
        sampler.choose(np.zeros(3, np.float32), 0)


# --- Small things -------------------------------------------------------------------------------


def test_random_seeds_are_valid_and_differ():
    seeds = {random_seed() for _ in range(4)}
    assert len(seeds) == 4  # a repeat has a chance of 2**-61
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
