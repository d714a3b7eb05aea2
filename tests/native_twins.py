"""Every released geometry in the native runtime, beside its torch twin on the same stored weights.

The twin computes in float64. `Arithmetic` gives it what the native runtime does on purpose:
activations that meet quantised weights are rounded to bytes in blocks of 32 columns, keys and
values to halves. What is left between the two are the roundings of float32 (`error_bounds`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.utils import logging

import geometries
from error_bounds import Float32Errors
from paceline.checkpoint.convert import FileDtype, stored_dtype
from paceline.checkpoint.huggingface import open_drafter, open_target
from paceline.checkpoint.quantise import BLOCK, BLOCK_BYTES, as_bytes, dequantise, quantise
from paceline.checkpoint.weights import Weight, Weights
from paceline.config import DrafterConfig, LayerSpec, TargetConfig
from paceline.runtime.native import load as native_load
from paceline.runtime.native.drafter import NativeDrafter
from paceline.runtime.native.target import NativeTarget
from paceline.runtime.torch import load as torch_load
from paceline.runtime.torch.cache import TorchKVCache
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.runtime.torch.models import DrafterModel, TargetModel
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
    owned: frozenset[int]  # where the storage of a tensor begins
    quantised: frozenset[int]  # of these, the matrices that the native runtime keeps as bytes

    def new_cache(self, max_length: int) -> TorchKVCache:
        return TorchKVCache(
            self.target.config, max_length=max_length, slack=16, dtype=torch.float16
        )

    def reads_bytes(self, weight: Tensor) -> bool:
        place = _place(weight)
        if place not in self.owned:  # only the rows that a centroid head gathers
            place = _place(self.drafter.model.embed_tokens.weight)
        return place in self.quantised


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
    models = target.model, drafter.model
    for model in models:
        _widen(model)
    quantised = (
        model.state_dict()[weight.spec.name]
        for model, weights in zip(
            models, (files.target_weights, files.drafter_weights), strict=True
        )
        for weight in weights.tensors
        if weight.dtype in BLOCK_BYTES
    )
    return Twin(
        TorchTarget(target.model),
        drafter,
        owned=frozenset(_place(x) for model in models for x in model.state_dict().values()),
        quantised=frozenset(_place(x) for x in quantised),
    )


def _widen(model: TargetModel | DrafterModel) -> None:
    """Weights in float64. Rotary frequencies are the native runtime's own: they are numbers that a
    model has, not results, and torch's powers differ from numpy's in the last bit."""
    model.double()
    for kind, table in model.rope_tables.frequencies.items():
        frequencies = native_load.rope_frequencies(
            model.config.rope(kind), model.config.head_dim_of(kind)
        )
        table.copy_(torch.from_numpy(frequencies))


def _place(weight: Tensor) -> int:
    return weight.untyped_storage().data_ptr()


class Arithmetic(TorchFunctionMode):
    """The arithmetic of the native runtime, in float64, for a twin that runs inside.

    Args:
        errors: add what float32 may add to every result.
        decided: the `decisions` of the same pass without errors: values that fall between two
            halves or bytes go where they went there, so that errors cause no jumps.
    """

    def __init__(
        self,
        pair: Twin,
        errors: Float32Errors | None = None,
        decided: Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.decisions: list[Tensor] = []
        self._pair, self._errors = pair, errors
        self._decided = None if decided is None else iter(decided)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name == "float" and args[0].is_floating_point():
            return args[0].double()
        if name in ("cos", "sin"):
            return self._rounded(name, args, func(args[0].double()))
        if name == "linear":
            return self._linear(*args)
        y = func(*args, **(kwargs or {}))
        if not isinstance(y, Tensor) or y.dtype != torch.float64:
            return y
        if name in ("bmm", "matmul"):
            return y if self._errors is None else y.add_(self._errors.of_product(*args))
        return self._rounded(name, args, y)

    def _rounded(self, name: str, args: tuple[Any, ...], y: Tensor) -> Tensor:
        errors = None if self._errors is None else self._errors.of(name, args, y)
        return y if errors is None else y.add_(errors)

    def _linear(self, x: Tensor, weight: Tensor, bias: None = None) -> Tensor:
        reads_bytes = self._pair.reads_bytes(weight)
        if reads_bytes:
            x = self.to_bytes(x)
        y = x @ weight.T
        if self._errors is None:
            return y
        return y + self._errors.of_product(x, weight.T, BLOCK if reads_bytes else 1)

    def to_bytes(self, x: Tensor) -> Tensor:
        """What a quantised matrix sees: in blocks of 32 columns, max |x| / 127 times a byte."""
        blocks = x.unflatten(-1, (-1, BLOCK))
        step = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return (self._decide((blocks / step).round()) * step).flatten(-2)

    def to_halves(self, x: Tensor) -> Tensor:
        return self._decide(x.half().double())

    def _decide(self, rounded: Tensor) -> Tensor:
        if self._decided is not None:
            rounded = next(self._decided)
        self.decisions.append(rounded)
        return rounded


class WholeSequences:
    """Attention over whole sequences (`layers.Attend`), its keys and values rounded to halves."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self._arithmetic = arithmetic
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, spec: LayerSpec, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> Tensor:
        """query [B, T, N, H], key and value [B, T, G, H] -> [B, T, N, H]"""
        if key is not None and value is not None:
            halves = self._arithmetic.to_halves(key), self._arithmetic.to_halves(value)
            self._stored[spec.index] = halves
        rows, heads = query.shape[1:3]
        keys, values = (
            x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2)
            for x in self._stored[spec.kv_layer]
        )
        scores = query.transpose(1, 2) @ keys.transpose(2, 3)  # [B, N, T, T]
        distance = torch.arange(rows)[:, None] - torch.arange(rows)
        hidden = (distance < 0) | (distance >= (spec.window or rows))
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        return (weights @ values).transpose(1, 2)


@torch.inference_mode()
def logits(pair: Twin, token_ids: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Of every row of whole sequences. [B, T] -> [B, T, V] float64"""
    model = pair.target.model
    with arithmetic:
        positions = torch.arange(token_ids.shape[1])
        x = model.run_layers(token_ids, positions, WholeSequences(arithmetic))
        return model.logits(model.norm(x))
