"""The slow twin of native/suffix.cc and native/written_text.cc, to be read beside them.

Ends of texts are numbers here, tables are dictionaries. `WrittenText` and its followers answer what
the native ones do, to the bit; drafts to the rounding of their sums.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

LONG, SHORT = 6, 3
MAX_PLACES = 4
MIN_LOST_MATCH = 4
RESYNC_TOKENS = 24

TOKEN_BITS = 31
SEPARATOR = (1 << TOKEN_BITS) - 1
LONG_MASK = (1 << LONG * TOKEN_BITS) - 1
SHORT_MASK = (1 << SHORT * TOKEN_BITS) - 1

BUCKET_STARTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Matches of 4 and 5 tokens are trusted alike, and so on."""

LONGEST_BUCKET = BUCKET_STARTS[-1]
BUCKETS = array(
    "i", [sum(start <= n for start in BUCKET_STARTS) - 1 for n in range(LONGEST_BUCKET + 1)]
)
STARTING_TRUST = (0.5, 0.35, 0.5, 0.52, 0.58, 0.65, 0.68, 0.72, 0.8, 0.92, 0.96)
STARTING_WEIGHT = 8.0
"""Trust in a match before anything was seen, worth so many observations: as in HumanEval, GSM8K,
the source of this package and answers of the pair that ships, which differ by up to 0.2."""

SHARED_WEIGHT = 16.0
MEMORY = 1 - 1 / 64
SHARED_MEMORY = 1 - 1 / 256
SHARED_EVERY = 4
"""What one sequence has seen counts as at most 64 observations, and as 16 for a new one. All
sequences together remember 256 of every fourth."""

LEAST_TRUST = 0.1
LEAST_SURVIVAL = 0.02
MARGIN = 1.02
FIRST_CREDIT, CREDIT_RATE, MOST_CREDIT = 2.0, 0.004, 20.0
"""Less likely first tokens are not proposed, nor is what hangs on so many that it hardly counts. A
draft must promise more than what it replaces by the margin."""


class TextEnd:
    """The last tokens of a text, as two numbers: `TOKEN_BITS` for each token, the last one lowest.
    Before the first token there are separators."""

    __slots__ = ("long", "short")

    def __init__(self) -> None:
        self.long = LONG_MASK
        self.short = SHORT_MASK

    def push(self, token_id: int) -> None:
        self.long = (self.long << TOKEN_BITS | token_id) & LONG_MASK
        self.short = self.long & SHORT_MASK


