"""Where the end of a text occurred before, and what came after it there.

`IndexedText` finds the places, a `Follower` keeps up with them while the text grows. They know
tokens only: whether a proposal is worth a pass of the target is decided in `sources`. All this
runs for each token of every text, so that loops are written out where they took half of the time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from paceline.runtime.protocols import MAX_DRAFT_TOKENS

LONG, SHORT = 6, 3
"""The end of a text is looked up by its last 6 tokens, else by 3."""

MAX_PLACES = 4
MAX_PROPOSAL = MAX_DRAFT_TOKENS
MIN_LOST_MATCH = 4
RESYNC_TOKENS = 24
"""A match of at least 4 tokens that breaks off is looked for in the next 24 tokens, 24 times."""

TOKEN_BITS = 22
SEPARATOR = (1 << TOKEN_BITS) - 1
"""Stands between two texts of an index: above every token, so that no proposal goes across it."""

LONG_MASK = (1 << LONG * TOKEN_BITS) - 1
SHORT_MASK = (1 << SHORT * TOKEN_BITS) - 1


class TextEnd:
    """The last tokens of a text, as two numbers: `TOKEN_BITS` for each token, the last one lowest.
    Before the first token there are separators."""

    __slots__ = ("long", "short")

    def __init__(self) -> None:
        self.long = LONG_MASK
        self.short = SHORT_MASK

    def push(self, token_id: int) -> None:
        self.long = long = (self.long << TOKEN_BITS | token_id) & LONG_MASK
        self.short = long & SHORT_MASK


class IndexedText:
    """Tokens, and where in them the end of a text occurs with a token to follow.

    Cost: constant work and about 250 bytes a token, less where the text repeats itself.
    """

    def __init__(self) -> None:
        self.tokens = array("i")
        self.end = TextEnd()
        self.newest_long: dict[int, int] = {}
        self.newest_short: dict[int, int] = {}
        self._older_long = array("i")
        self._older_short = array("i")

    def append(self, token_id: int) -> None:
        """Now the end before this token has a token to follow: it can be found."""
        end, tokens = self.end, self.tokens
        place, long, short = len(tokens), end.long, end.short
        self._older_long.append(self.newest_long.get(long, -1))
        self.newest_long[long] = place
        self._older_short.append(self.newest_short.get(short, -1))
        self.newest_short[short] = place
        tokens.append(token_id)
        end.long = long = (long << TOKEN_BITS | token_id) & LONG_MASK
        end.short = long & SHORT_MASK

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append many at once."""
        append = self.append
        for token_id in token_ids:
            append(token_id)

    def places_of_long(self, place: int) -> list[int]:
        """`place` and older ones that follow the same 6 tokens, at most `MAX_PLACES`."""
        return _chain(self._older_long, place)

    def places_of_short(self, place: int) -> list[int]:
        """The same for 3 tokens."""
        return _chain(self._older_short, place)


def _chain(older: array[int], place: int) -> list[int]:
    places = [place]
    while len(places) < MAX_PLACES and (place := older[place]) >= 0:
        places.append(place)
    return places


def _short_key(tokens: array[int], at: int) -> int:
    """`TextEnd.short` of a text that ends at this token."""
    end = TextEnd()
    for token_id in tokens[max(0, at + 1 - SHORT) : at + 1]:
        end.push(token_id)
    return end.short


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
        """Indices of the tokens that may come next, the best first."""
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
        length = self.match_length
        if length >= LONG:
            return
        text, end = self._text, self._end
        place = text.newest_long.get(end.long)
        if place is not None:
            self._settle(LONG, text.places_of_long(place))
        elif length < SHORT:
            place = text.newest_short.get(end.short)
            if place is not None:
                self._settle(SHORT, text.places_of_short(place))
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
        if self.match_length > SHORT or (self.places and start < self.places[0] <= stop):
            return
        tokens, wanted = self._text.tokens, self._end.short
        try:
            while True:
                at = tokens.index(token_id, start, stop)
                if not self.match_length or _short_key(tokens, at) == wanted:
                    break
                start = at + 1
        except ValueError:
            return
        if at + 1 < len(tokens):
            self.places = [at + 1]
            self.match_length = self.match_length or 1

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
