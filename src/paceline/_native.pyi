"""The native CPU runtime: see native/README.md."""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray

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

class NotFiniteError(ValueError):
    pass

class ReadError(OSError):
    pass

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

    def __init__(self) -> None: ...
    @property
    def text(self) -> IndexedText: ...
    def follow(self, text: IndexedText) -> Follower:
        """
        Follow a text from the next token on: the written one, or another that may grow too.
        """

    def push(self, token_id: int) -> None:
        """
        The text goes on. Every token shows whether a proposal would have been right, so that
        nothing need be drafted to learn.
        """

    @property
    def first_trust(self) -> float:
        """The highest of all followers."""
