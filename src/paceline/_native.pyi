"""The native CPU runtime: see native/README.md."""

from collections.abc import Sequence
from typing import Annotated, overload

import numpy
from numpy.typing import NDArray

class NotFiniteError(ValueError):
    pass

class ReadError(OSError):
    pass

def isa_name() -> str:
    """
    Instruction set in use: the processor's best, or what PACELINE_ISA names.
    """

def isa_names() -> list[str]:
    """What this processor can run, the slowest first."""

def multiply(
    dtype: str,
    data: Annotated[
        NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)
    ],
    outputs: int,
    inner: int,
    x: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C")]:
    """Outputs [M, outputs] of one linear layer for rows x [M, inner]."""

class Pool:
    """Threads that run a pass together; the caller is one of them."""

    def __init__(self, threads: int, pin: bool = True) -> None: ...
    @property
    def threads(self) -> int: ...

def read_bandwidth(pool: Pool, num_bytes: int) -> float:
    """Bytes a second that a plain loop reads of freshly allocated memory."""

def product_rate(pool: Pool, dtype: str, num_rows: int) -> float:
    """
    Multiplications a second of linear layers whose weights stay in the cache.
    """

class LayerShape:
    """One decoder layer: see native shapes.h."""

    def __init__(
        self,
        *,
        sliding: bool,
        head_dim: int,
        num_kv_heads: int,
        ffn_size: int,
        owns_kv: bool,
        kv_layer: int,
        values_from_keys: bool = False,
        window: int = 0,
    ) -> None: ...
    @property
    def sliding(self) -> bool: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def owns_kv(self) -> bool: ...
    @property
    def kv_layer(self) -> int: ...
    @property
    def values_from_keys(self) -> bool: ...
    @property
    def window(self) -> int: ...

class Shape:
    """A target or a drafter: see native shapes.h."""

    def __init__(
        self,
        *,
        hidden_size: int,
        vocab_size: int,
        num_heads: int,
        rms_norm_eps: float,
        layers: Sequence[LayerShape],
        first_shared_layer: int,
        sliding_frequencies: Sequence[float],
        global_frequencies: Sequence[float],
        per_layer_size: int = 0,
        per_layer_vocab_size: int = 0,
        logit_softcap: float = 0.0,
        num_experts: int = 0,
        num_experts_per_token: int = 0,
        expert_ffn_size: int = 0,
        embedding_scale: float = 1.0,
        per_layer_scale: float = 1.0,
        target_hidden_size: int = 0,
        num_centroids: int = 0,
        centroid_top_k: int = 0,
    ) -> None: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def layers(self) -> list[LayerShape]: ...

class FileRange:
    """A tensor's place in an open file."""

    def __init__(self, descriptor: int, start: int, path: str) -> None: ...

class Cache:
    """Keys and values of one sequence."""

    @property
    def length(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def shortest_truncation(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    def truncate(self, length: int) -> None: ...
    def read(
        self, layer: int, first: int, last: int
    ) -> tuple[
        Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order="C")],
        Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order="C")],
    ]:
        """Keys and values [G, S, H] of positions first to last, for tests."""

class Hidden:
    """The final-normed row of one token, for a draft."""

    def __init__(
        self,
        values: Annotated[
            NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
    ) -> None: ...
    def numpy(self) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C")]:
        """The numbers [1, D]."""

class Output:
    """What a pass gave for the R outputs of one sequence."""

    @property
    def logits(self) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C")]:
        """[R, V]"""

    @property
    def hidden(self) -> list[Hidden]: ...
    @property
    def candidate_ids(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None), order="C")]:
        """
        [R, C], C the most of the pass. Best first; -1 stands where there is none.
        """

    @property
    def candidate_logits(
        self,
    ) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C")]:
        """[R, C]"""

    def best_tokens(self, row: int) -> list[int]:
        """The candidate ids of a row up to the first -1."""

