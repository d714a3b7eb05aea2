"""A kept cache saves what a prompt shares with it, and is never used for more than it holds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import WINDOW, FakeTarget
from paceline.prefix_cache import PrefixCache, common_prefix
from paceline.runtime.protocols import Rows

MAX_DRAFT = 3
RING = WINDOW + MAX_DRAFT + 1


def filled(token_ids, *, target=None, rejected=0):
    """A cache that holds some tokens, and has seen others that were taken back."""
    target = target or FakeTarget()
    cache = target.new_cache(100, MAX_DRAFT)
    target.forward([Rows(cache=cache, token_ids=[*token_ids, *range(rejected)])])
    cache.truncate(len(token_ids))
    return cache


def kept(*contents, capacity=2):
    """A prefix cache to which these tokens were given, in order, and their caches."""
    prefixes = PrefixCache(capacity)
    caches = [filled(tokens) for tokens in contents]
    for tokens, cache in zip(contents, caches, strict=True):
        prefixes.give(tokens, cache)
    return prefixes, caches


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1)],
)
def test_common_prefix(first, second, length):
    assert common_prefix(first, second) == common_prefix(second, first) == length


@pytest.mark.parametrize(
    ("prompt", "length"),
    [
        ([1, 2, 3, 4, 5, 6], 4),  # goes on
        ([1, 2, 3, 9, 9], 3),  # turns off
        ([1, 2, 3, 4], 3),  # the same: its last token is fed again
        ([1, 2], 1),  # shorter
        ([1], 0),  # nothing would be left to feed
        ([9, 2, 3], 0),
    ],
)
def test_a_cache_is_cut_to_what_the_prompt_shares(prompt, length):
    prefixes, (cache,) = kept([1, 2, 3, 4])
    taken = prefixes.take(prompt)
    assert taken is (cache if length else None)
    assert cache.length == length or not length
    assert len(prefixes) == (0 if length else 1)


def test_a_cache_has_one_owner():
    prefixes, _ = kept([1, 2, 3])
    assert prefixes.take([1, 2, 3, 4]) is not None
    assert prefixes.take([1, 2, 3, 4]) is None


def test_the_longest_shared_prefix_wins():
    prefixes, (short, long) = kept([1, 2], [1, 2, 3, 4])
    assert prefixes.take([1, 2, 3, 4, 5]) is long
    assert prefixes.take([1, 2, 3, 4, 5]) is short


def test_the_oldest_makes_room():
    prefixes, (_, second, third) = kept([1, 2], [3, 4], [5, 6])
    assert prefixes.take([1, 2, 3]) is None
    assert prefixes.take([3, 4, 5]) is second
    assert prefixes.take([5, 6, 7]) is third


def test_nothing_is_kept_without_capacity_or_content():
    prefixes, _ = kept([1, 2], capacity=0)
    assert len(prefixes) == 0
    prefixes = PrefixCache(2)
    prefixes.give([], FakeTarget().new_cache(100, MAX_DRAFT))
    assert len(prefixes) == 0


def test_clear_forgets_all():
    prefixes, _ = kept([1, 2], [3, 4])
    assert prefixes.kv_bytes > 0
    prefixes.clear()
    assert (len(prefixes), prefixes.kv_bytes) == (0, 0)


def test_the_tokens_must_be_those_of_the_cache():
    with pytest.raises(AssertionError):
        PrefixCache(1).give([1, 2, 3], filled([1, 2]))


@pytest.mark.parametrize(
    ("length", "rejected", "shared", "usable"),
    [
        (RING, 0, 2, True),  # the ring has not turned yet
        (RING + 1, 0, 2, False),
        (20, 0, 17, True),  # within the slack
        (20, 0, 15, False),  # the window before it is gone
        (20, 3, 19, True),  # a rejected draft has used some of the slack
        (20, 3, 18, False),
    ],
)
def test_a_ring_that_has_forgotten_is_not_used(length, rejected, shared, usable):
    tokens = list(range(length))
    prefixes = PrefixCache(1)
    prefixes.give(tokens, filled(tokens, rejected=rejected))
    assert (prefixes.take([*tokens[:shared], 99, 98]) is not None) is usable


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    contents=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=24), min_size=1, max_size=3),
    rejected=st.integers(0, MAX_DRAFT),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=26),
)
def test_a_taken_cache_equals_a_fresh_pass(contents, rejected, prompt):
    """Whatever was kept: the scores of the prompt's rest are those without a kept cache."""
    target = FakeTarget()
    prefixes = PrefixCache(2)
    for tokens in contents:
        prefixes.give(tokens, filled(tokens, target=target, rejected=rejected))
    cache = prefixes.take(prompt)
    if cache is None:
        return
    assert 0 < cache.length < len(prompt)
    rest = Rows(cache=cache, token_ids=prompt[cache.length :])
    fresh = Rows(cache=target.new_cache(100, MAX_DRAFT), token_ids=prompt)
    with_kept, without = target.forward([rest, fresh])
    assert with_kept.hidden == without.hidden
    assert (with_kept.logits == without.logits).all()
