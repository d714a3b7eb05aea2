"""Whatever is drafted, the text is that of plain decoding and the round leaves no trace."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import (
    ALPHABET,
    CONTROL,
    VOCAB_SIZE,
    FakeDrafter,
    FakeTarget,
    ScriptedDrafter,
    byte_ids,
    fake_engine,
    fake_pair,
)
from paceline.engine import Engine
from paceline.runtime.protocols import ArrayOutput, Rows
from paceline.sampling import Choice, Sampler, SamplingParams
from paceline.speculative.controller import (
    DraftContext,
    DraftPlan,
    FixedDraftLength,
    RoundOutcome,
)
from paceline.speculative.round import verify

PROMPT = (CONTROL.bos, *byte_ids("bad"))
START = len(PROMPT)  # position of the first emitted token


@dataclass
class Script:
    """A policy that asks for the lengths of a list, over and over, and notes what came of it."""

    lengths: list[int]
    min_confidences: tuple[float, ...] = ()

    def __post_init__(self):
        self.outcomes: list[RoundOutcome] = []
        self.contexts: list[DraftContext] = []

    def plan(self, context):
        self.contexts.append(context)
        length = self.lengths[len(self.outcomes) % len(self.lengths)]
        return DraftPlan(max_draft_tokens=length, min_confidences=self.min_confidences)

    def observe(self, outcome):
        self.outcomes.append(outcome)

    @property
    def counts(self):
        return [
            (o.num_draft_tokens, o.num_verified_tokens, o.num_accepted_tokens)
            for o in self.outcomes
        ]


def run(engine, sequence):
    """The deltas, and the answer."""
    engine.prefill(sequence)
    deltas = list(sequence.take_deltas())
    while sequence.finish_reason is None:
        engine.step([sequence])
        deltas += sequence.take_deltas()
    return deltas, engine.close(sequence)


def answer(engine, *, prompt=PROMPT, seed=1, temperature=1.0, **settings):
    params = SamplingParams(seed=seed, temperature=temperature)
    return run(engine, engine.open(prompt, sampling=params, **settings))


def plain(target, *, max_tokens, seed=1, temperature=1.0):
    """The definition: a fresh pass over everything for each token."""
    sampler = Sampler(SamplingParams(temperature=temperature), vocab_size=VOCAB_SIZE, seed=seed)
    tokens = []
    while len(tokens) < max_tokens and (
        not tokens or tokens[-1] not in target.config.eos_token_ids
    ):
        everything = (*PROMPT, *tokens)
        cache = target.new_cache(len(everything), len(everything))
        output = target.forward([Rows(cache=cache, token_ids=everything)])[0]
        tokens.append(sampler.choose(output.logits[-1], len(everything)).token_id)
    return tuple(tokens)


def is_fresh(engine, sequence_tokens, cache):
    """Whether a cache is what one pass over its tokens would have left (contract C4)."""
    fresh = engine.pair.target.new_cache(engine.context_length, engine.max_draft_tokens)
    engine.pair.target.forward([Rows(cache=fresh, token_ids=sequence_tokens[: cache.length])])
    end = cache.length - 1
    return (cache.hashes, cache.seen_from(end)) == (fresh.hashes, fresh.seen_from(end))


# --- Equality -----------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    wrong=st.sets(st.integers(START, START + 40), max_size=25),
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    max_tokens=st.integers(1, 40),
    stop=st.lists(st.text("abc é", min_size=1, max_size=2), max_size=2),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 1000),
    end_bias=st.sampled_from([-30.0, -1.0, 2.0]),
    heeds_stop=st.booleans(),
)
def test_a_draft_changes_nothing_and_leaves_no_trace(
    wrong, lengths, max_tokens, stop, temperature, seed, end_bias, heeds_stop
):
    request = {"max_tokens": max_tokens, "seed": seed, "temperature": temperature}
    target = FakeTarget(end_bias=end_bias)
    drafter = FakeDrafter(target, lambda position: position in wrong, heeds_stop=heeds_stop)
    engine = Engine(fake_pair(target, drafter), kept_caches=0)
    off, expected = answer(engine, draft=0, stop=stop, **request)
    token_ids = plain(target, **request)
    assert expected.token_ids == token_ids[: len(expected.token_ids)]
    assert stop or expected.token_ids == token_ids

    policy = Script(lengths)
    params = SamplingParams(seed=seed, temperature=temperature)
    sequence = engine.open(PROMPT, sampling=params, max_tokens=max_tokens, stop=stop, draft=policy)
    engine.prefill(sequence)
    on = list(sequence.take_deltas())
    cache = sequence.cache
    while sequence.finish_reason is None:
        engine.step([sequence])
        on += sequence.take_deltas()
        assert cache.length == START + len(sequence.tokens) - 1
        assert is_fresh(engine, sequence.token_ids, cache)
    got = engine.close(sequence)
    assert got.token_ids == expected.token_ids
    assert got.text == expected.text == "".join(delta.text for delta in on)
    assert "".join(delta.text for delta in on) == "".join(delta.text for delta in off)
    assert got.finish_reason == expected.finish_reason
    assert all(v <= d and a <= v for d, v, a in policy.counts)
    # The first token is the prefill's, each round ends with one that was not drafted, except
    # where the text ends on an accepted one.
    assert got.stats.accepted_tokens == sum(token.drafted for token in got.tokens)
    assert len(got.tokens) - 1 - got.stats.accepted_tokens in (
        got.stats.rounds,
        got.stats.rounds - 1,
    )


@pytest.mark.parametrize("place", range(1, 12))
@pytest.mark.parametrize("reason", ["stop string", "end of turn", "max_tokens", "context"])
@pytest.mark.parametrize("heeds_stop", [True, False])
def test_a_cut_falls_exactly_where_it_does_without_drafts(place, reason, heeds_stop):
    """The drafter is always right and drafts eight: the cut goes through the whole draft."""
    settings, world = {"max_tokens": 40}, {}
    if reason == "stop string":
        text = answer(fake_engine(), draft=0, max_tokens=40)[1].text
        settings["stop"] = [text[place : place + 3]]
    elif reason == "end of turn":
        world["ends_at"] = START + place
    elif reason == "max_tokens":
        settings["max_tokens"] = place
    else:
        world["context_length"] = START + place
    target = FakeTarget(**world)
    engine = Engine(fake_pair(target, FakeDrafter(target, heeds_stop=heeds_stop)))
    _, off = answer(engine, draft=0, **settings)
    deltas, on = answer(engine, draft=8, **settings)
    assert (on.token_ids, on.text, on.finish_reason) == (off.token_ids, off.text, off.finish_reason)
    assert "".join(delta.text for delta in deltas) == off.text
    if reason == "end of turn":
        assert (len(on.tokens), on.finish_reason) == (place + 1, "stop")
    elif reason == "stop string":
        assert on.finish_reason == "stop"
        assert not set(settings["stop"]) & {on.text[i : i + 3] for i in range(len(on.text))}
    else:
        assert (len(on.tokens), on.finish_reason) == (place, "length")


BROKEN = {
    "too long": lambda request: (ALPHABET * 4)[:40],
    "empty": lambda request: (),
    "outside the vocabulary": lambda request: (ALPHABET[0], VOCAB_SIZE, ALPHABET[1]),
    "negative": lambda request: (-1,),
    "repeats": lambda request: (request.last_token,) * request.max_draft_tokens,
    "ends at once": lambda request: (CONTROL.eos,) * request.max_draft_tokens,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_drafter_costs_its_drafts_never_the_text(name):
    target = FakeTarget()
    engine = Engine(fake_pair(target, ScriptedDrafter(BROKEN[name])))
    expected = plain(target, max_tokens=30)
    assert answer(engine, draft=8, max_tokens=30)[1].token_ids == expected


def test_two_sequences_share_each_pass_and_nothing_else():
    """Different prompts, seeds, settings and draft lengths; each equals itself alone."""
    cases = [
        (PROMPT, {"draft": 0}, SamplingParams(seed=1)),
        ((CONTROL.bos, *byte_ids("a cab")), {"draft": 4}, SamplingParams(seed=2)),
        (PROMPT, {"draft": 8, "stop": ["d"]}, SamplingParams(seed=1, frequency_penalty=1.0)),
        (PROMPT, {"draft": 2}, SamplingParams(temperature=0.0)),
    ]
    errs = lambda position: position % 5 == 0  # noqa: E731
    engine = fake_engine(errs, kept_caches=0)
    sequences = [
        engine.open(prompt, sampling=params, max_tokens=30, **rest)
        for prompt, rest, params in cases
    ]
    for sequence in sequences:
        engine.prefill(sequence)
    passes = engine.pair.target.passes
    passes.clear()
    steps = 0
    while active := [s for s in sequences if s.finish_reason is None]:
        engine.step(active)
        steps += 1
    assert len(passes) == steps  # one pass for all
    assert passes[0] == [1, 5, 9, 3]
    for sequence, (prompt, rest, params) in zip(sequences, cases, strict=True):
        together = engine.close(sequence)
        alone = run(engine, engine.open(prompt, sampling=params, max_tokens=30, **rest))[1]
        assert (together.text, together.tokens) == (alone.text, alone.tokens)
        assert together.stats.acceptance_histogram == alone.stats.acceptance_histogram


# --- Passes and statistics ----------------------------------------------------------------------


def test_a_right_drafter_saves_passes():
    """41 tokens: one from the prefill, then eight drafts and a bonus a round."""
    engine = fake_engine(kept_caches=0)
    _, result = answer(engine, draft=8, max_tokens=1 + 9 * 4)
    assert engine.pair.target.passes == [[START], [9], [9], [9], [9]]
    assert result.stats.acceptance_histogram == [0] * 8 + [4]
    assert result.stats.acceptance_length == 9.0


def test_a_wrong_drafter_costs_rows_but_no_token():
    engine = fake_engine(lambda position: True, kept_caches=0)
    _, result = answer(engine, draft=3, max_tokens=10)
    assert engine.pair.target.passes == [[START], *[[4]] * 6, [3], [2], [1]]
    assert (result.stats.accepted_tokens, result.stats.drafted_tokens) == (0, 6 * 3 + 2 + 1)


def test_the_draft_never_outruns_the_tokens_left():
    """The bonus takes one token, so k drafts need k + 1 left."""
    engine = fake_engine()
    answer(engine, draft=8, max_tokens=13)
    asked = [request.max_draft_tokens for request in engine.pair.drafter.requests]
    assert asked == [8, 2]


def test_the_draft_never_outruns_the_context():
    engine = fake_engine(context_length=START + 13)
    answer(engine, draft=8, max_tokens=100)
    asked = [request.max_draft_tokens for request in engine.pair.drafter.requests]
    assert asked == [8, 2]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        # The end is the third draft: the five behind it are neither accepted nor rejected.
        (set(), [(8, 3, 3)]),
        # The second is wrong, and the target says something else than the end: all are judged.
        ({START + 2}, [(8, 8, 1), (8, 1, 1)]),
        # The drafter does not foresee the end: it is the bonus, the drafts behind it are wrong.
        ({START + 3}, [(8, 8, 2)]),
    ],
)
def test_tokens_behind_the_end_are_not_counted_as_rejected(wrong, expected):
    target = FakeTarget(ends_at=START + 3)
    drafter = FakeDrafter(target, lambda position: position in wrong, heeds_stop=False)
    engine = Engine(fake_pair(target, drafter))
    policy = Script([8])
    _, result = answer(engine, draft=policy)
    assert policy.counts == expected
    assert result.stats.drafted_tokens == sum(verified for _, verified, _ in expected)
    assert result.stats.accepted_tokens == sum(accepted for _, _, accepted in expected)


def test_a_policy_is_asked_and_told_once_a_round():
    engine = fake_engine(lambda position: position == START + 3)
    policy = Script([2, 0, 5])
    answer(engine, draft=policy, max_tokens=1 + 3 + 1 + 6)
    assert policy.counts == [(2, 2, 2), (0, 0, 0), (5, 5, 5)]
    assert all(o.verify_s >= 0 and o.draft_s >= 0 for o in policy.outcomes)


def test_a_plan_may_ask_for_more_than_the_drafter_can():
    engine = fake_engine()
    policy = Script([99], min_confidences=(0.5,))
    answer(engine, draft=policy, max_tokens=20)
    request = engine.pair.drafter.requests[0]
    assert request.max_draft_tokens == 8
    assert request.stop.min_confidences == (0.5,)
    assert request.stop.end_token_ids == {CONTROL.eos, CONTROL.turn_end}


def test_a_policy_knows_the_room_and_the_context():
    engine = fake_engine(context_length=START + 13)
    policy = Script([4, 2])
    answer(engine, draft=policy, max_tokens=100)
    assert [(c.room, c.context_length) for c in policy.contexts] == [
        (8, START),
        (6, START + 5),
        (3, START + 8),
    ]
    assert {context.kind for context in policy.contexts} == {"sampled prose"}
    greedy = Script([4, 2])
    answer(engine, draft=greedy, max_tokens=8, temperature=0.0)
    assert {context.kind for context in greedy.contexts} == {"prose"}


class Weigher(Script):
    """Plans for its whole round: one token more for each place in it."""

    def plan_round(self, policies, contexts):
        self.rounds = [*getattr(self, "rounds", []), (policies, contexts)]
        return [DraftPlan(max_draft_tokens=place) for place, _ in enumerate(contexts)]

    def learn(self):
        self.has_ended = True


def test_a_policy_that_can_weighs_all_sequences_of_a_round():
    engine = fake_engine(kept_caches=0)
    fixed, weigher, other = FixedDraftLength(8, 8), Weigher([8]), Weigher([8])
    policies = [fixed, weigher, other]
    sequences = [
        engine.open(PROMPT, sampling=SamplingParams(seed=1), max_tokens=20, draft=policy)
        for policy in policies
    ]
    for sequence in sequences:
        engine.prefill(sequence)
    engine.pair.target.passes.clear()
    engine.step(sequences)
    assert engine.pair.target.passes == [[1, 2, 3]]
    assert [seen for seen, _ in weigher.rounds] == [policies]
    assert not hasattr(other, "rounds")
    engine.step(sequences[1:2])  # alone there is nothing to weigh
    assert engine.pair.target.passes[1:] == [[9]]
    assert len(weigher.rounds) == 1
    assert not hasattr(weigher, "has_ended")
    for sequence in sequences:
        engine.close(sequence)
    assert weigher.has_ended


def test_all_sequences_of_a_round_are_told_its_one_cost():
    """Two drafts of 3 and 2 steps, the last of which the drafter held back, and a plain one."""
    target = FakeTarget()
    wanted = {3: 3, 2: 1}
    drafter = ScriptedDrafter(
        lambda request: ALPHABET[: wanted[request.max_draft_tokens]],
    )
    engine = Engine(fake_pair(target, drafter), kept_caches=0)
    policies = [Script([3]), Script([2]), Script([0])]
    prompts = [PROMPT, (*PROMPT, ALPHABET[0]), PROMPT]
    sequences = [
        engine.open(prompt, max_tokens=20, draft=policy)
        for prompt, policy in zip(prompts, policies, strict=True)
    ]
    for sequence in sequences:
        engine.prefill(sequence)
    engine.step(sequences)
    [cost] = {id(p.outcomes[0].cost): p.outcomes[0].cost for p in policies}.values()
    assert (cost.num_sequences, cost.num_rows, cost.context_length) == (3, 4 + 2 + 1, START)
    assert (cost.num_drafts, cost.num_draft_steps) == (2, 3 + 2)
    assert cost.num_tokens == sum(len(s.tokens) for s in sequences) - 3
    assert min(cost.draft_s, cost.verify_s, cost.overhead_s) >= 0
    for sequence in sequences:
        engine.close(sequence)


def test_the_confidences_of_what_is_verified_are_told():
    engine = fake_engine()
    policy = Script([3])
    answer(engine, draft=policy, max_tokens=9)
    assert [o.confidences for o in policy.outcomes] == [(1.0,) * n for n, *_ in policy.counts]


def test_no_drafter_no_draft():
    target = FakeTarget()
    engine = Engine(fake_pair(target))
    policy = Script([4])
    _, result = answer(engine, draft=policy, max_tokens=9)
    assert result.token_ids == plain(target, max_tokens=9)
    assert policy.counts == [(0, 0, 0)] * 8
    assert result.stats.acceptance_length is None


# --- The rule -----------------------------------------------------------------------------------


class Recorder:
    """A sequence whose sampler has made its choices: row i is the token i of `chosen`."""

    def __init__(self, ends_with=None):
        self.sampler, self.takes_order = self, False
        self.ends_with = ends_with
        self.positions, self.committed, self.pushed = [], [], []

    def choose(self, token, position, candidates):
        self.positions.append(position)
        return Choice(int(token))

    def commit(self, token):
        self.committed.append(token)

    def push(self, choice, *, drafted):
        assert self.committed[-1] == choice.token_id
        self.pushed.append((choice.token_id, drafted))
        return choice.token_id != self.ends_with


@pytest.mark.parametrize(
    ("draft", "chosen", "ends_with", "emitted", "verified", "accepted"),
    [
        ([], [5], None, [5], 0, 0),
        ([1, 2, 3], [1, 2, 3, 4], None, [1, 2, 3, 4], 3, 3),
        ([1, 2, 3], [1, 9, 3, 4], None, [1, 9], 3, 1),
        ([1, 2, 3], [9, 2, 3, 4], None, [9], 3, 0),
        ([1, 2, 3], [1, 2, 3, 4], 2, [1, 2], 2, 2),
        ([1, 2, 3], [1, 2, 3, 4], 3, [1, 2, 3], 3, 3),
        ([1, 2, 3], [1, 2, 3, 4], 4, [1, 2, 3, 4], 3, 3),
        ([1, 2, 3], [1, 9, 3, 4], 9, [1, 9], 3, 1),
    ],
)
def test_the_verdict(draft, chosen, ends_with, emitted, verified, accepted):
    sequence = Recorder(ends_with)
    verdict = verify(sequence, draft, ArrayOutput.without_candidates(np.array(chosen), ()), 70)
    assert verdict.token_ids == tuple(emitted)
    assert (verdict.num_verified_tokens, verdict.num_accepted_tokens) == (verified, accepted)
    assert sequence.positions == list(range(70, 70 + len(emitted)))
    assert sequence.committed == emitted
    assert [drafted for _, drafted in sequence.pushed] == [
        row < accepted for row in range(len(emitted))
    ]


def test_a_fixed_length_is_checked():
    context = DraftContext(room=8, context_length=1)
    assert FixedDraftLength(3, 8).plan(context) == replace(
        FixedDraftLength(0, 8).plan(context), max_draft_tokens=3
    )
    with pytest.raises(ValueError, match="draft length=9 is out of range: expected 0 to 8"):
        FixedDraftLength(9, 8)
