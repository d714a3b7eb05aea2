"""Places where the end of a text occurred before: the index agrees with a search, and all of it
with its slow twin."""

import gc
import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import suffix_twin as twin
from paceline.speculative import suffix
from paceline.speculative.suffix import (
    MAX_PROPOSAL,
    SEPARATOR,
    IndexedText,
    Trust,
    WrittenText,
)
from suffix_twin import LONG, MAX_PLACES, SHARED_EVERY, SHORT

few_tokens = st.lists(st.sampled_from([0, 1, 2, SEPARATOR - 1]), max_size=120)


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


def following(tokens, *, own_text=True, text=()):
    """A follower that has seen these tokens."""
    written = WrittenText()
    follower = written.follow(written.text if own_text else indexed(text))
    for token in tokens:
        written.push(token)
    return follower


def coming(follower, limit=MAX_PROPOSAL):
    return follower.propose(limit)[0]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(few_tokens, few_tokens)
def test_an_index_finds_what_a_search_finds(tokens, written):
    if len(written) < LONG:
        return
    text = WrittenText()
    text.text.extend(written[:-1])
    follower = text.follow(indexed(tokens))
    text.push(written[-1])  # of what it saw before, a new follower knows nothing
    length, places = places_by_search(tokens, written)
    following = [tokens[place] for place in places]
    places.sort(key=lambda place: -following.count(tokens[place]))
    assert (follower.match_length, follower.places) == (length, places)


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
        proposed, shares = follower.propose(MAX_PROPOSAL)
        if follower.places:
            known = source[follower.places[0] :]
            expected = (known * MAX_PROPOSAL if own_text else known)[:MAX_PROPOSAL]
            assert proposed == expected
            assert follower.match_length >= 1
            assert shares == shares_by_search(source, follower.places, expected)
        else:
            assert (proposed, shares) == ([], [])


def shares_by_search(source, places, proposed):
    shares, agreeing = [], places
    for ahead in range(len(proposed)):
        still = [
            p for p in places if list(source[p : p + ahead + 1]) == list(proposed[: ahead + 1])
        ]
        still = [places[0], *[p for p in still if p != places[0]]]
        shares.append(len(still) / len(agreeing))
        agreeing = still
    return shares


# --- the twin


END_TOKENS = (2, 7)


