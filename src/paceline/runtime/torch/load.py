"""Builds the torch models from checked weights, each tensor allocated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paceline.checkpoint.weights import Weight, Weights
from paceline.config import DrafterConfig, TargetConfig
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.runtime.torch.models import DrafterModel, RopeTables, TargetModel
from paceline.runtime.torch.packed import PackedLinear, can_pack, pack_linears
from paceline.runtime.torch.target import TILE, TorchTarget

WeightDtype = Literal["float32", "bfloat16"]

CountBytes = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


def load_target(
    config: TargetConfig, weights: Weights, dtype: WeightDtype, count: CountBytes
) -> TorchTarget:
    with torch.device("meta"):
        model = TargetModel(config)
    _fill(model, weights, dtype, count)
    model.rope_tables = RopeTables(config)
    if not can_pack(getattr(torch, dtype)):
        return TorchTarget(model)
    pack_linears(model, TILE)
    return TorchTarget(model, head=PackedLinear(model.embed_tokens.weight, TILE))


def load_drafter(
    config: DrafterConfig,
    weights: Weights,
    dtype: WeightDtype,
    count: CountBytes,
    target: TorchTarget,
) -> TorchDrafter:
    with torch.device("meta"):
        model = DrafterModel(config)
    _fill(model, weights, dtype, count)
    model.rope_tables = RopeTables(config)
    return TorchDrafter(model, target.model)


def set_threads(threads: int) -> None:
    """Threads of every torch operation in this process."""
    torch.set_num_threads(threads)


def num_threads() -> int:
    return torch.get_num_threads()


def _fill(model: nn.Module, weights: Weights, dtype: WeightDtype, count: CountBytes) -> None:
    """Give a model without storage its weights. Non-persistent buffers are left to the caller."""
    model.requires_grad_(False).to(getattr(torch, dtype)).to_empty(device="cpu")
    state = model.state_dict()
    assert state.keys() == {weight.spec.name for weight in weights.tensors}
    for weight in weights.tensors:
        _copy(weight, state[weight.spec.name], count)
        weight.forget()


def _copy(weight: Weight, into: Tensor, count: CountBytes) -> None:
    flat = into.view(-1)
    for start, piece in weight.slices():
        flat[start : start + len(piece)].copy_(_as_tensor(piece, weight.slice_dtype))
        count(weight.num_bytes_of(len(piece)))


def _as_tensor(piece: NDArray[Any], dtype: str) -> Tensor:
    owned = np.array(piece)  # torch wants writable, aligned memory
    if dtype == "BF16":
        return torch.from_numpy(owned.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(owned)
