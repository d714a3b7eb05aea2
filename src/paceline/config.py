"""The geometry of a Gemma 4 target and of its drafter.

Pure numbers, checked once at construction, so that the rest of the code relies on them.
Knows no file format: `checkpoint.huggingface` reads and writes config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from paceline.errors import ConfigError, PairMismatchError

LayerKind = Literal["sliding", "global"]

MAX_LAYERS = 512
MAX_DIMENSION = 1 << 20
MAX_VOCABULARY = 1 << 22
MAX_CONTEXT = 1 << 24


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary frequencies of one layer kind: `base ** (-2 i / head_dim)` for the first
    `fraction` of the pairs, zero for the rest (reference section 2.7)."""

    base: float
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 1.0 < self.base <= 1e12:
            raise ConfigError(f"RoPE base {self.base} is out of range: expected 1 to 1e12.")
        if not 0.0 < self.fraction <= 1.0:
            raise ConfigError(f"RoPE fraction {self.fraction} is out of range: expected 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What one decoder layer looks like, derived from the whole config."""

    index: int
    kind: LayerKind
    head_dim: int
    num_kv_heads: int
    ffn_size: int
    owns_kv: bool
    kv_layer: int | None  # the layer whose KV is read; None in a drafter (the target's donor)
    values_from_keys: bool  # no v_proj: the value is the raw key projection, normed
    window: int | None  # keys visible to a query, itself included; None = all


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What target and drafter have in common: a stack of Gemma 4 layers."""

    hidden_size: int
    vocab_size: int
    layer_kinds: tuple[LayerKind, ...]
    num_heads: int
    num_kv_heads: int
    num_global_kv_heads: int
    head_dim: int
    global_head_dim: int
    ffn_size: int
    sliding_window: int
    context_length: int
    values_from_keys: bool = False
    rms_norm_eps: float = 1e-6
    rope_sliding: RopeConfig = field(default_factory=lambda: RopeConfig(base=10_000.0))
    rope_global: RopeConfig = field(
        default_factory=lambda: RopeConfig(base=1_000_000.0, fraction=0.25)
    )

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "num_global_kv_heads",
            "head_dim",
            "global_head_dim",
            "ffn_size",
            "sliding_window",
        ):
            check_range(name, getattr(self, name), 1, MAX_DIMENSION)
        check_range("vocab_size", self.vocab_size, 2, MAX_VOCABULARY)
        check_range("context_length", self.context_length, 1, MAX_CONTEXT)
        check_range("number of layers", len(self.layer_kinds), 1, MAX_LAYERS)
        for kv_heads in (self.num_kv_heads, self.num_global_kv_heads):
            if self.num_heads % kv_heads:
                raise ConfigError(
                    f"{self.num_heads} query heads cannot share {kv_heads} KV heads: "
                    "the first must be a multiple of the second."
                )
        for head_dim in (self.head_dim, self.global_head_dim):
            if head_dim % 2:
                raise ConfigError(f"head size {head_dim} is odd: rotary pairs need an even one.")
        if not 0.0 < self.rms_norm_eps < 1.0:
            raise ConfigError(f"rms_norm_eps {self.rms_norm_eps} is out of range: expected 0 to 1.")

    @property
    def num_layers(self) -> int:
        return len(self.layer_kinds)

    @property
    def first_shared_layer(self) -> int:
        """Index of the first layer without KV of its own."""
        raise NotImplementedError

    def kv_layer(self, kind: LayerKind) -> int:
        """The last KV-owning layer of `kind`: the donor of shared layers and of the drafter."""
        owners = [i for i in range(self.first_shared_layer) if self.layer_kinds[i] == kind]
        if not owners:
            raise ConfigError(
                f"no {kind} layer owns KV below layer {self.first_shared_layer}: "
                "shared layers and the drafter have nothing to read."
            )
        return owners[-1]

    def ffn_size_at(self, index: int) -> int:
        return self.ffn_size

    def rope(self, kind: LayerKind) -> RopeConfig:
        return self.rope_sliding if kind == "sliding" else self.rope_global

    def head_dim_of(self, kind: LayerKind) -> int:
        return self.head_dim if kind == "sliding" else self.global_head_dim

    def num_kv_heads_of(self, kind: LayerKind) -> int:
        return self.num_kv_heads if kind == "sliding" else self.num_global_kv_heads

    def layer(self, index: int) -> LayerSpec:
        kind = self.layer_kinds[index]
        owns_kv = index < self.first_shared_layer
        if owns_kv:
            kv_layer: int | None = index
        else:
            kv_layer = self.kv_layer(kind) if self.first_shared_layer else None
        return LayerSpec(
            index=index,
            kind=kind,
            head_dim=self.head_dim_of(kind),
            num_kv_heads=self.num_kv_heads_of(kind),
            ffn_size=self.ffn_size_at(index),
            owns_kv=owns_kv,
            kv_layer=kv_layer,
            values_from_keys=self.values_from_keys and kind == "global",
            window=self.sliding_window if kind == "sliding" else None,
        )

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(self.layer(i) for i in range(self.num_layers))


@dataclass(frozen=True, kw_only=True)
class TargetConfig(DecoderConfig):
    """Geometry of a Gemma 4 main model."""

    num_kv_shared_layers: int = 0
    double_wide_ffn: bool = False
    per_layer_size: int = 0  # width P of the per-layer embeddings; 0 = none
    per_layer_vocab_size: int = 0
    logit_softcap: float | None = None
    num_experts: int = 0  # 0 = dense
    num_experts_per_token: int = 0
    expert_ffn_size: int = 0
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_kv_shared_layers", self.num_kv_shared_layers, 0, self.num_layers - 1)
        check_range("per_layer_size", self.per_layer_size, 0, MAX_DIMENSION)
        if self.per_layer_size:
            check_range("per_layer_vocab_size", self.per_layer_vocab_size, 2, MAX_VOCABULARY)
            if self.per_layer_vocab_size < self.vocab_size:
                raise ConfigError(
                    f"per_layer_vocab_size {self.per_layer_vocab_size} is smaller than "
                    f"vocab_size {self.vocab_size}: some tokens would have no per-layer row."
                )
        check_range("num_experts", self.num_experts, 0, 4096)
        if self.num_experts:
            check_range("num_experts_per_token", self.num_experts_per_token, 1, self.num_experts)
            check_range("expert_ffn_size", self.expert_ffn_size, 1, MAX_DIMENSION)
        if self.logit_softcap is not None and not 0.0 < self.logit_softcap < 1e6:
            raise ConfigError(f"logit_softcap {self.logit_softcap} is out of range: 0 to 1e6.")
        for name, token in (
            ("pad_token_id", self.pad_token_id),
            ("bos_token_id", self.bos_token_id),
            *(("eos_token_id", token) for token in self.eos_token_ids),
        ):
            check_range(name, token, 0, self.vocab_size - 1)
        for kind in set(self.layer_kinds):
            self.kv_layer(kind)

    @property
    def first_shared_layer(self) -> int:
        return self.num_layers - self.num_kv_shared_layers

    def ffn_size_at(self, index: int) -> int:
        doubled = self.double_wide_ffn and index >= self.first_shared_layer
        return self.ffn_size * 2 if doubled else self.ffn_size


@dataclass(frozen=True, kw_only=True)
class DrafterConfig(DecoderConfig):
    """Geometry of an MTP drafter: query-only layers over the target's KV."""

    target_hidden_size: int
    num_centroids: int = 0  # 0 = dense head
    centroid_top_k: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("target_hidden_size", self.target_hidden_size, 1, MAX_DIMENSION)
        if self.num_centroids:
            check_range("num_centroids", self.num_centroids, 1, self.vocab_size)
            check_range("centroid_top_k", self.centroid_top_k, 1, self.num_centroids)
            if self.vocab_size % self.num_centroids:
                raise ConfigError(
                    f"{self.vocab_size} tokens do not divide into {self.num_centroids} clusters "
                    "of equal size: the centroid head needs equal clusters."
                )

    @property
    def first_shared_layer(self) -> int:
        return 0

    @property
    def cluster_size(self) -> int:
        return self.vocab_size // self.num_centroids if self.num_centroids else 0


def check_pair(target: TargetConfig, drafter: DrafterConfig) -> None:
    """Refuse a drafter whose geometry does not fit the target.

    Raises:
        PairMismatchError: names the first field that differs, both values, and what to do.
    """
    pairs: list[tuple[str, object, object]] = [
        ("hidden size", drafter.target_hidden_size, target.hidden_size),
        ("vocabulary size", drafter.vocab_size, target.vocab_size),
    ]
    for kind in dict.fromkeys(drafter.layer_kinds):
        if kind not in target.layer_kinds:
            raise PairMismatchError(
                f"the drafter has {kind} layers but the target has none: it belongs to another "
                "target. Use the drafter that was published for this model."
            )
        pairs += [
            (f"{kind} KV heads", drafter.num_kv_heads_of(kind), target.num_kv_heads_of(kind)),
            (f"{kind} head size", drafter.head_dim_of(kind), target.head_dim_of(kind)),
            (f"{kind} RoPE", drafter.rope(kind), target.rope(kind)),
        ]
        if kind == "sliding":
            pairs.append(("sliding window", drafter.sliding_window, target.sliding_window))
    for name, got, expected in pairs:
        if got != expected:
            raise PairMismatchError(
                f"the drafter belongs to another target: its {name} is {got}, the target has "
                f"{expected}. Use the drafter that was published for this model."
            )


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ConfigError unless `value` is an int in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}.")
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range: expected {low} to {high}.")