class IndexedText:
    """Tokens, and where in them the end of a text occurs with a token to follow."""

    def __init__(self) -> None:
        self.tokens = array("i")
        self.end = TextEnd()
        self.newest_long: dict[int, int] = {}
        self.newest_short: dict[int, int] = {}
        self._older_long = array("i")
        self._older_short = array("i")

    def append(self, token_id: int) -> None:
        """Now the end before this token has a token to follow: it can be found."""
        place, long, short = len(self.tokens), self.end.long, self.end.short
        self._older_long.append(self.newest_long.get(long, -1))
        self.newest_long[long] = place
        self._older_short.append(self.newest_short.get(short, -1))
        self.newest_short[short] = place
        self.tokens.append(token_id)
        self.end.push(token_id)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append many at once."""
        for token_id in token_ids:
            self.append(token_id)

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

    def propose(self, limit: int) -> tuple[list[int], list[float]]:
        """What comes at the first place, up to `limit` tokens, with the agreement of the others."""
        if not self.places:
            return [], []
        tokens = self._text.tokens[self.places[0] : self.places[0] + limit].tolist()
        if SEPARATOR in tokens:
            tokens = tokens[: tokens.index(SEPARATOR)]
        if self._own and 0 < len(tokens) < limit:
            tokens = (tokens * (limit // len(tokens) + 1))[:limit]
        return tokens, self._shares(tokens)

    def _shares(self, proposed: list[int]) -> list[float]:
        others = self.places[1:]
        if not others:
            return [1.0] * len(proposed)
        tokens, shares, size = self._text.tokens, [], len(self._text.tokens)
        for ahead, token_id in enumerate(proposed):
            agreeing = [p for p in others if p + ahead < size and tokens[p + ahead] == token_id]
            shares.append((1 + len(agreeing)) / (1 + len(others)))
            others = agreeing
        return shares


class Trust:
    """How often the token after a match was right, by the length of the match.

    Right tokens are counted against the agreement of the places, so that what is learned is the
    factor that makes a share of places a probability. Both counts forget.
    """

    def __init__(self, memory: float = SHARED_MEMORY) -> None:
        self._memory = memory
        self._right = [STARTING_WEIGHT * trust for trust in STARTING_TRUST]
        self._expected = [STARTING_WEIGHT] * len(STARTING_TRUST)

    def of_new_sequence(self) -> Trust:
        """What a sequence starts from."""
        trust = Trust(MEMORY)
        for bucket, expected in enumerate(self._expected):
            scale = min(1.0, SHARED_WEIGHT / expected)
            trust._right[bucket] = self._right[bucket] * scale
            trust._expected[bucket] = expected * scale
        return trust

    def record(self, match_length: int, share: float, right: bool) -> None:
        bucket = BUCKETS[match_length] if match_length < LONGEST_BUCKET else -1
        self._right[bucket] = self._right[bucket] * self._memory + right
        self._expected[bucket] = self._expected[bucket] * self._memory + share

    def factor(self, match_length: int) -> float:
        bucket = BUCKETS[match_length] if match_length < LONGEST_BUCKET else -1
        return min(1.0, self._right[bucket] / self._expected[bucket])


class TrustedFollower(Follower):
    """A follower that learns how far it can be trusted."""

    def __init__(self, text: IndexedText, end: TextEnd, *, own: bool) -> None:
        super().__init__(text, end, own=own)
        self._seen = 0
        self.turn_to(Trust(), Trust())

    def turn_to(self, own: Trust, shared: Trust) -> None:
        self._own_trust, self._shared_trust = own, shared

    @property
    def first_trust(self) -> float:
        """The chance of the first token of a proposal; 0 if there is none."""
        if not self.places:
            return 0.0
        return self._own_trust.factor(self.match_length) * self.next_share

    def push(self, token_id: int) -> None:
        """The text goes on: would a proposal have been right?"""
        if self.places:
            right, share = self.next_token == token_id, self.next_share
            self._own_trust.record(self.match_length, share, right)
            self._seen += 1
            if self._seen % SHARED_EVERY == 0:
                self._shared_trust.record(self.match_length, share, right)
        super().push(token_id)

    def best_draft(
        self,
        passes: Sequence[float],
        other_seconds: float,
        other_tokens: float,
        best_rate: float,
        end_token_ids: Sequence[int],
    ) -> tuple[list[int], float, float] | None:
        """The proposal with most tokens a second, what it is expected to emit, and its seconds."""
        if self.first_trust < LEAST_TRUST:
            return None
        tokens, shares = self.propose(max(0, len(passes) - 1))
        survival, expected, best, draft = 1.0, 1.0, MARGIN * best_rate, None
        for count, (token_id, share) in enumerate(zip(tokens, shares, strict=True), 1):
            survival *= self._own_trust.factor(self.match_length + count - 1) * share
            if survival < LEAST_SURVIVAL:
                break
            expected += survival
            seconds = passes[count] + other_seconds
            rate = (other_tokens + expected) / seconds
            if rate > best:
                best, draft = rate, (tokens[:count], expected, seconds)
            if token_id in end_token_ids:
                break
        return draft


class WrittenText:
    """A text that is being written, and those who follow others meanwhile."""

    def __init__(self, end_token_ids: Sequence[int] = ()) -> None:
        self.text = IndexedText()
        self._end_token_ids = end_token_ids
        self._followers: list[TrustedFollower] = []
        self._credit, self._cost, self._is_made = FIRST_CREDIT, 0.0, False
        self._followed: list[int] = []
        self._num_right = 0

    def follow(self, text: IndexedText) -> TrustedFollower:
        follower = TrustedFollower(text, self.text.end, own=text is self.text)
        self._followers.append(follower)
        return follower

    def push(self, token_id: int) -> bool:
        self.text.append(token_id)
        self._judge(token_id)
        for follower in self._followers:
            follower.push(token_id)
        return self.has_proposal

    def _judge(self, token_id: int) -> None:
        """Of the draft that was made, or was not: was it right so far, and what did it win?"""
        if self._credit < FIRST_CREDIT:
            self._credit = min(FIRST_CREDIT, self._credit + CREDIT_RATE)
        if not self._followed:
            return
        right = self._followed[self._num_right] == token_id
        self._num_right += right
        if right and self._num_right < len(self._followed):
            return
        won = self._num_right - self._cost
        if self._is_made or won > 0.0:
            self._credit = min(MOST_CREDIT, self._credit + won)
        self._followed = []

    @property
    def has_proposal(self) -> bool:
        return any(follower.first_trust >= LEAST_TRUST for follower in self._followers)

    def best_draft(
        self,
        passes: Sequence[float],
        other_seconds: float,
        other_tokens: float,
        best_rate: float,
    ) -> tuple[list[int], int, float, float] | None:
        best = None
        for number, follower in enumerate(self._followers):
            found = follower.best_draft(
                passes, other_seconds, other_tokens, best_rate, self._end_token_ids
            )
            if found is not None:
                tokens, expected, seconds = found
                best = (tokens, number, expected, seconds)
                best_rate = (other_tokens + expected) / seconds
        if best is None:
            return None
        plain = passes[0] + other_seconds
        cost = (best[3] - plain) / plain if plain > 0.0 else 0.0
        is_made = cost <= self._credit
        if is_made or not self._followed:
            self._followed, self._cost, self._num_right = best[0], cost, 0
            self._is_made = is_made
        return best if is_made else None
