"""A tiny target and drafter with random weights in a Hugging Face folder, with a tokenizer.

Its text makes no sense, but everything from the files to the answer is the real thing.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from paceline.checkpoint.huggingface import (
    GenerationDefaults,
    write_drafter_folder,
    write_target_folder,
)
from paceline.checkpoint.names import NameTable, drafter_table, target_table
from paceline.config import DrafterConfig, TargetConfig
from small_tokenizer import small_document, small_tokenizer

STACK = {
    "num_heads": 4,
    "num_kv_heads": 1,
    "num_global_kv_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "ffn_size": 64,
    "sliding_window": 16,
    "context_length": 256,
}


def write_random_pair(folder: Path, *, hidden_size: int = 48) -> Path:
    """Write the target into `folder` and its drafter into `folder/assistant`."""
    tokenizer = small_tokenizer()
    end = (tokenizer.control.eos, tokenizer.control.turn_end)
    target = TargetConfig(
        hidden_size=hidden_size,
        vocab_size=tokenizer.vocab_size,
        layer_kinds=("sliding", "global", "sliding", "global"),
        num_kv_shared_layers=2,
        per_layer_size=32,
        per_layer_vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.control.bos,
        eos_token_ids=end,
        **STACK,
    )
    drafter = DrafterConfig(
        hidden_size=32,
        vocab_size=tokenizer.vocab_size,
        layer_kinds=("sliding", "global"),
        target_hidden_size=target.hidden_size,
        num_centroids=tokenizer.vocab_size // 7,
        centroid_top_k=8,
        **STACK,
    )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}-tokenizer.json"
    file.write_text(json.dumps(small_document()), encoding="utf-8")
    write_target_folder(
        folder,
        target,
        random_weights(target_table(target), seed=0),
        defaults=GenerationDefaults(temperature=1.0, top_k=64, top_p=0.95, eos_token_ids=end),
        tokenizer_file=file,
    )
    weights = random_weights(drafter_table(drafter), seed=1)
    write_drafter_folder(folder / "assistant", drafter, weights)
    return folder


def random_weights(table: NameTable, seed: int) -> dict[str, np.ndarray]:
    """Norms near one, matrices at unit gain, a random order of tokens."""
    generator = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for spec in table.specs:
        if spec.kind == "token_ordering":
            weights[spec.name] = generator.permutation(spec.shape[0]).astype(np.int64)
        elif len(spec.shape) == 1:
            weights[spec.name] = (0.5 + generator.random(spec.shape)).astype(np.float32)
        else:
            noise = generator.standard_normal(spec.shape) * spec.shape[-1] ** -0.5
            weights[spec.name] = noise.astype(np.float32)
    return weights
