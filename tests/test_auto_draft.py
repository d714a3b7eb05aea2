"""The default draft: texts and the drafter under costs that say anything change no token (C3).

On fakes with every state of the controller made up anew for each round, and a few answers of the
pair that ships.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import (
    ALPHABET,
    CONTROL,
    FakeDrafter,
    FakeTarget,
    SettledCosts,
    byte_ids,
    fake_engine,
    fake_pair,
)
from paceline.chat import Message
from paceline.engine import MAX_PREDICTION_LENGTH, Engine
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams
from paceline.speculative.costs import CostModel, Curve
from paceline.speculative.earlier import EarlierAnswers
from paceline.speculative.learned import Learned
from paceline.speculative.suffix import MAX_PROPOSAL
from shipped import native_pair
from test_round import PROMPT, START, is_fresh

SEEDED = SamplingParams(seed=5)


class ShakenCosts(CostModel):
    """Other costs each time that it is asked, so that every decision comes up."""

    def __init__(self, seed):
        super().__init__({1: 1.0, 16: 1.5}, (0.01, 0.01))
        self.random = random.Random(seed)

    def curve(self, context_length, num_sequences=1, max_draft_tokens=15):
        now, row = 1.0, self.random.choice([0.0, 0.01, 0.1, 0.5, 2.0])
        passes = [now := now + row * self.random.random() for _ in range(max_draft_tokens + 1)]
        true = super().curve(context_length, num_sequences, max_draft_tokens)
        step = self.random.choice([0.0, 0.01, 0.3])
        return Curve(
            passes=tuple(passes),
            draft_fixed=step * self.random.random(),
            draft_step=step,
            overhead=0.01,
            version=true.version,
        )


def shaken(pair, seed, **settings):
    """An engine whose controller is in another state each round."""
    return Engine(pair, kept_caches=0, learned=Learned(ShakenCosts(seed)), **settings)


def spoiled(token_ids, seed):
    """A text like this one, with edits."""
    edits = random.Random(seed)
    for _ in range(len(token_ids) // 6):
        place = edits.randrange(len(token_ids))
        token_ids[place : place + edits.randrange(3)] = edits.choices(
            ALPHABET, k=edits.randrange(3)
        )
    return token_ids


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    wrong=st.sets(st.integers(START, START + 60), max_size=40),
    max_tokens=st.integers(1, 60),
    stop=st.lists(st.text("abc é", min_size=1, max_size=3), max_size=2),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 1000),
    end_bias=st.sampled_from([-30.0, -1.0]),
    has_drafter=st.booleans(),
    predicts=st.booleans(),
    remembers=st.booleans(),
)
def test_auto_changes_nothing_and_leaves_no_trace(
    wrong, max_tokens, stop, temperature, seed, end_bias, has_drafter, predicts, remembers
):
    params = SamplingParams(seed=seed, temperature=temperature)
    request = {"sampling": params, "max_tokens": max_tokens, "stop": stop}
    target = FakeTarget(end_bias=end_bias)
    drafter = FakeDrafter(target, lambda position: position in wrong) if has_drafter else None
    pair = fake_pair(target, drafter)
    plain = Engine(pair, kept_caches=0)
    sequence = plain.open(PROMPT, draft=0, **request)
    plain.prefill(sequence)
    while sequence.finish_reason is None:
        plain.step([sequence])
    expected = plain.close(sequence)

    like_it = spoiled(list(expected.token_ids), seed)
    earlier = EarlierAnswers(None, pair.tokenizer.vocab_size)
    earlier.add(like_it)
    engine = shaken(pair, seed, earlier=earlier if remembers else None)
    prediction = pair.tokenizer.decode(like_it) if predicts else None
    sequence = engine.open(PROMPT, draft="auto", prediction=prediction, **request)
    engine.prefill(sequence)
    cache = sequence.cache
    while sequence.finish_reason is None:
        engine.step([sequence])
        assert cache.length == START + len(sequence.tokens) - 1
        fresh = replace(pair, drafter=None)
        assert is_fresh(Engine(fresh, kept_caches=0), sequence.token_ids, cache)
    got = engine.close(sequence)
    assert (got.token_ids, got.text) == (expected.token_ids, expected.text)
    assert got.finish_reason == expected.finish_reason
    assert got.stats.accepted_tokens == sum(token.drafted for token in got.tokens)
    assert sum(s.drafted_tokens for s in got.stats.sources.values()) == got.stats.drafted_tokens


@pytest.mark.parametrize("seed", range(8))
def test_company_under_one_budget_changes_nothing(seed):
    """Sequences that draft from texts beside others with a drafter and with none."""
    target = FakeTarget()
    drafter = FakeDrafter(target, lambda position: position % 5 == 0)
    pair = fake_pair(target, drafter)
    prompts = [[CONTROL.bos, *byte_ids("bad" * n)] for n in (1, 2, 9, 1)]
    drafts = ["auto", "auto", 3, 0]

    def answer(engine, number, draft):
        params = SamplingParams(seed=seed + number)
        return engine.open(prompts[number], sampling=params, max_tokens=50, draft=draft)

    expected = []
    for number in range(4):
        engine = Engine(pair, kept_caches=0)
        sequence = answer(engine, number, 0)
        engine.prefill(sequence)
        while sequence.finish_reason is None:
            engine.step([sequence])
        expected.append(engine.close(sequence).token_ids)
    engine = shaken(pair, seed)
    sequences = [answer(engine, number, draft) for number, draft in enumerate(drafts)]
    for sequence in sequences:
        engine.prefill(sequence)
    while active := [s for s in sequences if s.finish_reason is None]:
        engine.step(active)
    assert [engine.close(sequence).token_ids for sequence in sequences] == expected


@pytest.mark.parametrize("seed", range(6))
def test_a_clock_that_jumps_changes_nothing(seed, monkeypatch):
    """Back and forth, by nothing, by hours and by no number at all."""
    plain = fake_engine().generate("hello", draft=0, sampling=SEEDED, max_tokens=60)
    jumps = random.Random(seed)
    monkeypatch.setattr(
        "time.perf_counter",
        lambda: jumps.choice([0.0, -1e6, 1e6, 1e-9, 1e300, float("inf"), float("nan")]),
    )
    engine = fake_engine()
    for _ in range(4):
        found = engine.generate("hello", sampling=SEEDED, max_tokens=60)
        assert found.token_ids == plain.token_ids
    monkeypatch.undo()
    assert engine.generate("hello", sampling=SEEDED, max_tokens=60).token_ids == plain.token_ids


def test_the_shaken_controller_visits_every_decision():
    """Or the tests above would show little."""
    sources, lengths = set(), set()
    for seed in range(20):
        target = FakeTarget()
        pair = fake_pair(target, FakeDrafter(target, lambda position: position % 3 == 0))
        rounds = []
        engine = shaken(pair, seed, on_round=rounds.append)
        plain = engine.generate("bad", draft=0, sampling=SEEDED, max_tokens=60)
        engine.generate("bad", prediction=plain.text, sampling=SEEDED, max_tokens=60)
        sources |= {trace.source for trace in rounds}
        lengths |= {trace.num_draft_tokens for trace in rounds}
    assert sources == {"none", "drafter", "suffix", "prediction"}
    assert len(lengths) > 10
    assert max(lengths) <= MAX_PROPOSAL


# --- texts without a drafter, predictions, statistics


def test_a_target_alone_drafts_from_its_own_text():
    """Greedy text of the fake target soon goes in circles where the window is all it sees."""
    pair = fake_pair(FakeTarget(), temperature=0.0)
    costs = SettledCosts({1: 1.0, 16: 1.1})
    engine = Engine(pair, learned=Learned(costs))
    code = "abcd é abcd é abcd é abcd é"
    result = engine.generate(code, prediction=code, sampling=SEEDED, max_tokens=60)
    assert (
        result.token_ids
        == Engine(pair).generate(code, draft=0, sampling=SEEDED, max_tokens=60).token_ids
    )
    assert result.stats.drafted_tokens > 0
    assert "drafter" not in result.stats.sources


def test_a_prediction_saves_passes():
    pair = fake_pair(FakeTarget())
    plain = Engine(pair).generate("bad", draft=0, sampling=SEEDED, max_tokens=60)
    text = pair.tokenizer.decode(plain.token_ids)
    engine = Engine(pair, learned=Learned(SettledCosts({1: 1.0, 16: 1.5})))
    found = engine.generate("bad", prediction=text, sampling=SEEDED, max_tokens=60)
    assert found.token_ids == plain.token_ids
    assert found.stats.rounds < 30
    assert found.stats.sources["prediction"].accepted_tokens > 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "a" * (MAX_PREDICTION_LENGTH + 1)}, "at most 1048576 are possible. Pass"),
        ({"prediction": "ab\ud800"}, "prediction is not valid text: the character at 2"),
        ({"prediction": b"ab"}, "prediction must be text, got bytes"),
        ({"prediction": "ab", "draft": 4}, "prediction cannot be used with draft=4"),
        ({"prediction": "ab", "draft": 0}, "prediction cannot be used with draft=0"),
    ],
    ids=["huge", "surrogate", "bytes", "fixed", "off"],
)
def test_a_bad_prediction_is_refused_before_any_work(settings, message):
    engine = fake_engine()
    with pytest.raises(ConfigError, match=message):
        engine.stream("hello", **settings)
    assert engine.pair.target.passes == []


def test_an_empty_prediction_predicts_nothing():
    result = fake_engine().generate("hello", prediction="", sampling=SEEDED, max_tokens=10)
    assert "prediction" not in result.stats.sources


def test_a_prediction_beside_a_policy_is_used():
    class Never:
        def plan(self, context):
            from paceline.speculative.controller import NO_DRAFT

            return NO_DRAFT

        def observe(self, outcome):
            self.last = outcome

    pair = fake_pair(FakeTarget())
    plain = Engine(pair).generate("bad", draft=0, sampling=SEEDED, max_tokens=40)
    text = pair.tokenizer.decode(plain.token_ids)
    found = Engine(pair).generate(
        "bad", draft=Never(), prediction=text, sampling=SEEDED, max_tokens=40
    )
    assert found.token_ids == plain.token_ids
    assert found.stats.sources["prediction"].accepted_tokens > 10


def test_a_waiting_sequence_indexes_nothing(monkeypatch):
    made = []
    monkeypatch.setattr("paceline.engine.TextSources", lambda *a, **k: made.append(a))
    engine = fake_engine()
    engine.close(engine.begin("hello"))
    assert made == []


# --- the pair that ships

LIST = "total = 0\nfor item in items:\n    total = total + item.price\nprint(total)\n"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_auto_and_texts_change_no_bit_of_the_shipped_pair(temperature):
    pair = native_pair()
    params = SamplingParams(temperature=temperature, seed=3, top_logprobs=2)
    requests = [
        {"prompt": [Message(role="user", content="How do I list all files?")]},
        {"prompt": f"Repeat this code:\n```python\n{LIST}```", "prediction": LIST},
        {"prompt": LIST * 4 + "total = 0\n", "raw": True},
    ]
    costs = SettledCosts({1: 1.0, 16: 1.5}, (0.01, 0.02))
    for engine in (Engine(pair, learned=Learned(costs)), shaken(pair, 7)):
        sources = set()
        for request in requests:
            common = {"sampling": params, "max_tokens": 48}
            settings = {name: value for name, value in request.items() if name != "prediction"}
            plain = Engine(pair).generate(**settings, **common, draft=0)
            found = engine.generate(**request, **common)
            assert [(t.token_id, t.logprob, t.top) for t in found.tokens] == [
                (t.token_id, t.logprob, t.top) for t in plain.tokens
            ]
            assert (found.text, found.finish_reason) == (plain.text, plain.finish_reason)
            sources |= found.stats.sources.keys()
        assert "drafter" in sources
        assert temperature or "suffix" in sources
