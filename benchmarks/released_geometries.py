"""The released geometries of Gemma 4 and of their drafters, and a tiny one for tests.

Numbers only (reference section 10). Layers can be cut in whole periods of the layer pattern, so
that a model that does not fit this machine keeps its kinds of layers in their proportions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from paceline.config import DrafterConfig, LayerKind, RopeConfig, TargetConfig
from paceline.errors import ConfigError

VOCABULARY = 262_144
DRAFTER_KINDS: tuple[LayerKind, ...] = ("sliding", "sliding", "sliding", "global")
END_TOKENS = (1, 106)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One released size.

    Args:
        target: with all of its layers.
        period: layers of its repeating pattern, the last of them global.
        layers: that a benchmark takes unless told otherwise.
    """

    name: str
    target: TargetConfig
    drafter: DrafterConfig
    period: int
    layers: int

    def cut(self, layers: int | None) -> Geometry:
        """The same with fewer layers; those without KV of their own keep their share.

        Raises:
            ConfigError: not a whole number of periods.
        """
        layers = self.layers if layers is None else layers
        full = self.target.num_layers
        if layers % self.period or not 0 < layers <= full:
            raise ConfigError(
                f"--layers {layers} is not possible for {self.name}: expected a multiple of "
                f"{self.period}, which is its pattern, up to {full}."
            )
        periods = layers // self.period
        shared = round(self.target.num_kv_shared_layers * layers / full / self.period)
        target = replace(
            self.target,
            layer_kinds=self.target.layer_kinds[:layers],
            num_kv_shared_layers=min(shared, periods - 1) * self.period,
        )
        return replace(self, target=target, layers=layers)


def _kinds(period: int, layers: int) -> tuple[LayerKind, ...]:
    return tuple("global" if (i + 1) % period == 0 else "sliding" for i in range(layers))


def _geometry(
    name: str,
    target: TargetConfig,
    *,
    period: int,
    layers: int,
    hidden_size: int,
    ffn_size: int,
    num_heads: int,
    clusters: tuple[int, int] = (0, 0),
) -> Geometry:
    """A geometry from its target and from what its drafter does not take over from it."""
    drafter = DrafterConfig(
        hidden_size=hidden_size,
        vocab_size=target.vocab_size,
        layer_kinds=DRAFTER_KINDS,
        num_heads=num_heads,
        num_kv_heads=target.num_kv_heads,
        num_global_kv_heads=target.num_global_kv_heads,
        head_dim=target.head_dim,
        global_head_dim=target.global_head_dim,
        ffn_size=ffn_size,
        sliding_window=target.sliding_window,
        context_length=target.context_length,
        target_hidden_size=target.hidden_size,
        num_centroids=clusters[0],
        centroid_top_k=clusters[1],
    )
    return Geometry(name=name, target=target, drafter=drafter, period=period, layers=layers)


def _small(**sizes: int | bool) -> TargetConfig:
    """E2B and E4B: per-layer embeddings, and layers that read the KV of others."""
    layers, period = int(sizes.pop("layers")), int(sizes.pop("period"))
    return TargetConfig(
        layer_kinds=_kinds(period, layers),
        vocab_size=VOCABULARY,
        num_heads=8,
        head_dim=256,
        global_head_dim=512,
        sliding_window=512,
        context_length=131_072,
        per_layer_size=256,
        per_layer_vocab_size=VOCABULARY,
        logit_softcap=30.0,
        eos_token_ids=END_TOKENS,
        **sizes,  # type: ignore[arg-type]
    )


def _large(**sizes: int) -> TargetConfig:
    """12B, 26B-A4B and 31B: values from keys on global layers."""
    return TargetConfig(
        layer_kinds=_kinds(6, sizes.pop("layers")),
        vocab_size=VOCABULARY,
        head_dim=256,
        global_head_dim=512,
        sliding_window=1024,
        context_length=262_144,
        values_from_keys=True,
        logit_softcap=30.0,
        eos_token_ids=END_TOKENS,
        **sizes,
    )


