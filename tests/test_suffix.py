"""Places where the end of a text occurred before: a table and its slow, obvious twin agree."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.speculative.suffix import (
    LONG,
    MAX_PLACES,
    MAX_PROPOSAL,
    SEPARATOR,
    SHORT,
    Follower,
    IndexedText,
    TextEnd,
)

few_tokens = st.lists(st.sampled_from([0, 1, 2, SEPARATOR - 1]), max_size=120)


def end_of(tokens):
    end = TextEnd()
    for token in tokens:
        end.push(token)
    return end


def indexed(tokens):
    text = IndexedText()
    text.extend(tokens)
    return text


def places_by_search(tokens, written):
    """What the tables are to find, by looking everywhere."""
    for length in (LONG, SHORT):
        found = [
            place
            for place in range(length, len(tokens))
            if len(written) >= length and tokens[place - length : place] == written[-length:]
        ]
        if found:
            return length, found[::-1][:MAX_PLACES]
    return 0, []


def places_by_table(text, end):
    if (place := text.newest_long.get(end.long)) is not None:
        return LONG, text.places_of_long(place)
    if (place := text.newest_short.get(end.short)) is not None:
        return SHORT, text.places_of_short(place)
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
@given(few_tokens, few_tokens)
def test_an_index_finds_what_a_search_finds(tokens, written):
    if len(written) >= LONG:
        end = end_of(written)
        assert places_by_table(indexed(tokens), end) == places_by_search(tokens, written)


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
    tokens = [1, 2, 3, 4, 5, 6, 50, 9, 4, 5, 6, 60, 8, 1, 2, 3, 4, 5, 6]
    assert following(tokens).propose(1).tokens == (50,)


def test_the_majority_wins_over_the_newest():
    tokens = []
    for number, token in enumerate([50, 50, 60]):
        filler = range(100 * number + 100, 100 * number + 130)  # too far to be one passage
        tokens += [0, 1, 2, token, *filler]
    tokens += [0, 1, 2]
    proposal = following(tokens).propose(2)
    assert proposal.tokens == (50, 200)
    assert proposal.shares == (2 / 3, 1 / 2)


def test_a_period_is_continued_past_its_end():
    assert following([7, 8, 9, 7, 8, 9]).propose(8).tokens == (7, 8, 9, 7, 8, 9, 7, 8)


def test_no_proposal_goes_across_a_separator():
    text = [0, 1, 2, 3, 4, SEPARATOR, 5, 6]
    assert following([0, 1, 2], own_text=False, text=text).propose().tokens == (3, 4)
    assert following([0, 1, 2, 3, 4], own_text=False, text=text).propose().tokens == ()


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
        ([1, 2, 3, *SOURCE[5:8]], SOURCE[8:12]),  # words before it
        ([*SOURCE[:8], *[1] * 30, SOURCE[8]], []),  # too long ago
    ],
)
def test_a_follower_finds_back_after_a_divergence(written, coming):
    follower = following(written, own_text=False, text=SOURCE)
    assert list(follower.propose(4).tokens) == coming


def test_a_place_nearby_wins_over_the_newest():
    text = [*SOURCE[:9], 2, *SOURCE[9:], 9, *SOURCE[9:12], 77]
    written = [*SOURCE[:8], *[1] * 20, *SOURCE[9:12]]
    assert following(written, own_text=False, text=text).next_token == SOURCE[12]


def test_a_text_is_expected_from_its_start():
    end = TextEnd()
    follower = Follower(indexed(SOURCE), end)
    follower.start_at(0)
    assert follower.propose(3).tokens == tuple(SOURCE[:3])
    end.push(SOURCE[0])
    follower.push(SOURCE[0])
    assert follower.propose(3).tokens == tuple(SOURCE[1:4])
    Follower(indexed([]), end).start_at(0)
