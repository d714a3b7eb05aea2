"""The decoder layer that target and drafter share, as plain PyTorch modules.

Owns the arithmetic of one layer (reference section 2.4 to 2.11). Does not know where keys and
values live: the caller passes `attend`, which stores what a layer computes and reads what it may
see. Module names equal the tensor names of `checkpoint.names`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.config import DecoderConfig, LayerSpec, RopeConfig, TargetConfig

Rope = tuple[Tensor, Tensor]
Attend = Callable[[LayerSpec, Tensor, Tensor | None, Tensor | None], Tensor]
"""(layer, query [..., N, H], key [..., G, H] or None, value or None) -> [..., N, H]"""


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` in float32, rounded once at the end."""
    wide = x.float()
    wide = wide * torch.pow(wide.pow(2).mean(-1, keepdim=True) + eps, -0.5)
    if weight is not None:
        wide = wide * weight.float()
    return wide.to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rope_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """One frequency per pair (i, i + H/2); zero for the pairs that do not turn. [H/2] float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.base**exponents)
    frequencies[int(rope.fraction * head_dim // 2) :] = 0.0
    return frequencies


def rope_at(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Rope:
    """cos and sin of every angle, rounded to the activation type. Each [..., 1, H]."""
    angles = positions.float()[..., None] * frequencies
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Query, key and value projections of one layer; scale 1, values normed (section 2.6)."""

    def __init__(self, config: DecoderConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.eps = config.rms_norm_eps
        query_size = config.num_heads * spec.head_dim
        kv_size = spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, self.eps)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        if spec.owns_kv:
            self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
            self.k_norm = RMSNorm(spec.head_dim, self.eps)
            if not spec.values_from_keys:
                self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        head_dim = self.spec.head_dim
        query = self.q_proj(x).unflatten(-1, (-1, head_dim))  # [..., N, H]
        query = apply_rope(self.q_norm(query), rope)
        key = value = None
        if self.spec.owns_kv:
            key = self.k_proj(x).unflatten(-1, (-1, head_dim))  # [..., G, H]
            raw = (
                key if self.spec.values_from_keys else self.v_proj(x).unflatten(-1, (-1, head_dim))
            )
            value = rms_norm(raw, None, self.eps)
            key = apply_rope(self.k_norm(key), rope)
        out: Tensor = self.o_proj(attend(self.spec, query, key, value).flatten(-2))
        return out


class FeedForward(nn.Module):
    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, ffn_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, ffn_size, bias=False)
        self.down_proj = nn.Linear(ffn_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.gate_proj(x), approximate="tanh")
        out: Tensor = self.down_proj(gate * self.up_proj(x))
        return out


class Router(nn.Module):
    """Chooses experts for each row; ties go to the lowest expert (section 2.11)."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_token
        self.eps = config.rms_norm_eps
        self.input_scale = config.hidden_size**-0.5
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Weight of every expert for every row, zero where not chosen. [T, D] -> [T, E]"""
        scores = self.proj(rms_norm(x, None, self.eps) * self.scale * self.input_scale)
        probabilities = torch.softmax(scores.float(), dim=-1)
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        weights, chosen = ranked[..., : self.top_k], order[..., : self.top_k]
        weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights * self.per_expert_scale.float()[chosen]
        return torch.zeros_like(probabilities).scatter(-1, chosen, weights)


class Experts(nn.Module):
    """All experts of a layer. Rows share each expert's weights; experts add in index order."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        count, ffn_size, hidden = config.num_experts, config.expert_ffn_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * ffn_size, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, ffn_size))
        nn.init.normal_(self.gate_up_proj, std=0.02)
        nn.init.normal_(self.down_proj, std=0.02)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [T, D], weights [T, E] -> [T, D]. Rows that did not choose an expert add an exact
        zero, so that a row's bits do not depend on what its neighbours chose."""
        total = torch.zeros_like(x)
        for expert in weights.ne(0).any(dim=0).nonzero().flatten().tolist():
            gate, up = F.linear(x, self.gate_up_proj[expert]).chunk(2, dim=-1)
            y = F.linear(F.gelu(gate, approximate="tanh") * up, self.down_proj[expert])
            total = total + (y * weights[:, expert, None]).to(x.dtype)
        return total


class DecoderLayer(nn.Module):
    """One Gemma 4 layer (section 2.5)."""

    def __init__(self, config: DecoderConfig, spec: LayerSpec) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.spec = spec
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = Attention(config, spec)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.pre_feedforward_layernorm = RMSNorm(hidden, eps)
        self.mlp = FeedForward(hidden, spec.ffn_size)
        self.post_feedforward_layernorm = RMSNorm(hidden, eps)
        self.layer_scalar = nn.Parameter(torch.ones(1))
        target = config if isinstance(config, TargetConfig) else None
        self.has_experts = bool(target and target.num_experts)
        self.has_per_layer_input = bool(target and target.per_layer_size)
        if target and target.num_experts:
            self.router = Router(target)
            self.experts = Experts(target)
            self.pre_feedforward_layernorm_2 = RMSNorm(hidden, eps)
            self.post_feedforward_layernorm_1 = RMSNorm(hidden, eps)
            self.post_feedforward_layernorm_2 = RMSNorm(hidden, eps)
        if target and target.per_layer_size:
            self.per_layer_input_gate = nn.Linear(hidden, target.per_layer_size, bias=False)
            self.per_layer_projection = nn.Linear(target.per_layer_size, hidden, bias=False)
            self.post_per_layer_input_norm = RMSNorm(hidden, eps)

    def forward(self, x: Tensor, rope: Rope, attend: Attend, per_layer: Tensor | None) -> Tensor:
        """x [..., D], per_layer [..., P] or None -> [..., D]"""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope, attend))
        x = x + self.post_feedforward_layernorm(self._feed_forward(x))
        if per_layer is not None:
            gate = F.gelu(self.per_layer_input_gate(x), approximate="tanh")
            x = x + self.post_per_layer_input_norm(self.per_layer_projection(gate * per_layer))
        return x * self.layer_scalar.to(x.dtype)

    def _feed_forward(self, residual: Tensor) -> Tensor:
        dense: Tensor = self.mlp(self.pre_feedforward_layernorm(residual))
        if not self.has_experts:
            return dense
        rows = residual.reshape(-1, residual.shape[-1])
        sparse = self.experts(self.pre_feedforward_layernorm_2(rows), self.router(rows))
        sparse = self.post_feedforward_layernorm_2(sparse.view_as(residual))
        out: Tensor = self.post_feedforward_layernorm_1(dense) + sparse
        return out
