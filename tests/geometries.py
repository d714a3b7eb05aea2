"""Tiny random checkpoints of the five released Gemma 4 geometries and their drafters.

Every structural feature of the release is kept (layer pattern, shared KV, head sizes, experts);
only the sizes are small. The objects are transformers' own: they are the outside judge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Gemma4UnifiedAssistantConfig,
    Gemma4UnifiedAssistantForCausalLM,
    Gemma4UnifiedForCausalLM,
    Gemma4UnifiedTextConfig,
)
from transformers.utils import logging

logging.set_verbosity_error()

VOCABULARY = 384
WINDOW = 16
CONTEXT = 512


def layer_types(sliding: int, layers: int) -> list[str]:
    period = ["sliding_attention"] * sliding + ["full_attention"]
    return [period[i % len(period)] for i in range(layers)]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One released size in miniature: keyword arguments of the transformers configs."""

    target: dict[str, Any]
    drafter: dict[str, Any] = field(default_factory=dict)  # the text part
    assistant: dict[str, Any] = field(default_factory=dict)  # the part around it
    unified: bool = False


SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "sliding_window": WINDOW,
    "max_position_embeddings": CONTEXT,
    "head_dim": 16,
    "global_head_dim": 32,
}
DRAFTER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "layer_types": layer_types(3, 4),
}
CENTROIDS = {"use_ordered_embeddings": True, "num_centroids": 24, "centroid_intermediate_top_k": 4}

GEOMETRIES: dict[str, Geometry] = {
    # per-layer embeddings, half of the layers share KV, double-wide MLP there
    "e2b": Geometry(
        target={
            "hidden_size": 64,
            "num_hidden_layers": 10,
            "layer_types": layer_types(4, 10),
            "num_kv_shared_layers": 5,
            "use_double_wide_mlp": True,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        drafter={"num_attention_heads": 2, "num_key_value_heads": 1},
        assistant=CENTROIDS,
    ),
    # the same without the double-wide MLP, two KV heads on both kinds of layer
    "e4b": Geometry(
        target={
            "hidden_size": 80,
            "num_hidden_layers": 9,
            "layer_types": layer_types(2, 9),
            "num_kv_shared_layers": 3,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        drafter={"num_attention_heads": 4, "num_key_value_heads": 2},
        assistant=CENTROIDS,
    ),
    # "unified": values from keys on full layers, one global KV head
    "12b": Geometry(
        target={
            "hidden_size": 96,
            "num_hidden_layers": 6,
            "layer_types": layer_types(5, 6),
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
        },
        drafter={
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
        },
        unified=True,
    ),
    # mixture of experts beside a dense MLP
    "26b": Geometry(
        target={
            "hidden_size": 64,
            "num_hidden_layers": 6,
            "layer_types": layer_types(5, 6),
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 3,
            "moe_intermediate_size": 24,
            "use_bidirectional_attention": "vision",
        },
        drafter={
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "use_bidirectional_attention": "vision",
        },
    ),
    # dense, values from keys
    "31b": Geometry(
        target={
            "hidden_size": 128,
            "num_hidden_layers": 8,
            "layer_types": layer_types(3, 8),
            "intermediate_size": 160,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "use_bidirectional_attention": "vision",
        },
        drafter={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "use_bidirectional_attention": "vision",
        },
    ),
}
NAMES = tuple(GEOMETRIES)


def target_config(name: str) -> Any:
    """transformers' text config of a target."""
    geometry = GEOMETRIES[name]
    kind = Gemma4UnifiedTextConfig if geometry.unified else Gemma4TextConfig
    settings = SHARED | {"final_logit_softcapping": 30.0, "eos_token_id": [1, 106]}
    return kind(**(settings | geometry.target))


def drafter_config(name: str) -> Any:
    """transformers' assistant config that fits `target_config(name)`."""
    geometry = GEOMETRIES[name]
    settings = SHARED | DRAFTER | geometry.drafter
    around = geometry.assistant | {"backbone_hidden_size": geometry.target["hidden_size"]}
    if geometry.unified:
        text = Gemma4UnifiedTextConfig(**settings)
        return Gemma4UnifiedAssistantConfig(text_config=text, **around)
    settings |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    return Gemma4AssistantConfig(text_config=Gemma4TextConfig(**settings), **around)


def target_model(name: str, seed: int = 0) -> Any:
    """A float32 transformers target with weights that make every branch matter."""
    kind = Gemma4UnifiedForCausalLM if GEOMETRIES[name].unified else Gemma4ForCausalLM
    return randomise(kind(target_config(name)), seed)


def drafter_model(name: str, seed: int = 1) -> Any:
    """A float32 transformers drafter that fits `target_model(name)`."""
    unified = GEOMETRIES[name].unified
    kind = Gemma4UnifiedAssistantForCausalLM if unified else Gemma4AssistantForCausalLM
    return randomise(kind(drafter_config(name)), seed)


def randomise(model: Any, seed: int) -> Any:
    """Overwrite every weight: norms and scalars away from one, matrices at unit gain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("token_ordering"):
                tensor.copy_(torch.randperm(len(tensor), generator=generator))
            elif key.endswith("layer_scalar"):
                tensor.copy_(0.5 + 0.5 * torch.rand(tensor.shape, generator=generator))
            elif tensor.dim() == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif "embed_tokens" in key or key == "lm_head.weight":
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            else:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
    return model.eval()
