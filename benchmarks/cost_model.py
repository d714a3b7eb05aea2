"""What a pass of a target must read and compute at least, from its geometry and types alone.

The floors of a roofline: nothing here is measured.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from paceline.checkpoint.convert import FileDtype, stored_dtype
from paceline.checkpoint.gguf_format import tensor_bytes
from paceline.checkpoint.names import TensorSpec, drafter_table, target_table
from paceline.config import DrafterConfig, TargetConfig

KV_ITEM_BYTES = 2  # half precision, in Paceline as in llama.cpp
LOOKED_UP = "embed_tokens_per_layer.weight"
PROJECTED = "per_layer_model_projection.weight"
_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """One pass over the last rows of a text.

    Args:
        read_bytes: weights and KV, each once.
        macs: products of its matrices and of attention.
    """

    read_bytes: int
    macs: int


def weight_bytes(config: TargetConfig | DrafterConfig, dtype: FileDtype) -> int:
    """Bytes in the file of all weights that are read whole: no per-layer embeddings."""
    table = target_table(config) if isinstance(config, TargetConfig) else drafter_table(config)
    weights = (x for x in table.specs if x.kind == "weight" and x.name != LOOKED_UP)
    of_drafter = isinstance(config, DrafterConfig)
    return sum(_stored_bytes(spec, dtype, of_drafter) for spec in weights)


def pass_cost(
    config: TargetConfig, dtype: FileDtype, *, rows: int, context: int, num_outputs: int
) -> PassCost:
    """A pass of `rows` rows that follow `context` tokens.

    Args:
        num_outputs: rows whose scores are wanted. No other need pass the layers without KV of
            their own.
    """
    read = _kv_bytes(config, context + rows)
    macs = _attention_macs(config, rows, context, num_outputs)
    for spec in target_table(config).specs:
        read += round(_stored_bytes(spec, dtype) * _share_read(spec, config, rows))
        if len(spec.shape) > 1:
            macs += round(math.prod(spec.shape) * _rows_through(spec, config, rows, num_outputs))
    return PassCost(read_bytes=read, macs=macs)


def _stored_bytes(spec: TensorSpec, dtype: FileDtype, of_drafter: bool = False) -> int:
    stored = stored_dtype(spec, dtype, of_drafter=of_drafter)
    return tensor_bytes(stored, math.prod(spec.shape))


def _share_read(spec: TensorSpec, config: TargetConfig, rows: int) -> float:
    """Of experts those that some row has chosen, as if each chose at random."""
    if spec.name == LOOKED_UP:
        return rows / spec.shape[0]
    if ".experts." in spec.name:
        return 1 - (1 - config.num_experts_per_token / config.num_experts) ** rows
    return 1.0


def _rows_through(spec: TensorSpec, config: TargetConfig, rows: int, num_outputs: int) -> float:
    """How many rows are multiplied by the matrix."""
    if spec.name == LOOKED_UP:
        return 0
    if spec.name == PROJECTED:
        share = config.first_shared_layer / config.num_layers
        return rows * share + num_outputs * (1 - share)
    layer = _LAYER.match(spec.name)
    if layer is None:  # the head
        return num_outputs
    through = rows if int(layer[1]) < config.first_shared_layer else num_outputs
    if ".experts." in spec.name:
        return through * config.num_experts_per_token / config.num_experts
    return through


def _kv_bytes(config: TargetConfig, length: int) -> int:
    values = 0
    for layer in config.layers:
        if layer.owns_kv:
            visible = length if layer.window is None else min(length, layer.window)
            values += 2 * visible * layer.num_kv_heads * layer.head_dim
    return values * KV_ITEM_BYTES


def _attention_macs(config: TargetConfig, rows: int, context: int, num_outputs: int) -> int:
    total = 0
    for layer in config.layers:
        for row in range(0 if layer.owns_kv else rows - num_outputs, rows):
            length = context + row + 1
            visible = length if layer.window is None else min(length, layer.window)
            total += 2 * visible * config.num_heads * layer.head_dim
    return total
