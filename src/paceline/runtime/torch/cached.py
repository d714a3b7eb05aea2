"""Attention over a KV cache whose bits depend on a row and its keys only (contract C1).

Keys are read in blocks at fixed absolute positions; every matrix product has one fixed shape per
block; block results are added in the order of positions. Blocks that a row cannot see contribute
exact zeros, so it does not matter how far its neighbours reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.runtime.torch.cache import BLOCK, LayerStore


@dataclass(frozen=True)
class VisibleKeys:
    """Which keys the rows of a tile may see in one cache and one kind of layer."""

    first_block: int
    last_block: int
    hidden: Tensor  # [n, 1, R, 1, BLOCK] bool: masked out in blocks first to last


def visible_keys(positions: Tensor, last_key: int, window: int | None) -> VisibleKeys:
    """What rows at `positions` may see.

    Args:
        positions: [R] int64. Row r sees keys p with p <= positions[r], p <= last_key and, in a
            sliding layer, p > positions[r] - window. Every row must see at least one key.
        last_key: the highest position written so far.
    """
    lowest, highest = (int(x) for x in torch.aminmax(positions))
    first = 0 if window is None else max(0, lowest - window + 1) // BLOCK
    last = min(last_key, highest) // BLOCK
    keys = torch.arange(first * BLOCK, (last + 1) * BLOCK).view(-1, 1, 1, 1, BLOCK)
    distance = positions.view(-1, 1, 1) - keys  # [n, 1, R, 1, BLOCK]
    hidden = (distance < 0) | (keys > last_key)
    if window is not None:
        hidden |= distance >= window
    return VisibleKeys(first, last, hidden)


def attend_cached(query: Tensor, store: LayerStore, visible: VisibleKeys) -> Tensor:
    """Scale-1 attention of a fixed number of rows over one layer of one cache. [R, N, H]"""
    keys, values = store.read_blocks(visible.first_block, visible.last_block)
    blocks, groups = keys.shape[:2]
    rows, heads, size = query.shape
    folded = query.float().view(rows, groups, -1, size).transpose(0, 1).flatten(1, 2)
    folded = folded.expand(blocks, -1, -1, -1).flatten(0, 1)  # [n·G, R·N/G, H]
    scores = torch.bmm(folded, keys.flatten(0, 1).transpose(1, 2))
    scores = scores.view(blocks, groups, rows, -1, BLOCK)
    scores.masked_fill_(visible.hidden, float("-inf"))
    best = scores.amax(dim=(0, 4), keepdim=True)
    weights = scores.sub_(best).exp_()
    totals = _add_in_order(weights.sum(dim=-1, keepdim=True))  # [G, R, N/G, 1]
    parts = torch.bmm(weights.view(blocks * groups, -1, BLOCK), values.flatten(0, 1))
    mixed = _add_in_order(parts.view(blocks, groups, rows, -1, size))
    return (mixed / totals).transpose(0, 1).reshape(rows, heads, size).to(query.dtype)


def _add_in_order(parts: Tensor) -> Tensor:
    """Sum over dimension 0 from the lowest block up. From +0.0 on, further zeros of either sign
    change no bit, wherever they stand."""
    total = parts[0] + 0.0
    for part in parts[1:]:
        total += part
    return total


def attend_keys(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scale-1 attention of one row over all of the given keys; its bits bind nobody.

    query [1, N, H], keys and values [G, S, H] float32 -> [1, N, H] in the query's dtype.
    """
    grouped = query.float().view(keys.shape[0], -1, keys.shape[2])
    weights = torch.softmax(torch.bmm(grouped, keys.transpose(1, 2)), dim=-1)
    return torch.bmm(weights, values).view_as(query).to(query.dtype)
