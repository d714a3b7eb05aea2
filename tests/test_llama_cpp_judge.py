"""llama.cpp as an outside judge of the shipped pair, and of how the judge decides.

The judge itself needs a Python that has llama_cpp, which takes a quarter of an hour to build:
    make judge LLAMA_CPP_PYTHON=/path/to/python
"""

import os
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import llama_cpp_judge
from llama_cpp_judge import Difference, Judgement, differences, judge, judge_files, spread_out
from paceline.bench.prompts import bundled_prompts
from paceline.checkpoint.huggingface import GenerationDefaults
from paceline.sequence import EmittedToken


@pytest.mark.llama_cpp
@pytest.mark.parametrize("runtime", ["native", "torch"])
def test_llama_cpp_says_the_same(runtime):
    python = os.environ.get("LLAMA_CPP_PYTHON")
    if not python:
        pytest.skip("LLAMA_CPP_PYTHON names no Python that has llama_cpp")
    _, found = judge_files(python, runtime=runtime)
    assert found.prompts >= 20
    assert found.tokens == 100 * found.prompts
    assert not found.tokenizer_differences
    assert not found.differences
    assert len(found.near_ties) < found.tokens / 100  # else something more than rounding differs


def emitted(token_id, first, second):
    return EmittedToken(
        token_id=token_id, drafted=False, logprob=first, top=((token_id, first), (9, second))
    )


def test_differences_are_places_with_another_token():
    ours = SimpleNamespace(tokens=(emitted(3, -0.1, -4.0), emitted(4, -0.7, -0.71)))
    theirs = {"token_ids": [3, 9], "leads": [0.0, 0.02]}
    assert list(differences("x", ours, theirs)) == [
        Difference(prompt="x", place=1, our_token=4, their_token=9, margin=0.01, their_margin=0.02)
    ]


def test_an_answer_of_another_length_is_no_answer():
    ours = SimpleNamespace(tokens=(emitted(3, -0.1, -4.0),))
    with pytest.raises(ValueError, match="shorter"):
        list(differences("x", ours, {"token_ids": [], "leads": []}))


@dataclass(frozen=True)
class Pair:
    defaults: GenerationDefaults


class FakeLlama:
    """Agrees with everything but one token of each answer."""

    def __init__(self, wrong):
        self.wrong = wrong

    def ask(self, command, **arguments):
        if command == "tokenize":
            return {"token_ids": [2, *arguments["text"].encode()]}
        assert arguments["suppressed"] == [1, 106]
        token_ids = list(arguments["answer"])
        if self.wrong is not None:
            token_ids[self.wrong] += 1
        return {"token_ids": token_ids, "leads": [0.5] * len(token_ids)}


class FakeEngine:
    """Answers everything with two tokens, the second of them all but tied."""

    def __init__(self, pair):
        assert pair.defaults.suppressed_token_ids == (1, 106)

    def encode(self, text, raw=False):
        return [2, *text.encode()] if raw else [2, 105, *text.encode()]

    def generate(self, text, *, sampling, max_tokens):
        tokens = (emitted(3, -0.1, -4.0), emitted(4, -0.7, -0.71))
        return SimpleNamespace(tokens=tokens, token_ids=(3, 4))


@pytest.mark.parametrize(("wrong", "near_ties", "others"), [(None, 0, 0), (1, 3, 0), (0, 0, 3)])
def test_judging(wrong, near_ties, others, monkeypatch):
    monkeypatch.setattr(llama_cpp_judge, "Engine", FakeEngine)
    pair = Pair(defaults=GenerationDefaults(eos_token_ids=(1, 106)))
    prompts = spread_out(bundled_prompts(), 3)
    found = judge(pair, FakeLlama(wrong), prompts, 2)
    assert (len(found.near_ties), len(found.differences)) == (near_ties, others)
    assert found.agreeing_prompts == 3 - near_ties - others
    assert found.agrees == (others == 0)
    assert found.tokens == 6


def test_other_tokens_for_a_text_are_a_difference():
    found = Judgement(
        prompts=1,
        tokens=1,
        agreeing_prompts=1,
        near_ties=[],
        differences=[],
        tokenizer_differences=["x"],
    )
    assert not found.agrees


def test_prompts_of_every_kind_are_chosen():
    prompts = bundled_prompts()
    chosen = spread_out(prompts, 24)
    assert len({prompt.name for prompt in chosen}) == 24
    assert {prompt.kind for prompt in chosen} == {prompt.kind for prompt in prompts}
    assert spread_out(prompts, 1000) == list(prompts)