class Target:
    """A Gemma 4."""

    def __init__(self, pool: Pool, shape: Shape) -> None: ...
    def new_cache(self, max_length: int, slack: int) -> Cache:
        """An empty cache whose rings survive the rejection of `slack` positions."""

    def forward(
        self,
        caches: Sequence[Cache],
        token_ids: Sequence[Sequence[int]],
        num_outputs: Sequence[int],
        num_candidates: Sequence[int],
    ) -> list[Output]:
        """One pass over the tokens of each sequence."""

    def load(
        self,
        name: str,
        dtype: str,
        data: Annotated[
            NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        file: FileRange | None = None,
    ) -> None:
        """
        Give one tensor as it lies in a file, under its name in paceline.checkpoint.names.

        Rows that tokens need later are read from `file`, else from `data`.
        """

    def finish(self) -> None:
        """ValueError names what was not loaded."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights in memory."""

class Drafter:
    """The drafter of a Gemma 4."""

    def __init__(self, pool: Pool, shape: Shape, target: Target) -> None: ...
    def draft(
        self,
        cache: Cache,
        last_token: int,
        hidden: Hidden,
        max_draft_tokens: int,
        place: int,
        temperature: float,
        seed: int,
        bias_ids: Annotated[
            NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        biases: Annotated[
            NDArray[numpy.float64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        min_confidences: Sequence[float],
        end_token_ids: Annotated[
            NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
    ) -> tuple[list[int], list[float]]:
        """Tokens that continue `last_token`, and their confidences."""

    def load(
        self,
        name: str,
        dtype: str,
        data: Annotated[
            NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        file: FileRange | None = None,
    ) -> None:
        """
        Give one tensor as it lies in a file, under its name in paceline.checkpoint.names.

        Rows that tokens need later are read from `file`, else from `data`.
        """

    def finish(self) -> None:
        """ValueError names what was not loaded."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights in memory."""

SEPARATOR: int = 2147483647

class IndexedText:
    """
    Tokens, and where in them the end of a text occurs with a token to follow.

    SEPARATOR stands between two texts of an index. Cost: constant work and 28 to 56 bytes
    a token, less where the text repeats itself.
    """

    def __init__(self) -> None: ...
    def append(self, token_id: int) -> None: ...
    def extend(self, token_ids: Sequence[int]) -> None:
        """Append many at once, or none."""

    def __len__(self) -> int: ...
    @property
    def tokens(self) -> list[int]:
        """A copy."""

class Trust:
    """
    How often the token after a match was right, by the length of the match.

    Right tokens are counted against the agreement of the places, so that what is learned
    is the factor that makes a share of places a probability. Both counts forget.
    """

    def __init__(self) -> None: ...
    def of_new_sequence(self) -> Trust:
        """What a sequence starts from."""

    def record(self, match_length: int, share: float, right: bool) -> None: ...
    def factor(self, match_length: int) -> float: ...

class Follower:
    """
    Keeps up with the places of a text that go on as the written text does, and learns how
    far they can be trusted.
    """

    @property
    def match_length(self) -> int:
        """
        How many tokens before the places are known to be the last ones written.
        """

    @property
    def places(self) -> list[int]:
        """Indices of the tokens that may come next, the best first."""

    @property
    def first_trust(self) -> float:
        """The chance of the first token of a proposal; 0 if there is none."""

    def turn_to(self, own: Trust, shared: Trust) -> None:
        """
        Learn here from now on: what this sequence has seen, and what all have.
        """

    def start_at(self, place: int) -> None:
        """Expect the text from here on, without a match before."""

    def propose(self, limit: int) -> tuple[list[int], list[float]]:
        """
        Up to `limit` tokens that may come next. For each, of the places that agreed so far, the
        share that has this token too.
        """

class WrittenText:
    """A text that is being written, and those who follow others meanwhile."""

    def __init__(self, end_token_ids: Sequence[int] = ()) -> None:
        """After one of these nothing is proposed."""

    @property
    def text(self) -> IndexedText: ...
    def follow(self, text: IndexedText) -> Follower:
        """
        Follow a text from the next token on: the written one, or another that may grow too.
        """

    def push(self, token_id: int) -> bool:
        """
        The text goes on. Every token shows whether a proposal would have been right, so that
        nothing need be drafted to learn. Returns `has_proposal`.
        """

    @property
    def has_proposal(self) -> bool:
        """Whether a draft is worth asking for."""

    def best_draft(
        self, passes: Sequence[float], other_seconds: float, other_tokens: float, best_rate: float
    ) -> tuple[list[int], int, float, float] | None:
        """
        The proposal with most tokens a second, if that is more than `best_rate`.

        `passes` are seconds of the round's pass by tokens of the draft, from none to as many
        as there is room for, ascending; `other_seconds` are those of the rest of the round,
        `other_tokens` what its other sequences are expected to emit. Returns the draft, the
        number of its follower, what this sequence is expected to emit, seconds of the round.
        What is returned is taken to be drafted; None also where wrong drafts have cost too
        much, until those that were not made would have been right.
        """

LARGEST_OFFSET: float = 5.0

class MarginCurve:
    """
    The chance of a token by the drafter's margin: sigmoid(slope * margin + intercept).
    """

    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(
        self, seen: Sequence[float], accepted: Sequence[float], margins: Sequence[float]
    ) -> None:
        """From kept counts."""

    def __deepcopy__(self, memo: object) -> MarginCurve: ...
    def observe(self, margins: Sequence[float], num_accepted: int) -> None:
        """Learn from tokens that were judged, of which the first were accepted."""

    def margin_at(self, chance: float) -> float:
        """The margin from which a token has this chance; there must be a slope."""

    @property
    def slope(self) -> float:
        """0 as long as margins tell nothing."""

    @property
    def intercept(self) -> float: ...
    @property
    def seen(self) -> list[float]:
        """Tokens, by bins of their margin."""

    @property
    def accepted(self) -> list[float]:
        """Of these."""

    @property
    def margins(self) -> list[float]:
        """Their sums."""

class Profile:
    """
    What is known of text of one kind before a sequence writes any, and what margins tell.
    """

    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(
        self,
        knots: Sequence[float],
        counts: Sequence[float],
        levels: Sequence[float],
        curve: MarginCurve,
    ) -> None:
        """From what was kept."""

    def __deepcopy__(self, memo: object) -> Profile: ...
    @property
    def knots(self) -> list[float]:
        """Offsets of some positions, in log-odds."""

    @property
    def counts(self) -> list[float]:
        """How many tokens taught each."""

    @property
    def levels(self) -> list[float]:
        """Weights of the levels that sequences had."""

    @property
    def prior(self) -> list[float]:
        """Weights that a new sequence starts from."""

    @property
    def curve(self) -> MarginCurve: ...

class AcceptanceModel:
    """What to expect of the next draft of one sequence, in text of one kind."""

    def __init__(self, profile: Profile) -> None: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def weights(self) -> list[float]:
        """
        Of the levels, 1 in all: how likely the text is as easy as each of them.
        """

    @weights.setter
    def weights(self, arg: Sequence[float], /) -> None: ...
    @property
    def kept(self) -> list[float]:
        """
        Entry n is the share of drafts that reached token n and then kept it, its
        margin not being below its bound. Survivals are those of kept tokens.
        """

    def survivals(self) -> list[float]:
        """
        Entry n is the chance that the first n tokens of a draft are all taken.
        """

    def observe(
        self,
        survivals: Sequence[float],
        judgements: Sequence[tuple[int, int, Sequence[float]]],
        bounds: Sequence[float] = [],
    ) -> None:
        """
        Learn from one or more drafts of a text that did not change between them.

        Args:
            survivals: what this model expected of each.
            judgements: see `paceline.speculative.acceptance.Judgement`.
            bounds: margins below which a token would have been held back, even if it was not.
        """

    def observe_kept(self, num_kept: int, held_back: bool) -> None:
        """
        Learn how many tokens of a draft were kept, and whether the next was held back.
        """

    def doubt(self, share: float) -> None:
        """
        The text may have changed: believe so much less of what was learned of it.
        """

LEAST_GAIN: float = 1.015

def best_length(
    survivals: Sequence[float],
    kept: Sequence[float],
    passes: Sequence[float],
    draft_step: float,
    plain: float,
    draft_fixed: float,
    room: int,
    others: float,
) -> tuple[int, float, float, float]:
    """
    The draft length with most expected tokens a second, its tokens, seconds and rate:
    see `paceline.speculative.adaptive.best_length`.
    """

def margin_bounds(
    survivals: Sequence[float],
    kept: Sequence[float],
    passes: Sequence[float],
    draft_step: float,
    length: int,
    rate: float,
    margins: MarginCurve,
) -> tuple[float, ...]:
    """See `paceline.speculative.adaptive.margin_bounds`."""

class ScoreRow:
    """One row of scores over the vocabulary: see paceline.score_row."""

    def __init__(
        self,
        logits: Annotated[
            NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        changed_ids: Annotated[
            NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        changed_scores: Annotated[
            NDArray[numpy.float64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
    ) -> None: ...
    @property
    def peak(self) -> float: ...
    def scores(
        self,
        ids: Annotated[
            NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
    ) -> Annotated[NDArray[numpy.float64], dict(shape=(None,), order="C")]: ...
    def at_least(
        self, floor: float
    ) -> Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C")]: ...
    def highest(
        self, count: int
    ) -> Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C")]: ...
    def weight_sum(self, temperature: float) -> float: ...
    def contenders(
        self, temperature: float, seed: int, position: int
    ) -> Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C")]: ...
