"""Places where the end of a text occurred before: a table and its slow, obvious twin agree."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.speculative.suffix import (
    MATCH_LENGTHS,
    MAX_PLACES,
    MAX_PROPOSAL,
    SEPARATOR,
    Follower,
    IndexedText,
    TextEnd,
)

few_tokens = st.lists(st.sampled_from([0, 1, 2, 262_143]), max_size=120)


def end_of(tokens):
    end = TextEnd()
    for token in tokens:
        end.push(token)
    return end


def indexed(tokens, *, at_once=False):
    text = IndexedText(len(tokens))
    if at_once:
        text.extend(tokens)
    else:
        for token in tokens:
            text.append(token)
    return text


def places_by_search(tokens, written, longer_than=0):
    """What `IndexedText.places` is to find, by looking everywhere."""
    for length in MATCH_LENGTHS:
        if length <= longer_than:
            break
        found = [
            place
            for place in range(length, len(tokens))
            if len(written) >= length and tokens[place - length : place] == written[-length:]
        ]
        if found:
            return length, found[::-1][:MAX_PLACES]
    return 0, []


def following(tokens, *, own_text=True, text=()):
    """A follower that has seen these tokens."""
    index = indexed([] if own_text else list(text))
    end = index.end if own_text else TextEnd()
    follower = Follower(index, end, own=own_text)
    for token in tokens:
        index.append(token) if own_text else end.push(token)
        follower.push(token)
    return follower


@settings(derandomize=True, deadline=None, max_examples=300)
@given(few_tokens, few_tokens, st.sampled_from([0, 2, 4]))
def test_an_index_finds_what_a_search_finds(tokens, written, longer_than):
    found = indexed(tokens).places(end_of(written), longer_than)
    if len(written) >= MATCH_LENGTHS[0]:
        assert found == places_by_search(tokens, written, longer_than)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.tuples(few_tokens, st.booleans()), max_size=4), few_tokens)
def test_many_tokens_at_once_are_the_same_as_one_by_one(parts, written):
    one_by_one, at_once = IndexedText(), IndexedText()
    for part, twice in parts:
        part = part * (1 + twice)
        at_once.extend(part)
        for token in part:
            one_by_one.append(token)
    assert vars(one_by_one.end) == vars(at_once.end)
    assert one_by_one.tokens == at_once.tokens
    assert one_by_one._older == at_once._older
    assert one_by_one._newest == at_once._newest


@settings(derandomize=True, deadline=None, max_examples=300)
@given(few_tokens, few_tokens, st.booleans())
def test_a_follower_is_where_it_says_and_misses_no_longer_match(tokens, given_text, own_text):
    text = tokens if own_text else given_text
    for count in range(1, len(tokens) + 1):
        follower = following(tokens[:count], own_text=own_text, text=given_text)
        written, source = tokens[:count], text[:count] if own_text else text
        best, _ = places_by_search(source, written)
        assert follower.match_length >= best
        length = min(follower.match_length, count)
        for place in follower.places:
            assert source[place - length : place] == written[count - length :]
        proposal = follower.propose()
        if follower.places:
            known = source[follower.places[0] :]
            expected = (known * MAX_PROPOSAL if own_text else known)[:MAX_PROPOSAL]
            assert list(proposal.tokens) == expected
            assert proposal.match_length == follower.match_length >= 1
            assert proposal.shares == shares_by_search(source, follower.places, expected)
            assert (follower.next_token, follower.next_share) == (expected[0], proposal.shares[0])
        else:
            assert proposal.tokens == ()


def shares_by_search(source, places, proposed):
    shares, agreeing = [], places
    for ahead in range(len(proposed)):
        still = [
            p for p in places if list(source[p : p + ahead + 1]) == list(proposed[: ahead + 1])
        ]
        still = [places[0], *[p for p in still if p != places[0]]]
        shares.append(len(still) / len(agreeing))
        agreeing = still
    return tuple(shares)


def test_the_longest_match_wins_over_the_newest():
    tokens = [1, 2, 3, 4, 50, 9, 3, 4, 60, 8, 1, 2, 3, 4]
    assert following(tokens).propose(1).tokens == (50,)


def test_the_majority_wins_over_the_newest():
    tokens = [1, 2, 50, 3, 1, 2, 50, 4, 1, 2, 60, 5, 1, 2]
    proposal = following(tokens).propose(2)
    assert proposal.tokens == (50, 4)
    assert proposal.shares == (2 / 3, 1 / 2)


def test_a_period_is_continued_past_its_end():
    assert following([7, 8, 9, 7, 8]).propose(8).tokens == (9, 7, 8, 9, 7, 8, 9, 7)


def test_no_proposal_goes_across_a_separator():
    text = [1, 2, 3, 4, SEPARATOR, 5, 6]
    assert following([1, 2], own_text=False, text=text).propose().tokens == (3, 4)
    assert following([1, 2, 3, 4], own_text=False, text=text).propose().tokens == ()


SOURCE = list(range(100, 140))


@pytest.mark.parametrize(
    ("written", "coming"),
    [
        (SOURCE[:8], SOURCE[8:12]),
        ([*SOURCE[:8], 1, SOURCE[9]], SOURCE[10:14]),  # one token replaced
        ([*SOURCE[:8], 1, SOURCE[8]], SOURCE[9:13]),  # one inserted
        ([*SOURCE[:8], SOURCE[9]], SOURCE[10:14]),  # one left out
        ([*SOURCE[:8], 1, 2, 3, 4, SOURCE[15]], SOURCE[16:20]),  # a stretch replaced
        ([*SOURCE[:8], 1, *SOURCE[20:22]], SOURCE[22:26]),  # a stretch left out
        ([1, 2, 3, *SOURCE[5:7]], SOURCE[7:11]),  # words before it
        ([*SOURCE[:8], *[1] * 30, SOURCE[8]], []),  # too long ago
    ],
)
def test_a_follower_finds_back_after_a_divergence(written, coming):
    follower = following(written, own_text=False, text=SOURCE)
    assert list(follower.propose(4).tokens) == coming


def test_a_place_nearby_wins_over_the_newest():
    text = [*SOURCE, 9, SOURCE[9], SOURCE[10], 77]
    written = [*SOURCE[:8], 1, SOURCE[9], SOURCE[10]]
    assert following(written, own_text=False, text=text).next_token == SOURCE[11]


def test_a_text_is_expected_from_its_start():
    end = TextEnd()
    follower = Follower(indexed(SOURCE), end)
    follower.start_at(0)
    assert follower.propose(3).tokens == tuple(SOURCE[:3])
    end.push(SOURCE[0])
    follower.push(SOURCE[0])
    assert follower.propose(3).tokens == tuple(SOURCE[1:4])
    Follower(indexed([]), end).start_at(0)


def test_a_crowded_table_finds_less_and_nothing_wrong():
    tokens = [value * 7919 % 50_021 for value in range(20_000)] * 2
    text = IndexedText(expected_tokens=1)
    text.extend(tokens)
    found = 0
    for start in range(0, 20_000, 97):
        written = tokens[start : start + 8]
        length, places = text.places(end_of(written))
        found += bool(places)
        for place in places:
            assert text.tokens[place - length : place] == array("i", written[8 - length :])
    assert found > 0