def _e2b() -> Geometry:
    target = _small(
        layers=35,
        period=5,
        hidden_size=1536,
        ffn_size=6144,
        double_wide_ffn=True,
        num_kv_heads=1,
        num_global_kv_heads=1,
        num_kv_shared_layers=20,
    )
    return _geometry(
        "E2B",
        target,
        period=5,
        layers=35,
        hidden_size=256,
        ffn_size=2048,
        num_heads=4,
        clusters=(2048, 32),
    )


def _e4b() -> Geometry:
    target = _small(
        layers=42,
        period=6,
        hidden_size=2560,
        ffn_size=10_240,
        num_kv_heads=2,
        num_global_kv_heads=2,
        num_kv_shared_layers=18,
    )
    return _geometry(
        "E4B",
        target,
        period=6,
        layers=42,
        hidden_size=256,
        ffn_size=2048,
        num_heads=4,
        clusters=(2048, 32),
    )


def _12b() -> Geometry:
    target = _large(
        layers=48,
        hidden_size=3840,
        ffn_size=15_360,
        num_heads=16,
        num_kv_heads=8,
        num_global_kv_heads=1,
    )
    return _geometry(
        "12B", target, period=6, layers=12, hidden_size=1024, ffn_size=8192, num_heads=16
    )


def _26b() -> Geometry:
    target = _large(
        layers=30,
        hidden_size=2816,
        ffn_size=2112,
        num_heads=16,
        num_kv_heads=8,
        num_global_kv_heads=2,
        num_experts=128,
        num_experts_per_token=8,
        expert_ffn_size=704,
    )
    return _geometry(
        "26B-A4B", target, period=6, layers=6, hidden_size=1024, ffn_size=8192, num_heads=16
    )


def _31b() -> Geometry:
    target = _large(
        layers=60,
        hidden_size=5376,
        ffn_size=21_504,
        num_heads=32,
        num_kv_heads=16,
        num_global_kv_heads=4,
    )
    return _geometry(
        "31B", target, period=6, layers=6, hidden_size=1024, ffn_size=8192, num_heads=32
    )


def _tiny(**sizes: int | bool) -> TargetConfig:
    return TargetConfig(
        layer_kinds=_kinds(5, 10),
        vocab_size=1024,
        hidden_size=64,
        ffn_size=96,
        num_heads=4,
        num_kv_heads=1,
        num_global_kv_heads=1,
        head_dim=32,
        global_head_dim=64,
        sliding_window=64,
        context_length=4096,
        logit_softcap=30.0,
        eos_token_ids=END_TOKENS,
        rope_global=RopeConfig(base=1_000_000.0, fraction=0.25),
        **sizes,  # type: ignore[arg-type]
    )


def _tiny_pair() -> Geometry:
    """E2B in miniature."""
    target = _tiny(
        num_kv_shared_layers=5,
        double_wide_ffn=True,
        per_layer_size=32,
        per_layer_vocab_size=1024,
    )
    return _geometry(
        "tiny",
        target,
        period=5,
        layers=10,
        hidden_size=32,
        ffn_size=64,
        num_heads=2,
        clusters=(32, 4),
    )


def _tiny_experts() -> Geometry:
    """26B-A4B in miniature."""
    target = _tiny(
        values_from_keys=True,
        num_experts=8,
        num_experts_per_token=2,
        expert_ffn_size=32,
    )
    return _geometry(
        "tiny-experts", target, period=5, layers=5, hidden_size=32, ffn_size=64, num_heads=2
    )


_MAKERS: dict[str, Callable[[], Geometry]] = {
    "E2B": _e2b,
    "E4B": _e4b,
    "12B": _12b,
    "26B-A4B": _26b,
    "31B": _31b,
    "tiny": _tiny_pair,
    "tiny-experts": _tiny_experts,
}
RELEASED = ("E2B", "E4B", "12B", "26B-A4B", "31B")
NAMES = tuple(_MAKERS)


def geometry(name: str, layers: int | None = None) -> Geometry:
    """One of `NAMES`, whatever its case.

    Raises:
        ConfigError: there is no such geometry, or it cannot have so many layers.
    """
    for known, make in _MAKERS.items():
        if known.lower() == name.lower():
            return make().cut(layers)
    raise ConfigError(f"there is no geometry {name!r}: expected one of {', '.join(NAMES)}.")
