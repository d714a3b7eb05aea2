"""Where the end of a text occurred before, and what came after it there.

`IndexedText` finds the places, a `Follower` keeps up with them while the text grows. They know
tokens only: whether a proposal is worth a pass of the target is decided in `sources`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MATCH_LENGTHS = (8, 4, 2)
"""The end of a text is looked up by its last 8 tokens, else 4, else 2."""

LONGEST = MATCH_LENGTHS[0]
MAX_PLACES = 4
MAX_CHAIN = 8
MAX_PROPOSAL = 15
MIN_LOST_MATCH = 4
RESYNC_TOKENS = 24
"""A match of at least 4 tokens that breaks off is looked for in the next 24 tokens, 24 times."""

SEPARATOR = -1
"""Stands between two texts of an index: no token, so that no proposal goes across it."""

MULTIPLIER = 0x9E3779B97F4A7C15
POWERS = [pow(MULTIPLIER, exponent, 1 << 64) for exponent in range(LONGEST + 2)]
BITS_64 = (1 << 64) - 1
MIN_TABLE_BITS = 10
MAX_TABLE_BITS = 20
BULK = 64


class TextEnd:
    """The last tokens of a text, and for each of `MATCH_LENGTHS` the hash of so many of them: the
    sum of token * MULTIPLIER**(1 + age) modulo 2**64. Tokens before the first count as 0."""

    def __init__(self) -> None:
        self.tokens = array("i", [0] * LONGEST)
        self.hashes = [0] * len(MATCH_LENGTHS)

    def push(self, token_id: int) -> None:
        tokens, hashes = self.tokens, self.hashes  # a loop over the lengths takes twice as long
        hashes[0] = (hashes[0] - tokens[0] * POWERS[8] + token_id) * MULTIPLIER & BITS_64
        hashes[1] = (hashes[1] - tokens[4] * POWERS[4] + token_id) * MULTIPLIER & BITS_64
        hashes[2] = (hashes[2] - tokens[6] * POWERS[2] + token_id) * MULTIPLIER & BITS_64
        tokens.append(token_id)
        del tokens[0]


class IndexedText:
    """Tokens, and where in them the end of a text occurs with a token to follow.

    Args:
        expected_tokens: sizes the tables. More tokens only make it find less.

    Cost: constant work a token, about 16 bytes a token and 12 more for each expected one. An older
    place may be forgotten for a newer one with the same slot, never confused with it.
    """

    def __init__(self, expected_tokens: int = 0) -> None:
        bits = min(max(expected_tokens.bit_length(), MIN_TABLE_BITS), MAX_TABLE_BITS)
        self.tokens = array("i")
        self.end = TextEnd()
        self._shift = 64 - bits
        self._newest = [array("i", [-1]) * (1 << bits) for _ in MATCH_LENGTHS]
        self._older = [array("i") for _ in MATCH_LENGTHS]

    def append(self, token_id: int) -> None:
        """Now the end before this token has a token to follow: it can be found."""
        place, shift = len(self.tokens), self._shift
        for hashed, newest, older in zip(self.end.hashes, self._newest, self._older, strict=True):
            slot = hashed >> shift
            older.append(newest[slot])
            newest[slot] = place
        self.tokens.append(token_id)
        self.end.push(token_id)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append many at once. Equals `append` of each."""
        if len(token_ids) < BULK:
            for token_id in token_ids:
                self.append(token_id)
            return
        first, count = len(self.tokens), len(token_ids)
        new = array("i", token_ids)
        joined = np.concatenate([np.array(self.end.tokens), np.array(new)]).astype(np.uint64)
        for index, length in enumerate(MATCH_LENGTHS):
            slots = _hashes(joined, length, count) >> np.uint64(self._shift)
            self._link(index, slots.astype(np.int64), first)
        self.tokens.extend(new)
        for token_id in new[-LONGEST:]:
            self.end.push(token_id)

    def _link(self, index: int, slots: NDArray[np.int64], first: int) -> None:
        """Chain the places from `first` on, which have these slots."""
        newest = np.frombuffer(self._newest[index], np.int32)
        order = np.argsort(slots, kind="stable")
        ordered = slots[order]
        again = ordered[1:] == ordered[:-1]
        older = newest[slots]
        older[order[1:][again]] = first + order[:-1][again]
        last = order[np.append(~again, True)]
        newest[slots[last]] = first + last
        self._older[index].frombytes(older.tobytes())

    def places(self, end: TextEnd, longer_than: int = 0) -> tuple[int, list[int]]:
        """The places of `tokens` before which stands what `end` ends with, the newest first.

        Returns:
            how many tokens were compared, the largest of `MATCH_LENGTHS` that has a place; and up
            to `MAX_PLACES` of its places. (0, []) if none above `longer_than` has.
        """
        tokens = self.tokens
        for index, length in enumerate(MATCH_LENGTHS):
            if length <= longer_than:
                break
            place = self._newest[index][end.hashes[index] >> self._shift]
            if place < length:
                continue
            wanted, older, found = end.tokens[-length:], self._older[index], []
            for _ in range(MAX_CHAIN):
                if tokens[place - length : place] == wanted:
                    found.append(place)
                    if len(found) == MAX_PLACES:
                        break
                place = older[place]
                if place < length:
                    break
            if found:
                return length, found
        return 0, []


