"""The torch drafter's own promises: lengths, early stops, several requests, no traces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import geometries
import pairs
from paceline.runtime.protocols import Draft, DraftRequest, StopRule
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.sampling import DrawRule

GREEDY = DrawRule(temperature=0.0, seed=0)


def request(name="e2b", dtype="float32", *, length=40, seed=0, count=6, draw=GREEDY, **stop):
    target = pairs.load(name, dtype).target
    kv_cache = target.new_cache(128, 8)
    token_ids = pairs.tokens(length + 1, seed)
    outputs = pairs.feed(target, kv_cache, token_ids[:-1], [length], all_outputs=False)
    return DraftRequest(
        last_token=token_ids[-1],
        hidden=outputs[-1].hidden[-1],
        cache=kv_cache,
        max_draft_tokens=count,
        draw=draw,
        stop=StopRule(**stop),
    )


def draft_one(name="e2b", dtype="float32", **settings) -> Draft:
    return pairs.load(name, dtype).drafter.draft([request(name, dtype, **settings)])[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", geometries.NAMES)
@pytest.mark.parametrize("length", [1, 16, 17, 100])
def test_drafts_have_the_length_that_was_asked_for(name, dtype, length):
    for count in (1, 4, pairs.load(name).drafter.max_draft_tokens):
        draft = draft_one(name, dtype, length=length, count=count)
        assert len(draft.tokens) == len(draft.confidences) == count
        assert all(0 <= token < geometries.VOCABULARY for token in draft.tokens)
        assert all(margin >= 0.0 for margin in draft.confidences)


def test_a_shorter_draft_is_the_beginning_of_a_longer_one():
    longest = draft_one(count=15)
    for count in range(1, 15):
        draft = draft_one(count=count)
        assert draft == Draft(
            tokens=longest.tokens[:count], confidences=longest.confidences[:count]
        )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_several_requests_are_each_drafted_as_alone(temperature):
    draw = DrawRule(temperature=temperature, seed=3)
    lengths = (5, 40, 90)
    requests = [
        request(length=length, seed=length, count=count, draw=draw)
        for length, count in zip(lengths, (3, 7, 1), strict=True)
    ]
    together = pairs.load("e2b").drafter.draft(requests)
    assert [len(draft.tokens) for draft in together] == [3, 7, 1]
    assert together == [pairs.load("e2b").drafter.draft([x])[0] for x in requests]
    assert pairs.load("e2b").drafter.draft([]) == []


@pytest.mark.parametrize("stop_at", range(6))
def test_a_draft_stops_before_the_first_token_below_its_bound(stop_at):
    full = draft_one()
    bounds = [0.0] * stop_at + [full.confidences[stop_at] + 1e-3]
    draft = draft_one(min_confidences=tuple(bounds))
    assert draft.tokens == full.tokens[:stop_at]
    assert draft.confidences == full.confidences[:stop_at]


def test_a_bound_is_met_by_equality_and_ends_with_its_step():
    full = draft_one()
    assert draft_one(min_confidences=full.confidences) == full
    assert draft_one(min_confidences=full.confidences[:2]) == full


def test_a_draft_ends_with_a_token_that_ends_the_turn():
    full = draft_one()
    position = full.tokens.index(full.tokens[3])  # where that token comes first
    draft = draft_one(end_token_ids=frozenset({full.tokens[3]}))
    assert draft.tokens == full.tokens[: position + 1]


def test_the_target_noise_decides_a_sampled_draft():
    """The seed and the absolute position, not the number of calls: twice the same, and a seed
    changes it."""
    drafts = [
        draft_one(draw=DrawRule(temperature=2.0, seed=seed), count=8).tokens for seed in (1, 1, 2)
    ]
    assert drafts[0] == drafts[1] != drafts[2]


def test_a_suppressed_token_is_never_drafted():
    full = draft_one(count=4)
    suppressed = np.array(sorted(set(full.tokens)), dtype=np.int64)
    draw = replace(GREEDY, bias_ids=suppressed, biases=np.full(len(suppressed), -np.inf))
    assert not set(draft_one(count=8, draw=draw).tokens) & set(full.tokens)


@pytest.mark.parametrize("name", geometries.NAMES)
def test_drafting_leaves_the_cache_alone(name):
    asked = request(name)
    before = [(store.keys.clone(), store.values.clone()) for store in asked.cache.layers.values()]
    pairs.load(name).drafter.draft([asked])
    assert asked.cache.length == 40
    for (keys, values), store in zip(before, asked.cache.layers.values(), strict=True):
        assert torch.equal(keys, store.keys)
        assert torch.equal(values, store.values)


@pytest.mark.parametrize("position", ["last_written", "next"])
def test_a_draft_sees_a_window_of_keys_and_no_more(position):
    """Keys that the window has left behind cannot move a draft unless a global layer reads them."""
    pair = pairs.load("e2b")
    asked = request(length=40)
    drafter = TorchDrafter(pair.drafter.model, pair.target.model, position=position)
    donor = asked.cache.layers[pair.target.config.kv_layer("sliding")]
    window = pair.target.config.sliding_window
    expected = drafter.draft([asked])
    donor.keys[:, :, : 40 - window] += 5.0
    assert drafter.draft([asked]) == expected
    donor.keys[:, :, 40 - window] += 5.0
    assert drafter.draft([asked]) != expected


@pytest.mark.parametrize("name", geometries.NAMES)
@pytest.mark.parametrize(("draft", "temperature"), [(5, 0.0), (15, 0.7)])
def test_drafts_do_not_change_the_text(name, draft, temperature):
    """Contract C3 with the real drafter, one tile and two."""
    pair = pairs.load(name)
    prompt = pairs.tokens(20, seed=draft)
    texts = [
        pairs.generate(pair.target, drafter, prompt, 24, draft=count, temperature=temperature)
        for drafter, count in ((None, 0), (pair.drafter, draft))
    ]
    assert texts[0] == texts[1]
