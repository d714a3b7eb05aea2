"""The text is a function of weights, prompt, parameters and seed, and of nothing else (C3).

On the pair that ships: whatever drafts, however much, in whatever company, with kept caches or
without, tokens, log-probabilities and bytes equal those of plain decoding of one sequence.
"""

import json
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product

import pytest

import equality
from equality import (
    DRAFTERS,
    Divergence,
    Matrix,
    RecordedDrafter,
    answers,
    chat_prompts,
    check,
    compare,
    long_prompts,
)
from paceline import _native
from paceline.engine import Engine
from paceline.loading import load_pair
from paceline.runtime.torch.target import TileAttention
from paceline.sampling import SamplingParams
from paceline.speculative.controller import DraftPlan
from random_pair import write_random_pair
from shipped import native_pair, shipped_pair


@pytest.fixture(scope="module", params=["native", "torch"])
def pair(request):
    return native_pair() if request.param == "native" else shipped_pair()


def prompts_of(pair, short, long):
    """Short ones, and long ones whose answers begin where the sliding rings have turned."""
    window = pair.target.config.sliding_window
    ring = window + 128 if pair.runtime == "native" else 2 * window
    return chat_prompts(pair, short) + long_prompts(pair, long, ring + 30)


class Restless:
    """Another draft length each round."""

    def __init__(self):
        self.random = random.Random(4)

    def plan(self, context):
        return DraftPlan(max_draft_tokens=self.random.choice([0, 1, 2, 3, 5, 8, 15]))

    def observe(self, outcome):
        pass


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafting_changes_no_bit(pair, temperature):
    runs = [
        *product(["real"], (1, 4, 8)),
        *product(["recorded"], (2, 15, Restless)),
        ("random", 4),
        ("wrong", 3),
    ]
    matrix = Matrix(
        prompts=prompts_of(pair, 4, 2), max_tokens=24, runs=runs, temperatures=[temperature]
    )
    report = check(pair, matrix)
    assert report.tokens_compared == 6 * 24 * len(runs)
    by_name = {(run.drafter, run.draft): run.acceptance_length for run in report.runs}
    assert by_name["wrong", "3"] == 1.0
    assert by_name["recorded", "15"] > 4.0  # or the check would not see accepted drafts


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_drafting_changes_no_bit_of_forty_answers(pair, drafter, temperature):
    """The whole matrix; `benchmarks/equality.py` prints what it found."""
    prompts = prompts_of(pair, 40, 4)
    matrix = Matrix(
        prompts=prompts,
        max_tokens=200,
        runs=list(product([drafter], (1, 2, 4, 8))),
        temperatures=[temperature],
    )
    report = check(pair, matrix)
    context = pair.target.config.context_length
    assert report.plain_tokens == sum(min(200, context - len(prompt)) for prompt in prompts)
    assert report.tokens_compared == 4 * report.plain_tokens


def test_answers_end_at_the_same_place(pair):
    """Ends of turns and stop strings, with filters and penalties."""
    params = SamplingParams(
        top_k=64, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2, top_logprobs=2
    )
    matrix = Matrix(
        prompts=prompts_of(pair, 7, 1),
        max_tokens=60,
        runs=[("recorded", 8), ("real", 4)],
        temperatures=[1.0],
        ends=True,
        stop=["the", "\n\n", "is"],
        params=params,
    )
    check(pair, matrix)


@pytest.mark.parametrize("top_k", [0, 64])
def test_candidates_change_no_bit(top_k):
    """Without log-probabilities the sampler takes what the native head has found."""
    pair, params = native_pair(), SamplingParams(top_k=top_k, top_p=0.95)
    matrix = Matrix(
        prompts=prompts_of(pair, 4, 1),
        max_tokens=40,
        runs=[("real", 4), ("recorded", 8), ("wrong", 2)],
        params=params,
    )
    report = check(pair, matrix)
    assert report.tokens_compared == 2 * 3 * 5 * 40
    plain = replace(matrix, params=replace(params, top_logprobs=1), runs=())
    for temperature in matrix.temperatures:
        with_candidates, without = (
            answers(Engine(pair, kept_caches=0), each, temperature, 0) for each in (matrix, plain)
        )
        assert [x.token_ids for x in with_candidates] == [x.token_ids for x in without]


OTHERS = [x for x in _native.isa_names() if x not in ("portable", _native.isa_name())]


@pytest.mark.parametrize("isa", OTHERS)  # for the slow portable one see test_native_rows.py
def test_other_instruction_sets_answer_the_same_with_drafting(isa):
    """The whole script in a process of its own."""
    arguments = ["--runtime=native", "--prompts=2", "--long-prompts=1", "--tokens=24"]
    script = [sys.executable, equality.__file__, *arguments, "--drafts=3", f"--isa={isa}"]
    run = subprocess.run(script, check=True, capture_output=True, text=True)
    document = json.loads(run.stdout.splitlines()[-1])
    assert (document["equal"], document["isa"]) == (True, isa)


