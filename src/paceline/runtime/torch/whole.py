"""Attention over whole sequences at once: for training and as the plain twin in tests.

Every row of a [B, T] batch starts at position 0 and sees the rows before it. Gradients flow.
Nothing here is row invariant; inference uses `cached`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.config import LayerSpec
from paceline.runtime.torch.models import TargetModel

KeysValues = tuple[Tensor, Tensor]


class WholeAttention:
    """Causal attention in which shared layers read what their donor stored.

    Args:
        stored: donor keys and values by layer index; filled by the layers that own KV.
        donors: for a drafter, the target layer that each layer kind reads.
    """

    def __init__(
        self, stored: dict[int, KeysValues] | None = None, donors: dict[str, int] | None = None
    ) -> None:
        self.stored = {} if stored is None else stored
        self.donors = donors

    def __call__(
        self, spec: LayerSpec, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> Tensor:
        if key is not None and value is not None:
            self.stored[spec.index] = (key, value)
        source = spec.kv_layer if self.donors is None else self.donors[spec.kind]
        assert source is not None
        return causal_attention(query, *self.stored[source], spec.window)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """query [B, T, N, H], key and value [B, T, G, H] -> [B, T, N, H]; scale 1."""
    rows = query.shape[1]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if window is None or rows <= window:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=1.0, enable_gqa=True
        )
    elif rows % window == 0:
        out = _windowed_blocks(query, key, value, window)
    else:
        mask = _window_mask(rows, window, query.device)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=1.0, enable_gqa=True
        )
    return out.transpose(1, 2)


def _window_mask(rows: int, window: int, device: torch.device) -> Tensor:
    position = torch.arange(rows, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def _windowed_blocks(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Blocks of `window` rows, each over its own block and the one before: cost T·2W, not T²."""
    blocks = query.shape[2] // window
    position = torch.arange(window, device=query.device)
    distance = position[:, None] + window - torch.arange(2 * window, device=query.device)[None, :]
    visible = (distance >= 0) & (distance < window)  # [W, 2W]
    first = visible & (torch.arange(2 * window, device=query.device) >= window)
    mask = torch.cat((first[None], visible[None].expand(blocks - 1, -1, -1)))[:, None]

    def with_previous(x: Tensor) -> Tensor:  # [B, G, T, H] -> [B·blocks, G, 2W, H]
        x = torch.unflatten(x, 2, (blocks, window))
        previous = torch.cat((torch.zeros_like(x[:, :, :1]), x[:, :, :-1]), dim=2)
        return torch.cat((previous, x), dim=3).transpose(1, 2).flatten(0, 1)

    batch = query.shape[0]
    folded = torch.unflatten(query, 2, (blocks, window)).transpose(1, 2).flatten(0, 1)
    out = F.scaled_dot_product_attention(
        folded,
        with_previous(key),
        with_previous(value),
        attn_mask=mask.repeat(batch, 1, 1, 1),
        scale=1.0,
        enable_gqa=True,
    )
    return torch.unflatten(out, 0, (batch, blocks)).transpose(1, 2).flatten(2, 3)


def forward_whole(model: TargetModel, token_ids: Tensor) -> tuple[Tensor, dict[int, KeysValues]]:
    """Final-normed hidden states of every row, and the KV of every owning layer. ids [B, T]."""
    attention = WholeAttention()
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)
    x = model.run_layers(token_ids, positions, attention)
    return model.norm(x), attention.stored
