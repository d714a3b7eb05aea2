"""Paceline's configs written as the metadata of a GGUF file, as llama.cpp's converter would."""

from __future__ import annotations

from typing import Any

import numpy as np

from paceline.checkpoint.gguf_config import (
    ARCHITECTURE_KEY,
    BOS_KEY,
    CENTROID_TOP_K_KEY,
    DRAFTER,
    END_TOKENS_KEY,
    PAD_KEY,
    STILL,
    SUPPRESSED_KEY,
    TARGET,
    TEMPERATURE_KEY,
    TOP_K_KEY,
    TOP_P_KEY,
    Architecture,
    turning_pairs,
)
from paceline.checkpoint.gguf_format import BOOL, STRING, Value
from paceline.checkpoint.huggingface import GenerationDefaults
from paceline.config import DecoderConfig, DrafterConfig, TargetConfig
from paceline.errors import CheckpointError

QUANTISATION_VERSION = 2
FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 7, "BF16": 32}


def target_metadata(
    config: TargetConfig, defaults: GenerationDefaults, *, name: str, dtype: str
) -> dict[str, Value]:
    """The metadata of a target, its tokenizer left out."""
    keys = {
        "attention.shared_kv_layers": u32(config.num_kv_shared_layers),
        "embedding_length_per_layer_input": u32(config.per_layer_size),
    }
    if config.logit_softcap is not None:
        keys["final_logit_softcapping"] = f32(config.logit_softcap)
    if config.num_experts:
        keys |= {
            "expert_count": u32(config.num_experts),
            "expert_used_count": u32(config.num_experts_per_token),
            "expert_feed_forward_length": u32(config.expert_ffn_size),
        }
    result = _general(TARGET, name, dtype) | {
        TEMPERATURE_KEY: f32(defaults.temperature),
        TOP_K_KEY: Value("i32", defaults.top_k),
        TOP_P_KEY: f32(defaults.top_p),
        PAD_KEY: u32(config.pad_token_id),
        BOS_KEY: u32(config.bos_token_id),
        END_TOKENS_KEY: Value("u32", list(defaults.eos_token_ids), is_array=True),
    }
    if defaults.suppressed_token_ids:
        result[SUPPRESSED_KEY] = Value("i32", list(defaults.suppressed_token_ids), is_array=True)
    return result | _under(TARGET, _decoder_metadata(config) | keys)


def drafter_metadata(config: DrafterConfig, *, name: str, dtype: str) -> dict[str, Value]:
    """The metadata of a drafter, its tokenizer and its clusters left out."""
    keys = {
        "attention.shared_kv_layers": u32(config.num_layers),
        "embedding_length_per_layer_input": u32(0),
        "embedding_length_out": u32(config.target_hidden_size),
        "nextn_predict_layers": u32(config.num_layers),
    }
    result = _general(DRAFTER, name, dtype)
    if config.num_centroids:
        result[CENTROID_TOP_K_KEY] = u32(config.centroid_top_k)
    return result | _under(DRAFTER, _decoder_metadata(config) | keys)


def rope_divisors(config: DecoderConfig) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`rope_freqs`: one for each pair that turns, then what makes the others stand still."""
    pairs = config.global_head_dim // 2
    divisors = np.full(pairs, STILL, dtype=np.float32)
    divisors[: turning_pairs(config.rope_global.fraction, config.global_head_dim)] = 1.0
    return divisors


def u32(value: int) -> Value:
    return Value("u32", value)


def f32(value: float) -> Value:
    return Value("f32", value)


def _general(architecture: Architecture, name: str, dtype: str) -> dict[str, Value]:
    return {
        ARCHITECTURE_KEY: Value(STRING, architecture),
        "general.type": Value(STRING, "model"),
        "general.name": Value(STRING, name),
        "general.file_type": u32(FILE_TYPES[dtype]),
        "general.quantization_version": u32(QUANTISATION_VERSION),
    }


def _under(architecture: Architecture, keys: dict[str, Value]) -> dict[str, Value]:
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def _decoder_metadata(config: DecoderConfig) -> dict[str, Value]:
    if config.rope_sliding.fraction != 1.0:
        raise CheckpointError(
            "cannot write this model as GGUF: there, sliding layers turn every pair, but here only "
            f"{config.rope_sliding.fraction:g} of them."
        )
    sliding = [kind == "sliding" for kind in config.layer_kinds]
    layers = config.layers
    return {
        "block_count": u32(config.num_layers),
        "context_length": u32(config.context_length),
        "embedding_length": u32(config.hidden_size),
        "feed_forward_length": _one_or_all([layer.ffn_size for layer in layers]),
        "attention.head_count": u32(config.num_heads),
        "attention.head_count_kv": _one_or_all([layer.num_kv_heads for layer in layers]),
        "attention.key_length": u32(config.global_head_dim),
        "attention.value_length": u32(config.global_head_dim),
        "attention.key_length_swa": u32(config.head_dim),
        "attention.value_length_swa": u32(config.head_dim),
        "attention.layer_norm_rms_epsilon": f32(config.rms_norm_eps),
        "attention.sliding_window": u32(config.sliding_window),
        "attention.sliding_window_pattern": Value(BOOL, sliding, is_array=True),
        "rope.dimension_count": u32(config.global_head_dim),
        "rope.dimension_count_swa": u32(config.head_dim),
        "rope.freq_base": f32(config.rope_global.base),
        "rope.freq_base_swa": f32(config.rope_sliding.base),
    }


def _one_or_all(values: list[int]) -> Value:
    """A single number where all layers agree, as converters write it."""
    if len(set(values)) == 1:
        return u32(values[0])
    return Value("i32", values, is_array=True)