def a_round(module, written, others, shared):
    """A text that follows itself, a text that grows, and one from its middle on."""
    text = module.WrittenText(END_TOKENS)
    text.text.extend(written)
    growing, given_text = module.IndexedText(), module.IndexedText()
    given_text.extend(others)
    followers = [text.follow(each) for each in (text.text, growing, given_text)]
    for follower, trust in zip(followers, shared, strict=True):
        follower.turn_to(trust.of_new_sequence(), trust)
    followers[-1].start_at(len(others) // 2)
    return text, growing, followers


def state(text, followers, shared):
    each = [
        (f.match_length, list(f.places), f.first_trust, *map(list, f.propose(MAX_PROPOSAL)))
        for f in followers
    ]
    learned = [trust.factor(length) for trust in shared for length in (0, 1, 2, 3, 5, 11, 32, 99)]
    return text.has_proposal, each, learned


def an_offer(generator):
    """What `best_draft` is asked: rounds with more room or less, and rates that are hard to beat or
    not at all."""
    steps = [generator.choice([0.0, 0.01, 0.1, 1.0]) for _ in range(generator.randrange(17))]
    passes = list(accumulate(steps, initial=0.5))[: generator.randrange(18)]
    other_tokens = generator.choice([0.0, 3.7])
    best_rate = generator.uniform(0.0, 3.0) * (1.0 + other_tokens)
    return passes, generator.choice([0.0, 0.2]), other_tokens, best_rate


def compare_drafts(fast, slow, offer):
    """Whether there is one. Sums of 16 numbers may be rounded otherwise where multiplication and
    addition are one instruction."""
    found, expected = fast.best_draft(*offer), slow.best_draft(*offer)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found[:2] == expected[:2]
        assert found[2:] == pytest.approx(expected[2:], rel=1e-12)
    return found is not None


def compare(written, others, grows_at):
    """Push everything into both, for two sequences that share what they learn.

    Args:
        grows_at: where in the text the growing one gets a piece of the others and a separator.
    """
    num_shared, generator = 3, random.Random(len(written))
    shared = [[module.Trust() for _ in range(num_shared)] for module in (twin, suffix)]
    places_seen = num_drafts = 0
    for start in (0, len(written) // 3):
        slow = a_round(twin, written[:start], others, shared[0])
        fast = a_round(suffix, written[:start], others, shared[1])
        for count, token in enumerate(written[start:]):
            for _, growing, _ in (slow, fast):
                if count in grows_at:
                    growing.extend([*others[count % 50 : count % 50 + 20], SEPARATOR])
            assert fast[0].push(token) == slow[0].push(token)
            num_drafts += compare_drafts(fast[0], slow[0], an_offer(generator))
            expected = state(slow[0], slow[2], shared[0])
            assert state(fast[0], fast[2], shared[1]) == expected
            places_seen += sum(map(len, (f.places for f in fast[2])))
    return places_seen, num_drafts


@settings(derandomize=True, deadline=None, max_examples=300)
@given(few_tokens, few_tokens, st.sets(st.integers(0, 119), max_size=8))
def test_it_does_what_its_twin_does(written, others, grows_at):
    compare(written, others, grows_at)


def repetitive(generator, vocabulary, length):
    """Passages that come back with small edits, as in text."""
    tokens = []
    while len(tokens) < length:
        if tokens and generator.random() < 0.15:
            start = generator.randrange(len(tokens))
            passage = tokens[start : start + generator.randrange(1, 60)]
            edited = [generator.randrange(vocabulary) for _ in passage]
            kept = [generator.random() < 0.95 for _ in passage]
            tokens += [p if k else e for p, e, k in zip(passage, edited, kept, strict=True)]
        else:
            tokens.append(generator.randrange(vocabulary))
    return tokens


@pytest.mark.parametrize("vocabulary", [2, 3, 8, 1000, SEPARATOR])
def test_it_does_what_its_twin_does_in_long_texts(vocabulary):
    generator = random.Random(vocabulary)
    for _ in range(2):
        others = repetitive(generator, vocabulary, 200)
        written = repetitive(generator, vocabulary, 400)
        written[50:50] = others[30:90]
        places_seen, num_drafts = compare(written, others, range(0, 500, 17))
        assert places_seen > 400
        assert num_drafts > 30


def test_a_trust_does_what_its_twin_does():
    generator = random.Random(1)
    slow, fast = twin.Trust(), Trust()
    for count in range(1000):
        length, share, right = generator.randrange(50), generator.random(), generator.random() < 0.6
        for trust in (slow, fast):
            trust.record(length, share, right)
        if count % 100 == 0:
            slow, fast = slow.of_new_sequence(), fast.of_new_sequence()
        assert [fast.factor(n) for n in range(60)] == [slow.factor(n) for n in range(60)]


def test_only_every_fourth_token_is_told_to_all():
    shared = Trust()
    written = WrittenText()
    written.follow(indexed([7])).turn_to(shared.of_new_sequence(), shared)
    before = shared.factor(0)
    follower = written.follow(indexed([7] * 100))
    follower.turn_to(shared.of_new_sequence(), shared)
    follower.start_at(0)
    for count in range(SHARED_EVERY):
        assert shared.factor(0) == before
        follower.start_at(0)
        written.push(count + 100)
    assert shared.factor(0) < before


# --- what it proposes


def test_the_longest_match_wins_over_the_newest():
    tokens = [1, 2, 3, 4, 5, 6, 50, 9, 4, 5, 6, 60, 8, 1, 2, 3, 4, 5, 6]
    assert coming(following(tokens), 1) == [50]


def test_the_majority_wins_over_the_newest():
    tokens = []
    for number, token in enumerate([50, 50, 60]):
        filler = range(100 * number + 100, 100 * number + 130)  # too far to be one passage
        tokens += [0, 1, 2, token, *filler]
    tokens += [0, 1, 2]
    assert following(tokens).propose(2) == ([50, 200], [2 / 3, 1 / 2])


def test_a_period_is_continued_past_its_end():
    assert coming(following([7, 8, 9, 7, 8, 9]), 8) == [7, 8, 9, 7, 8, 9, 7, 8]


def test_no_proposal_goes_across_a_separator():
    text = [0, 1, 2, 3, 4, SEPARATOR, 5, 6]
    assert coming(following([0, 1, 2], own_text=False, text=text)) == [3, 4]
    assert coming(following([0, 1, 2, 3, 4], own_text=False, text=text)) == []


SOURCE = list(range(100, 140))


@pytest.mark.parametrize(
    ("written", "expected"),
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
def test_a_follower_finds_back_after_a_divergence(written, expected):
    follower = following(written, own_text=False, text=SOURCE)
    assert coming(follower, 4) == expected


def test_a_place_nearby_wins_over_the_newest():
    text = [*SOURCE[:9], 2, *SOURCE[9:], 9, *SOURCE[9:12], 77]
    written = [*SOURCE[:8], *[1] * 20, *SOURCE[9:12]]
    assert coming(following(written, own_text=False, text=text), 1) == SOURCE[12:13]


def test_a_text_is_expected_from_its_start():
    written = WrittenText()
    follower = written.follow(indexed(SOURCE))
    follower.start_at(0)
    assert coming(follower, 3) == SOURCE[:3]
    written.push(SOURCE[0])
    assert coming(follower, 3) == SOURCE[1:4]
    empty = written.follow(IndexedText())
    empty.start_at(0)
    assert coming(empty) == []


# --- what it refuses, and who owns what


@pytest.mark.parametrize("token", [-1, SEPARATOR + 1, -(2**40), 2**62])
def test_what_is_no_token_is_refused_and_nothing_changes(token):
    text, written = indexed([1, 2]), WrittenText()
    message = f"token_id={token} is out of range: expected 0 to {SEPARATOR}"
    with pytest.raises(ValueError, match=message):
        text.append(token)
    with pytest.raises(ValueError, match=message):
        text.extend([3, token])
    with pytest.raises(ValueError, match=message):
        written.push(token)
    assert (text.tokens, len(text), len(written.text)) == ([1, 2], 2, 0)


@pytest.mark.parametrize("wrong", [None, "1", 1.5, 2**70, [1]])
def test_other_types_are_refused(wrong):
    with pytest.raises(TypeError):
        IndexedText().append(wrong)
    with pytest.raises(TypeError):
        IndexedText().extend([wrong])
    with pytest.raises(TypeError):
        WrittenText().follow(wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda follower, trust: follower.start_at(-1),
            "place=-1 is out of range: expected 0 to 3",
        ),
        (lambda follower, trust: follower.start_at(4), "place=4"),
        (lambda follower, trust: follower.propose(-1), "limit=-1"),
        (lambda follower, trust: follower.propose(10**9), "limit=1000000000"),
        (lambda follower, trust: trust.factor(-1), "match_length=-1"),
        (lambda follower, trust: trust.record(2**31, 1.0, True), "match_length=2147483648"),
    ],
)
def test_impossible_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call(WrittenText().follow(indexed([1, 2, 3])), Trust())


def test_no_draft_is_longer_than_a_proposal_may_be():
    written = WrittenText()
    written.follow(indexed([1, 2])).start_at(0)
    assert written.best_draft([1.0] * 257, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="limit=257"):
        written.best_draft([1.0] * 258, 0.0, 0.0, 0.0)


def test_wrong_drafts_end_until_the_text_repeats_another_one():
    """Each token more takes 0.4 passes: a few wrong drafts use the credit up."""
    quoted, offer = [*range(100, 180)], ([1.0, 1.4, 1.8, 2.2, 2.6], 0.0, 0.0, 1.0)
    written, made = WrittenText(), []
    written.follow(indexed(quoted))

    def write(tokens):
        for token in tokens:
            written.push(token)
            made.append(written.has_proposal and written.best_draft(*offer) is not None)

    write([1])  # else both are at their beginning
    for place in range(0, 80, 4):  # three tokens as they were, and then another one
        write([*quoted[place : place + 3], place])
    assert 1 <= sum(made) <= 5
    tried = len(made)
    write(quoted)
    assert sum(made[tried:]) > 40


def test_a_follower_needs_trusts():
    with pytest.raises((TypeError, ValueError)):
        WrittenText().follow(IndexedText()).turn_to(None, None)


def test_followers_keep_what_they_read():
    """Nobody but the follower holds its text, the written one and the trusts."""
    written = WrittenText()
    follower = written.follow(indexed([1, 2, 3, 4]))
    own, shared = Trust(), Trust()
    follower.turn_to(own, shared)
    for token in (1, 2, 3):
        written.push(token)
    trust = follower.first_trust
    del written, own, shared
    gc.collect()
    assert (coming(follower), follower.first_trust) == ([4], trust)


def test_a_written_text_keeps_its_followers():
    written = WrittenText()
    written.follow(indexed([1, 2, 3, 4]))
    gc.collect()
    for token in (1, 2, 3):
        written.push(token)
    assert written.has_proposal


def test_a_text_that_grew_without_its_followers_is_still_read_within_its_bounds():
    written = WrittenText()
    follower = written.follow(written.text)
    for token in [1, 2, 3, 4] * 3:
        written.push(token)
        written.text.extend([5, 6, 7])
    assert all(place < len(written.text) for place in follower.places)


def test_an_index_grows_with_its_text():
    """Thousands of different ends, each still found afterwards."""
    tokens = [number * 7919 % 100_003 for number in range(20_000)]
    text = indexed(tokens)
    for place in range(LONG, len(tokens), 997):
        written = WrittenText()
        written.text.extend(tokens[: place - 1])
        follower = written.follow(text)
        written.push(tokens[place - 1])
        assert (follower.places, follower.match_length) == ([place], LONG)
