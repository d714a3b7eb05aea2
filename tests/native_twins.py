"""Every released geometry in the native runtime, beside its torch twin on the same stored weights.

`native_arithmetic` gives the twin what the native runtime does on purpose: activations that meet
quantised weights are rounded to bytes in blocks of 32 columns. Keys and values are rounded to
halves by the twin's cache. What is left between the two is the rounding of float32 sums.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

import geometries
from paceline.checkpoint.convert import FileDtype, stored_dtype
from paceline.checkpoint.huggingface import open_drafter, open_target
from paceline.checkpoint.quantise import BLOCK, BLOCK_BYTES, as_bytes, dequantise, quantise
from paceline.checkpoint.weights import Weight, Weights
from paceline.config import DrafterConfig, TargetConfig
from paceline.runtime.native import load as native_load
from paceline.runtime.native.drafter import NativeDrafter
from paceline.runtime.native.target import NativeTarget
from paceline.runtime.torch import load as torch_load
from paceline.runtime.torch.cache import TorchKVCache
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.runtime.torch.target import TorchTarget

logging.disable_progress_bar()

CALM = np.float32(0.125)
"""Times the norms of queries. Random ones meet random keys at scale 1 in scores of 20 and more:
attention then picks single keys, and one rounding decides which, in ten layers of it."""


@dataclass(frozen=True)
class Stored:
    """The files' contents of one pair."""

    target_config: TargetConfig
    target_weights: Weights
    drafter_config: DrafterConfig
    drafter_weights: Weights


@dataclass(frozen=True)
class Native:
    target: NativeTarget
    drafter: NativeDrafter


@dataclass(frozen=True)
class Twin:
    target: TorchTarget
    drafter: TorchDrafter
    quantised: frozenset[int]  # where the storage of quantised matrices begins

    def new_cache(self, max_length: int, dtype: torch.dtype = torch.float16) -> TorchKVCache:
        return TorchKVCache(self.target.config, max_length=max_length, slack=16, dtype=dtype)


def ignore(count: int) -> None:
    """Progress that nobody watches."""


@cache
def stored(name: str, dtype: FileDtype) -> Stored:
    """transformers' random model of a geometry, its matrices in `dtype` where they can be."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "target"), Path(folder, "drafter")
        geometries.target_model(name).save_pretrained(paths[0])
        geometries.drafter_model(name).save_pretrained(paths[1])
        target, drafter = open_target(paths[0]), open_drafter(paths[1])
        return Stored(
            target.config,
            converted(target.weights, dtype),
            drafter.config,
            converted(drafter.weights, dtype, of_drafter=True),
        )


def converted(weights: Weights, dtype: FileDtype, *, of_drafter: bool = False) -> Weights:
    return Weights(tensors=tuple(_converted(x, dtype, of_drafter) for x in weights.tensors))


def _converted(weight: Weight, dtype: FileDtype, of_drafter: bool) -> Weight:
    if weight.spec.kind == "token_ordering":
        return replace(weight, data=np.array(weight.data), file=None)
    kind = stored_dtype(weight.spec, dtype, of_drafter=of_drafter)
    values = dequantise(as_bytes(weight.data), weight.dtype)
    if weight.spec.name.endswith("q_norm.weight"):
        values = CALM * values
    data = quantise(values, kind)
    if kind not in BLOCK_BYTES:
        data = data.view({"BF16": "<u2", "F32": "<f4"}[kind]).reshape(weight.spec.shape)
    return replace(weight, dtype=kind, data=data, file=None)


@cache
def native(name: str, dtype: FileDtype, threads: int = 1) -> Native:
    return in_native(stored(name, dtype), threads)


def in_native(files: Stored, threads: int = 1) -> Native:
    pool = native_load.new_pool(threads, 0)
    target = native_load.load_target(files.target_config, files.target_weights, pool, ignore)
    drafter = native_load.load_drafter(
        files.drafter_config, files.drafter_weights, pool, ignore, target
    )
    return Native(target, drafter)


@cache
def twin(name: str, dtype: FileDtype) -> Twin:
    files = stored(name, dtype)
    keep, torch_load.can_pack = torch_load.can_pack, lambda dtype: False
    try:
        target = torch_load.load_target(
            files.target_config, files.target_weights, "float32", ignore
        )
    finally:
        torch_load.can_pack = keep
    drafter = torch_load.load_drafter(
        files.drafter_config, files.drafter_weights, "float32", ignore, target
    )
    quantised = frozenset(
        _place(model.state_dict()[weight.spec.name])
        for model, weights in (
            (target.model, files.target_weights),
            (drafter.model, files.drafter_weights),
        )
        for weight in weights.tensors
        if weight.dtype in BLOCK_BYTES
    )
    return Twin(target, drafter, quantised)


def _place(weight: torch.Tensor) -> int:
    return weight.untyped_storage().data_ptr()


def rounded_to_bytes(x: torch.Tensor) -> torch.Tensor:
    """What a quantised matrix sees of its input: in blocks of 32, max |x| / 127 times a byte."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    return ((blocks * inverse).round() * scales).flatten(-2)


@contextmanager
def native_arithmetic(pair: Twin, noise: torch.Generator | None = None) -> Iterator[None]:
    """Round what quantised matrices read.

    Args:
        noise: disturb every product by what another order of summing could change. Its k-th
            addition rounds by up to 2^-24 of a partial sum of k terms, about sqrt(k) times a
            term t; n such errors of random sign add up to about 2^-24 n t.
    """
    plain = F.linear
    models = pair.target.model, pair.drafter.model
    owned = {_place(tensor) for x in models for tensor in x.state_dict().values()}
    rows_are_quantised = _place(pair.drafter.model.embed_tokens.weight) in pair.quantised

    def linear(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        place = _place(weight)
        # Only the rows that a centroid head gathers are a tensor of their own.
        if place in pair.quantised or (place not in owned and rows_are_quantised):
            x = rounded_to_bytes(x)
        y = plain(x, weight, bias)
        if noise is not None:
            size = 2.0**-24 * (plain(x.square(), weight.square()) * x.shape[-1]).sqrt()
            y = y + size * torch.randn(y.shape, generator=noise)
        return y

    F.linear = linear
    try:
        yield
    finally:
        F.linear = plain