def _hashes(joined: NDArray[np.uint64], length: int, count: int) -> NDArray[np.uint64]:
    """[count] hashes of the `length` tokens before each of the last `count` tokens of `joined`."""
    hashes = np.zeros(count, np.uint64)
    for age in range(length):
        start = LONGEST - 1 - age
        hashes += joined[start : start + count] * np.uint64(POWERS[1 + age])
    return hashes


@dataclass(frozen=True)
class Proposal:
    """What may come next.

    Args:
        match_length: how many tokens before it are known to be the same there.
        shares: of the places that agreed so far, the share that has this token too.
    """

    tokens: tuple[int, ...]
    match_length: int
    shares: tuple[float, ...]


class Follower:
    """Keeps up with the places of an indexed text that go on as the written text does.

    Args:
        text: where to look.
        end: of the written text. It is pushed first, then this.
        own: `text` is the written text itself: what comes after its end repeats what was proposed.
    """

    def __init__(self, text: IndexedText, end: TextEnd, *, own: bool = False) -> None:
        self.match_length = 0
        self.places: list[int] = []
        self._text = text
        self._end = end
        self._own = own
        self._lost = -1
        self._lost_since = RESYNC_TOKENS

    @property
    def next_token(self) -> int | None:
        """The first token of a proposal."""
        return self._text.tokens[self.places[0]] if self.places else None

    @property
    def next_share(self) -> float:
        """The share of the places that have `next_token`."""
        places, tokens = self.places, self._text.tokens
        if len(places) == 1:
            return 1.0
        first = tokens[places[0]]
        return sum(tokens[place] == first for place in places) / len(places)

    def push(self, token_id: int) -> None:
        """The written text goes on."""
        if self.places:
            self._advance(token_id)
        if self.match_length < LONGEST:
            length, places = self._text.places(self._end, self.match_length)
            if places:
                self._settle(length, places)
            if self._lost_since < RESYNC_TOKENS:
                self._look_nearby(token_id)

    def start_at(self, place: int) -> None:
        """Expect the text from here on, without a match before."""
        self._lost, self._lost_since = place, 0
        self.places = [place] if place < len(self._text.tokens) else []

    def _advance(self, token_id: int) -> None:
        tokens = self._text.tokens
        size, lost = len(tokens), self.places[0]
        places = [p + 1 for p in self.places if tokens[p] == token_id and p + 1 < size]
        self.places = places
        if places:
            self.match_length += 1
            return
        if self.match_length >= MIN_LOST_MATCH:
            self._lost, self._lost_since = lost, 0
        self.match_length = 0

    def _settle(self, length: int, places: list[int]) -> None:
        """Follow these; first what most of them agree on, then the newest."""
        if len(places) > 2:
            coming = [self._text.tokens[place] for place in places]
            places.sort(key=lambda place: -coming.count(self._text.tokens[place]))
        self.places, self.match_length = places, length

    def _look_nearby(self, token_id: int) -> None:
        """Where a match broke off, prefer a place shortly after, even one of a single token."""
        self._lost_since += 1
        start, stop = self._lost, self._lost + RESYNC_TOKENS
        if self.match_length > 2 or (self.places and start < self.places[0] <= stop):
            return
        tokens, before = self._text.tokens, self._end.tokens[-2]
        try:
            while True:
                at = tokens.index(token_id, start, stop)
                if not self.match_length or (at and tokens[at - 1] == before):
                    break
                start = at + 1
        except ValueError:
            return
        if at + 1 < len(tokens):
            self.places = [at + 1]
            self.match_length = max(self.match_length, 1)

    def propose(self, limit: int = MAX_PROPOSAL) -> Proposal:
        """What comes at the first place, up to `limit` tokens, with the agreement of the others."""
        if not self.places:
            return Proposal((), 0, ())
        tokens = self._text.tokens[self.places[0] : self.places[0] + limit]
        if SEPARATOR in tokens:
            tokens = tokens[: tokens.index(SEPARATOR)]
        if self._own and len(tokens) < limit:
            period = len(tokens)
            tokens = (tokens * (limit // period + 1))[:limit]
        return Proposal(tuple(tokens), self.match_length, self._shares(tokens))

    def _shares(self, proposed: array[int]) -> tuple[float, ...]:
        others = self.places[1:]
        if not others:
            return (1.0,) * len(proposed)
        tokens, shares, size = self._text.tokens, [], len(self._text.tokens)
        for ahead, token_id in enumerate(proposed):
            agreeing = [p for p in others if p + ahead < size and tokens[p + ahead] == token_id]
            shares.append((1 + len(agreeing)) / (1 + len(others)))
            others = agreeing
        return tuple(shares)
