"""Attention over a KV cache whose bits depend on a row and its keys only (contract C1).

Keys are read in blocks at fixed absolute positions; every matrix product has one fixed shape per
block; block results are added in the order of positions. Blocks that a row cannot see contribute
exact zeros, so it does not matter how far its neighbours reach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.runtime.torch.cache import BLOCK, LayerStore


def attend_cached(
    query: Tensor, store: LayerStore, positions: Tensor, last_key: int, window: int | None
) -> Tensor:
    """Scale-1 attention of a fixed number of rows over one layer of one cache.

    Args:
        query: [R, N, H].
        positions: [R] int64. Row r sees keys p with p <= positions[r], p <= last_key and, in a
            sliding layer, p > positions[r] - window. Every row must see at least one key.
        last_key: the highest position written so far.

    Returns:
        [R, N, H] in the query's dtype.
    """
    first = 0 if window is None else max(0, int(positions.min()) - window + 1) // BLOCK
    last = min(last_key, int(positions.max())) // BLOCK
    keys, values = store.read_blocks(first, last)  # [G, n, BLOCK, H]
    groups, blocks = keys.shape[:2]
    rows, heads, size = query.shape
    key_positions = torch.arange(first * BLOCK, (last + 1) * BLOCK).view(blocks, BLOCK)
    distance = positions[:, None, None] - key_positions  # [R, n, BLOCK]
    visible = (distance >= 0) & (key_positions <= last_key)
    if window is not None:
        visible &= distance < window
    grouped = query.float().view(rows, groups, heads // groups, size).transpose(0, 1)
    folded = grouped.reshape(groups, 1, rows * (heads // groups), size)
    folded = folded.expand(-1, blocks, -1, -1).flatten(0, 1)  # [G·n, R·N/G, H]
    scores = torch.bmm(folded, keys.flatten(0, 1).transpose(1, 2))
    scores = scores.view(groups, blocks, rows, heads // groups, BLOCK)
    hidden = ~visible.transpose(0, 1)[None, :, :, None, :]
    scores = scores.masked_fill(hidden, float("-inf"))
    best = scores.amax(dim=(1, 4), keepdim=True)
    weights = torch.exp(scores - best)
    totals = _add_in_order(weights.sum(dim=-1))  # [G, R, N/G]
    parts = torch.bmm(weights.view(groups * blocks, -1, BLOCK), values.flatten(0, 1))
    mixed = _add_in_order(parts.view(groups, blocks, rows, heads // groups, size))
    out = mixed / totals[..., None]
    return out.transpose(0, 1).reshape(rows, heads, size).to(query.dtype)


def _add_in_order(parts: Tensor) -> Tensor:
    """Sum over dimension 1 from the lowest block up. Leading zeros change no bit."""
    total = parts[:, 0]
    for block in range(1, parts.shape[1]):
        total = total + parts[:, block]
    return total
