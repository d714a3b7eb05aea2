"""A Gemma-4-shaped pair with 16 tokens and random weights: small enough for statistics.

Every part of a real one is there: sliding and global layers, shared KV, per-layer embeddings, a
drafter with a centroid head.
"""

from __future__ import annotations

from functools import cache

import torch

from fakes import FakeTokenizer
from paceline.checkpoint.huggingface import GenerationDefaults
from paceline.config import DrafterConfig, TargetConfig
from paceline.loading import LoadedPair
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.runtime.torch.models import DrafterModel, TargetModel
from paceline.runtime.torch.target import TorchTarget

VOCAB_SIZE = 16
WINDOW = 8
STACK = {
    "vocab_size": VOCAB_SIZE,
    "num_heads": 2,
    "num_kv_heads": 1,
    "num_global_kv_heads": 1,
    "head_dim": 8,
    "global_head_dim": 16,
    "ffn_size": 32,
    "sliding_window": WINDOW,
    "context_length": 320,
}


@cache
def tiny_pair() -> LoadedPair:
    """Nothing ends its answers."""
    target = TargetModel(
        TargetConfig(
            hidden_size=32,
            layer_kinds=("sliding", "global", "sliding", "global"),
            num_kv_shared_layers=2,
            per_layer_size=4,
            per_layer_vocab_size=VOCAB_SIZE,
            **STACK,
        )
    )
    drafter = DrafterModel(
        DrafterConfig(
            hidden_size=16,
            layer_kinds=("sliding", "global"),
            target_hidden_size=32,
            num_centroids=8,
            centroid_top_k=6,
            **STACK,
        )
    )
    for seed, model in enumerate((target, drafter)):
        _randomise(model, torch.Generator().manual_seed(seed))
    return LoadedPair(
        target=TorchTarget(target),
        drafter=TorchDrafter(drafter, target),
        tokenizer=FakeTokenizer(),
        defaults=GenerationDefaults(temperature=1.0),
        name="tiny",
    )


def _randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Scores that differ by about one, attention that looks at few keys."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.data.copy_(1.0 + 0.2 * noise)
        elif name == "embed_tokens.weight":
            parameter.data.copy_(noise * parameter.shape[1] ** -0.5)
        else:
            parameter.data.copy_(noise * parameter.shape[-1] ** -0.5)
    model.requires_grad_(False)