def test_bfloat16_is_no_exception():
    pair = shipped_pair("bfloat16")
    matrix = Matrix(
        prompts=prompts_of(pair, 3, 1), max_tokens=24, runs=[("recorded", 8), ("real", 3)]
    )
    check(pair, matrix)


@pytest.mark.parametrize("draft", [0, 4])
def test_company_in_a_pass_changes_no_bit(pair, draft):
    """Alone, two at a time, and all at once."""
    matrix = Matrix(prompts=prompts_of(pair, 4, 1), max_tokens=20, batch_size=1)
    alone = answers(Engine(pair, kept_caches=0), matrix, 1.0, draft)
    for size in (2, 5):
        together = answers(Engine(pair), replace(matrix, batch_size=size), 1.0, draft)
        compare(alone, together, f"{size} in a pass")


def converse(engine, questions, draft):
    """Results of a conversation whose prompts hold all that was said, token by token."""
    history, results = [], []
    for question in questions:
        history += question
        sampling = SamplingParams(seed=9, top_logprobs=2)
        sequence = engine.open(history, sampling=sampling, max_tokens=20, draft=draft)
        engine.prefill(sequence)
        while sequence.finish_reason is None:
            engine.step([sequence])
        results.append(engine.close(sequence))
        history += results[-1].token_ids
    return results


@pytest.mark.parametrize("draft", [0, 8])
def test_a_kept_cache_changes_no_bit(pair, draft):
    questions = [*prompts_of(pair, 2, 0), prompts_of(pair, 0, 1)[0][:90]]
    fresh = converse(Engine(pair, kept_caches=0), questions, draft)
    kept = converse(Engine(pair), questions, draft)
    assert all(result.stats.cached_tokens > 0 for result in kept[1:])
    assert not any(result.stats.cached_tokens for result in fresh)
    compare(fresh, kept, "with a kept cache")


def test_the_chunks_of_a_prefill_change_no_bit(pair, monkeypatch):
    matrix = Matrix(prompts=prompts_of(pair, 1, 1), max_tokens=8)
    expected = answers(Engine(pair, kept_caches=0), matrix, 1.0, 4)
    for size in (1, 7, 1000):
        monkeypatch.setattr("paceline.engine.PREFILL_CHUNK", size)
        got = answers(Engine(pair, kept_caches=0), matrix, 1.0, 4)
        compare(expected, got, f"chunks of {size}")


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_an_interrupt_between_layers_changes_no_bit_of_the_next_turn(tmp_path, monkeypatch, at):
    """The next prompt goes back as far as the sliding rings allow: what an uncounted tile has
    overwritten in them must not be used."""
    pair = load_pair(write_random_pair(tmp_path / "pair"), runtime="torch")
    pair = replace(pair, drafter=RecordedDrafter(pair.drafter))
    prompt, sampling = [7 + i % 97 for i in range(150)], SamplingParams(seed=3, top_logprobs=2)

    def answer(engine, prompt, draft, interrupted=False):
        sequence = engine.open(prompt, sampling=sampling, max_tokens=40, draft=draft)
        engine.prefill(sequence)
        pair.drafter.expect(sequence.cache, tuple(range(10, 250)))
        if interrupted:
            monkeypatch.setattr(TileAttention, "__call__", Interruption(at))
        while sequence.finish_reason is None:
            try:
                engine.step([sequence])
            except KeyboardInterrupt:
                monkeypatch.undo()
        return engine.close(sequence)

    engine = Engine(pair)
    answer(engine, prompt, 15, interrupted=True)
    (kept,) = engine._prefixes._kept
    assert 0 < kept.cache.shortest_truncation < kept.cache.length == len(prompt)
    back = [*prompt[: kept.cache.shortest_truncation], 9, 8, 7]
    resumed = answer(engine, back, 0)
    assert resumed.stats.cached_tokens == len(back) - 3
    compare([answer(Engine(pair), back, 0)], [resumed], "after an interrupt")


class Interruption:
    """Lets one layer more than `at` of a pass's last tile store its rows, then interrupts."""

    def __init__(self, at):
        self.calls_left = 4 + at
        self.attend = TileAttention.__call__

    def __get__(self, attention, _):
        return partial(self, attention)

    def __call__(self, attention, *layer):
        result = self.attend(attention, *layer)
        if not self.calls_left:
            raise KeyboardInterrupt
        self.calls_left -= 1
        return result


def test_the_check_sees_a_difference(pair):
    matrix = Matrix(prompts=prompts_of(pair, 2, 0), max_tokens=8)
    engine = Engine(pair)
    expected = answers(engine, matrix, 1.0, 0)
    with pytest.raises(Divergence, match="prompt 0 differs at token"):
        compare(
            expected, answers(engine, replace(matrix, prompts=matrix.prompts[::-1]), 1.0, 0), ""
        )
    with pytest.raises(Divergence, match="prompt 0 ends differently"):
        compare(expected, answers(engine, replace(matrix, max_tokens=7), 1.0, 0), "")
