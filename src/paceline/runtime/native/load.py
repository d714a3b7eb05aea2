"""Hands checked weights over to C++, tensor by tensor.

Activations are float32 whatever the weights' type, so the scales of the embeddings are the exact
roots, as in the torch runtime's float32. (A bfloat16 run of transformers rounds them; reference
section 2.2.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint.weights import Weight, Weights
from paceline.config import (
    DecoderConfig,
    DrafterConfig,
    LayerKind,
    LayerSpec,
    RopeConfig,
    TargetConfig,
)
from paceline.cpu import default_threads
from paceline.errors import CheckpointError
from paceline.extension import _native
from paceline.runtime.native.drafter import NativeDrafter
from paceline.runtime.native.target import NativeTarget

CountBytes = Callable[[int], None]
"""Called with the number of bytes read since the last call."""

ROW_TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight")

SMALL_TABLE = 8 << 20
"""Bytes of a table that is kept in memory: a model with such tables has passes so short that a call
of the system for each row, half a microsecond, would be felt."""


SMALL_MODEL = 64 << 20
"""Bytes of a file whose passes are so short that threads wait for each other longer than they read.
Two threads instead of one took the shipped pair from 5,600 to at most 6,400 tokens a second on two
idle cores, and from 6,000 to between 900 and 2,800 beside one other program."""


def new_pool(threads: int | None, model_bytes: int) -> _native.Pool:
    """The threads that a pair runs on; None is one for each physical core, or a single one for a
    small model."""
    if threads is None:
        threads = 1 if model_bytes < SMALL_MODEL else default_threads()
    return _native.Pool(threads)


def load_target(
    config: TargetConfig, weights: Weights, pool: _native.Pool, count: CountBytes
) -> NativeTarget:
    """
    Raises:
        CheckpointError: a tensor holds a value that is not finite, or the runtime cannot hold it.
    """
    shape = _shape(
        config,
        _target_layers(config),
        per_layer_size=config.per_layer_size,
        per_layer_vocab_size=config.per_layer_vocab_size,
        logit_softcap=config.logit_softcap or 0.0,
        num_experts=config.num_experts,
        num_experts_per_token=config.num_experts_per_token,
        expert_ffn_size=config.expert_ffn_size,
        embedding_scale=config.hidden_size**0.5,
        per_layer_scale=config.per_layer_size**0.5,
    )
    with _refusals():
        inner = _native.Target(pool, shape)
    _fill(inner, weights, count)
    return NativeTarget(config, inner)


def load_drafter(
    config: DrafterConfig,
    weights: Weights,
    pool: _native.Pool,
    count: CountBytes,
    target: NativeTarget,
) -> NativeDrafter:
    """
    Raises:
        CheckpointError: as `load_target`.
    """
    shape = _shape(
        config,
        [_layer_shape(layer, target.config.kv_layer(layer.kind)) for layer in config.layers],
        target_hidden_size=config.target_hidden_size,
        num_centroids=config.num_centroids,
        centroid_top_k=config.centroid_top_k,
    )
    with _refusals():
        inner = _native.Drafter(pool, shape, target.inner)
    _fill(inner, weights, count)
    return NativeDrafter(config, inner)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the C++ side cannot run is a fault of the model's files."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(
            f"the native runtime cannot run this: {str(error).rstrip('.')}. The torch runtime may: "
            "pass --runtime torch."
        ) from error


def _fill(inner: _native.Target | _native.Drafter, weights: Weights, count: CountBytes) -> None:
    """The largest first: while a tensor is packed it is in memory twice, and the first ones find
    the most room. The ordering of a centroid head goes before the rows that it orders."""
    for weight in sorted(weights.tensors, key=_turn):
        _load(inner, weight)
        weight.forget()
        count(weight.num_bytes)
    for weight in weights.tensors:
        weight.forget()  # reading one brings in the edges of its neighbours too
    with _refusals():
        inner.finish()


def _turn(weight: Weight) -> tuple[bool, int]:
    return weight.spec.kind == "weight", -weight.num_bytes


def _load(inner: _native.Target | _native.Drafter, weight: Weight) -> None:
    weight.check_ordering()
    dtype, data = weight.dtype, weight.data
    if weight.spec.kind == "token_ordering":
        dtype, data = "I64", data.astype(np.int64)
    elif _is_kept(weight):
        data = np.array(data)
    try:
        inner.load(weight.spec.name, dtype, data.reshape(-1).view(np.uint8), _rows_file(weight))
    except _native.NotFiniteError as error:
        raise weight.damaged() from error
    except _native.ReadError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{weight.where} cannot be used: {error}") from error


def _is_kept(weight: Weight) -> bool:
    """Whether rows that tokens need are read from a copy in memory."""
    return weight.spec.name in ROW_TABLES and weight.num_bytes <= SMALL_TABLE


def _rows_file(weight: Weight) -> _native.FileRange | None:
    """The file that such rows are read from otherwise."""
    place = weight.file
    if place is None or weight.spec.name not in ROW_TABLES or _is_kept(weight):
        return None
    return _native.FileRange(place.file.descriptor, place.start, str(place.file.path))


def _shape(config: DecoderConfig, layers: list[_native.LayerShape], **others: Any) -> _native.Shape:
    return _native.Shape(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_heads=config.num_heads,
        rms_norm_eps=config.rms_norm_eps,
        layers=layers,
        first_shared_layer=config.first_shared_layer,
        sliding_frequencies=_frequencies(config, "sliding"),
        global_frequencies=_frequencies(config, "global"),
        **others,
    )


def _layer_shape(layer: LayerSpec, kv_layer: int) -> _native.LayerShape:
    """
    Args:
        kv_layer: the target's layer whose keys and values are read.
    """
    return _native.LayerShape(
        sliding=layer.kind == "sliding",
        head_dim=layer.head_dim,
        num_kv_heads=layer.num_kv_heads,
        ffn_size=layer.ffn_size,
        owns_kv=layer.owns_kv,
        kv_layer=kv_layer,
        values_from_keys=layer.values_from_keys,
        window=layer.window or 0,
    )


def _target_layers(config: TargetConfig) -> list[_native.LayerShape]:
    layers = []
    for layer in config.layers:
        assert layer.kv_layer is not None
        layers.append(_layer_shape(layer, layer.kv_layer))
    return layers


def _frequencies(config: DecoderConfig, kind: LayerKind) -> list[float]:
    table: list[float] = rope_frequencies(config.rope(kind), config.head_dim_of(kind)).tolist()
    return table


def rope_frequencies(rope: RopeConfig, head_dim: int) -> NDArray[np.float32]:
    """One frequency per pair (i, i + H/2); zero for the pairs that do not turn. [H/2]

    Equals: `runtime.torch.layers.rope_frequencies` but for the last bit of a power.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(rope.base) ** exponents
    frequencies[int(rope.fraction * head_dim // 2) :] = 0
    return frequencies
