"""Weights and whole-network arithmetic of target and drafter, without any cache.

Used by inference (`target`, `drafter`), which supplies cached attention and fixed row tiles, and
by training, which supplies attention over whole sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paceline.config import DrafterConfig, LayerKind, TargetConfig
from paceline.runtime.torch.layers import (
    Attend,
    DecoderLayer,
    RMSNorm,
    Rope,
    rope_at,
    rope_frequencies,
)


class RopeTables(nn.Module):
    """Frequencies of the two layer kinds. Not buffers: they stay float32, whatever type the
    weights are given, and are no part of a checkpoint."""

    def __init__(self, config: TargetConfig | DrafterConfig) -> None:
        super().__init__()
        kinds: tuple[LayerKind, ...] = ("sliding", "global")
        self.frequencies = {
            kind: rope_frequencies(config.rope(kind), config.head_dim_of(kind)) for kind in kinds
        }

    def forward(self, positions: Tensor, dtype: torch.dtype) -> dict[LayerKind, Rope]:
        return {
            kind: rope_at(positions, table.to(positions.device), dtype)
            for kind, table in self.frequencies.items()
        }


class TargetModel(nn.Module):
    """A Gemma 4 main model (section 2)."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.hidden_size, config.per_layer_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.layers = nn.ModuleList(DecoderLayer(config, spec) for spec in config.layers)
        self.norm = RMSNorm(hidden, config.rms_norm_eps)
        if width:
            packed = config.num_layers * width
            self.embed_tokens_per_layer = nn.Embedding(config.per_layer_vocab_size, packed)
            self.per_layer_model_projection = nn.Linear(hidden, packed, bias=False)
            self.per_layer_projection_norm = RMSNorm(width, config.rms_norm_eps)
        self.rope_tables = RopeTables(config)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Scaled embedding, the scale rounded to the weight's type first. [...] -> [..., D]"""
        scale = torch.tensor(self.config.hidden_size**0.5, dtype=self.embed_tokens.weight.dtype)
        rows: Tensor = self.embed_tokens(token_ids)
        return rows * scale

    def per_layer_inputs(self, token_ids: Tensor, embedded: Tensor) -> list[Tensor | None]:
        """One [..., P] tensor per layer, or None where the model has none (section 2.3)."""
        config = self.config
        if not config.per_layer_size:
            return [None] * config.num_layers
        shape = (config.num_layers, config.per_layer_size)
        weight = self.embed_tokens_per_layer.weight
        scale = torch.tensor(config.per_layer_size**0.5, dtype=weight.dtype)
        rows = (self.embed_tokens_per_layer(token_ids) * scale).unflatten(-1, shape)
        context = self.per_layer_model_projection(embedded) * config.hidden_size**-0.5
        context = self.per_layer_projection_norm(context.unflatten(-1, shape))
        combined = (context + rows) * 2.0**-0.5
        return list(combined.unbind(-2))

    def run_layers(
        self, token_ids: Tensor, positions: Tensor, attend: Attend, num_layers: int | None = None
    ) -> Tensor:
        """Embedding and the first `num_layers` layers (all by default). [...] -> [..., D]"""
        x = self.embed(token_ids)
        per_layer = self.per_layer_inputs(token_ids, x)
        rope = self.rope_tables(positions, x.dtype)
        for layer, extra in zip(self.layers[:num_layers], per_layer, strict=False):
            assert isinstance(layer, DecoderLayer)
            x = layer(x, rope[layer.spec.kind], attend, extra)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Tied head and soft-cap over final-normed rows. [..., D] -> [..., V]"""
        return self.soft_cap(self.head(hidden))

    def head(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.embed_tokens.weight)

    def soft_cap(self, logits: Tensor) -> Tensor:
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


class CentroidHead(nn.Module):
    """Scores only the tokens of the clusters whose centroids fit best (section 3.6)."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.top_k = config.centroid_top_k
        self.cluster_size = config.cluster_size
        self.centroids = nn.Linear(config.hidden_size, config.num_centroids, bias=False)
        ordering = torch.arange(config.vocab_size, dtype=torch.int64)
        self.token_ordering: Tensor
        self.register_buffer("token_ordering", ordering)

    def candidates(self, x: Tensor) -> Tensor:
        """Token ids worth scoring for one row. [D] -> [top_k * cluster_size]"""
        clusters = self.centroids(x).topk(self.top_k).indices
        return self.token_ordering.view(-1, self.cluster_size)[clusters].flatten()


class DrafterModel(nn.Module):
    """An MTP drafter: query-only layers between two projections (section 3)."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        hidden, wide = config.hidden_size, config.target_hidden_size
        self.pre_projection = nn.Linear(2 * wide, hidden, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(config, spec) for spec in config.layers)
        self.norm = RMSNorm(hidden, config.rms_norm_eps)
        self.post_projection = nn.Linear(hidden, wide, bias=False)
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)  # the output matrix only
        if config.num_centroids:
            self.masked_embedding = CentroidHead(config)
        self.rope_tables = RopeTables(config)

    def step(
        self, embedded: Tensor, hidden: Tensor, rope: dict[LayerKind, Rope], attend: Attend
    ) -> Tensor:
        """One draft step up to the final norm. embedded, hidden [..., D target] -> [..., D]"""
        x: Tensor = self.pre_projection(torch.cat((embedded, hidden), dim=-1))
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer(x, rope[layer.spec.kind], attend, None)
        normed: Tensor = self.norm(x)
        return normed

    def head(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """One row's scores: (token ids or None for all, logits). x [D]"""
        weight = self.embed_tokens.weight
        if not self.config.num_centroids:
            return None, nn.functional.linear(x, weight)
        token_ids = self.masked_embedding.candidates(x)
        return token_ids, nn.functional.linear(x, weight[token_ids])
