"""A target, drafters and a tokenizer in a few lines of NumPy: rounds and engines in no time.

The fake target's scores are a pure function of what its cache holds: of a running hash of all
tokens (as a global layer) and of the tokens in the window, read from a ring (as a sliding layer).
So a cache that is wrong in any way gives another text. The fake drafters know the target.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from paceline.checkpoint.huggingface import GenerationDefaults
from paceline.config import DrafterConfig, TargetConfig
from paceline.engine import Engine
from paceline.errors import CacheError
from paceline.loading import LoadedPair
from paceline.runtime.protocols import ArrayOutput, Draft, DraftRequest, PassOutput, Rows
from paceline.sampling import Candidates, draw
from paceline.speculative.controller import RoundCost
from paceline.speculative.costs import CostModel
from paceline.tokenizer import ControlTokens

CONTROL = ControlTokens(
    pad=0, eos=1, bos=2, turn_start=3, turn_end=4, channel_start=5, channel_end=6, think=7
)
FIRST_BYTE = 16
VOCAB_SIZE = FIRST_BYTE + 256
WINDOW = 6


def byte_ids(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


ALPHABET = byte_ids("abcd é")
"""What the fake model writes; two of its tokens are the halves of one character."""

END_TOKENS = (CONTROL.eos, CONTROL.turn_end)


class FakeTokenizer:
    """One token per byte, and control tokens before them."""

    control = CONTROL
    vocab_size = VOCAB_SIZE
    control_ids = frozenset(range(8))

    def encode_text(self, text: str) -> list[int]:
        return byte_ids(text)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id - FIRST_BYTE]) if token_id >= FIRST_BYTE else b""

    def token_text(self, token_id: int) -> str:
        return f"<{token_id}>"

    def decode(self, token_ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")


def hashed(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


class FakeCache:
    """A table of running hashes, and a ring of tokens that forgets."""

    def __init__(self, max_length: int, ring_slots: int, slack: int) -> None:
        self.max_length = max_length
        self.length = 0
        self.hashes: list[int] = []
        self.ring: list[tuple[int, int] | None] = [None] * ring_slots
        self.written = 0
        self.slack = slack

    @property
    def shortest_truncation(self) -> int:
        return 0 if self.written <= len(self.ring) else self.written - self.slack

    @property
    def kv_bytes(self) -> int:
        return 8 * (len(self.hashes) + len(self.ring))

    def truncate(self, length: int) -> None:
        if length and not self.shortest_truncation <= length <= self.length:
            raise CacheError(f"{length} is not in {self.shortest_truncation} to {self.length}")
        self.length = length
        del self.hashes[length:]
        if not length:
            self.written = 0

    def write(self, token_id: int) -> None:
        assert self.length < self.max_length
        assert 0 <= token_id < VOCAB_SIZE
        self.hashes.append(hashed(self.hashes[-1] if self.hashes else 0, token_id))
        self.ring[self.length % len(self.ring)] = (self.length, token_id)
        self.length += 1
        self.written = max(self.written, self.length)

    def seen_from(self, position: int) -> tuple[object, ...]:
        """All that a row at `position` reads."""
        first = max(0, position - WINDOW + 1)
        ring = [self.ring[p % len(self.ring)] for p in range(first, position + 1)]
        return self.hashes[position], tuple(ring)


@lru_cache(maxsize=1 << 16)
def scores_of(seen: tuple[object, ...], end_bias: float) -> np.ndarray:
    """[V] logits: the alphabet and the end tokens stand out."""
    rng = np.random.default_rng(hashed(seen))
    scores = np.full(VOCAB_SIZE, -40.0, np.float32)
    scores[ALPHABET] = 2 * rng.normal(size=len(ALPHABET))
    scores[list(END_TOKENS)] = 2 * rng.normal(size=len(END_TOKENS)) + end_bias
    scores.flags.writeable = False
    return scores


def candidates_of(logits: np.ndarray, count: int) -> Candidates:
    """The definition, on a row that is shorter too."""
    order = np.lexsort((np.arange(len(logits)), -logits))[:count]
    token_ids = np.full(count, -1, np.int32)
    token_ids[: len(order)] = order
    return Candidates(token_ids, np.resize(logits[order], count))


class FakeTarget:
    """Protocol `Target`. Every second pass gives the candidates that it is asked for.

    Args:
        end_bias: added to the scores of the end tokens; -30 makes them impossible.
        ends_at: a position where the end of the turn is certain.
        ring_slots: of its sliding layer, `WINDOW + max_draft_tokens + 1` if not given.
    """

    def __init__(
        self,
        *,
        context_length: int = 256,
        end_bias: float = -30.0,
        ends_at: int | None = None,
        ring_slots: int | None = None,
    ) -> None:
        self.config = TargetConfig(
            hidden_size=8,
            vocab_size=VOCAB_SIZE,
            layer_kinds=("sliding", "global"),
            num_heads=1,
            num_kv_heads=1,
            num_global_kv_heads=1,
            head_dim=8,
            global_head_dim=8,
            ffn_size=8,
            sliding_window=WINDOW,
            context_length=context_length,
            eos_token_ids=END_TOKENS,
        )
        self.end_bias = end_bias
        self.ends_at = ends_at
        self.ring_slots = ring_slots
        self.passes: list[list[int]] = []  # row counts of each
        self.num_outputs: list[int] = []  # rows of each whose scores were asked for
        self.interrupt_at: int | None = None  # index of the pass that raises
        self.error: BaseException = KeyboardInterrupt()

    def new_cache(self, max_length: int, max_draft_tokens: int) -> FakeCache:
        slack = max_draft_tokens + 1
        return FakeCache(max_length, self.ring_slots or WINDOW + slack, slack)

    def forward(self, rows: Sequence[Rows]) -> list[PassOutput]:
        self.passes.append([len(share.token_ids) for share in rows])
        self.num_outputs.append(sum(share.num_outputs for share in rows))
        outputs = []
        for share in rows:
            for token_id in share.token_ids:
                share.cache.write(token_id)
            if len(self.passes) - 1 == self.interrupt_at:
                raise self.error
            outputs.append(self._output(share))
        return outputs

    def _output(self, share: Rows) -> PassOutput:
        cache, count = share.cache, share.num_outputs
        positions = range(cache.length - count, cache.length)
        seen = [cache.seen_from(position) for position in positions]
        logits = [self.scores(at + 1, row) for at, row in zip(positions, seen, strict=True)]
        gives = share.num_candidates if len(self.passes) % 2 else 0
        rows, hidden = np.array(logits).reshape(count, VOCAB_SIZE), [hashed(row) for row in seen]
        if not (gives and count):
            return ArrayOutput.without_candidates(rows, hidden)
        ids, best = zip(*[candidates_of(row, gives) for row in logits], strict=True)
        return ArrayOutput(rows, hidden, np.array(ids), np.array(best))

    def scores(self, position: int, seen: tuple[object, ...]) -> np.ndarray:
        """[V] logits of the token at `position`."""
        if position != self.ends_at:
            return scores_of(seen, self.end_bias)
        return np.where(np.arange(VOCAB_SIZE) == CONTROL.turn_end, 99, 0).astype(np.float32)


class FakeDrafter:
    """Protocol `Drafter`: knows the target, and errs where `errs(position)` says so.

    It insists on what the engine owes it: the hidden row that produced the last token.
    """

    def __init__(
        self,
        target: FakeTarget,
        errs: Callable[[int], bool] = lambda position: False,
        *,
        max_draft_tokens: int = 8,
        heeds_stop: bool = True,
        checks_hidden: bool = True,
    ) -> None:
        self.target = target
        self.errs = errs
        self.max_draft_tokens = max_draft_tokens
        self.heeds_stop = heeds_stop
        self.checks_hidden = checks_hidden
        self.requests: list[DraftRequest] = []
        self.config = drafter_config()

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        self.requests += requests
        return [self._draft_one(request) for request in requests]

    def _draft_one(self, request: DraftRequest) -> Draft:
        cache = request.cache
        assert 1 <= request.max_draft_tokens <= self.max_draft_tokens
        if self.checks_hidden:
            right = hashed(cache.seen_from(cache.length - 1))
            assert request.hidden == right, "hidden is not of the row that gave the last token"
        table = cache.hashes[-1]
        ring = list(cache.seen_from(cache.length - 1)[1])
        token, tokens = request.last_token, []
        for position in range(cache.length, cache.length + request.max_draft_tokens):
            table = hashed(table, token)
            ring = [*ring, (position, token)][-WINDOW:]
            scores = self.target.scores(position + 1, (table, tuple(ring)))
            token, _ = draw(scores, position + 1, request.draw)
            if self.errs(position + 1):
                token = ALPHABET[0] if token != ALPHABET[0] else ALPHABET[1]
            tokens.append(token)
            if self.heeds_stop and token in request.stop.end_token_ids:
                break
        return Draft(tokens=tuple(tokens), confidences=(1.0,) * len(tokens))


class ScriptedDrafter:
    """Says what it is told, whatever it is asked."""

    def __init__(self, drafts: Callable[[DraftRequest], Sequence[int]]) -> None:
        self.drafts = drafts
        self.max_draft_tokens = 8
        self.config = drafter_config()

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        return [Draft(tokens=tuple(self.drafts(request)), confidences=()) for request in requests]


class SettledCosts(CostModel):
    """Costs that stay what they are, so that a test does not depend on the machine."""

    def observe(self, cost: RoundCost, is_steady: bool = True, num_rounds: int = 1) -> None:
        pass


def drafter_config() -> DrafterConfig:
    return DrafterConfig(
        hidden_size=8,
        vocab_size=VOCAB_SIZE,
        layer_kinds=("sliding", "global"),
        num_heads=1,
        num_kv_heads=1,
        num_global_kv_heads=1,
        head_dim=8,
        global_head_dim=8,
        ffn_size=8,
        sliding_window=WINDOW,
        context_length=256,
        target_hidden_size=8,
    )


def fake_pair(target: FakeTarget, drafter: object = None, **defaults: object) -> LoadedPair:
    settings = {"temperature": 1.0, "eos_token_ids": END_TOKENS} | defaults
    return LoadedPair(
        target=target,
        drafter=drafter,
        tokenizer=FakeTokenizer(),
        defaults=GenerationDefaults(**settings),
        name="fake",
    )


def fake_engine(
    errs: Callable[[int], bool] = lambda position: False, *, kept_caches: int = 2, **target: object
) -> Engine:
    """An engine whose drafter is right except where `errs` says so."""
    fake = FakeTarget(**target)
    return Engine(fake_pair(fake, FakeDrafter(fake, errs)), kept_caches=kept_caches)
