"""config.json of a Gemma 4 target or drafter, to and from Paceline's configs.

Absent keys take the values that transformers 5.22.2 gives them. What would change the arithmetic
in a way that Paceline does not have is refused by name (reference section 10).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.checkpoint.fields import Fields, unique
from paceline.checkpoint.strict_json import read_json_object, shown
from paceline.config import (
    MAX_CONTEXT,
    MAX_DIMENSION,
    MAX_LAYERS,
    MAX_VOCABULARY,
    DecoderConfig,
    DrafterConfig,
    LayerKind,
    RopeConfig,
    TargetConfig,
)
from paceline.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"

TEXT, UNIFIED_TEXT = "gemma4_text", "gemma4_unified_text"
TARGET_TYPES = {"gemma4": TEXT, "gemma4_unified": UNIFIED_TEXT}
DRAFTER_TYPES = {"gemma4_assistant": TEXT, "gemma4_unified_assistant": UNIFIED_TEXT}
"""model_type of the file -> of the text_config inside it."""

LAYER_KINDS: dict[str, LayerKind] = {"sliding_attention": "sliding", "full_attention": "global"}
LAYER_TYPES = {kind: name for name, kind in LAYER_KINDS.items()}

# Keys that may only have these values, and why.
FIXED: dict[str, tuple[tuple[object, ...], str]] = {
    "hidden_activation": (("gelu_pytorch_tanh",), "Gemma 4 has no other activation"),
    "attention_bias": ((False,), "Gemma 4 has no attention biases"),
    "attn_logit_softcapping": ((None,), "Gemma 4 does not cap attention scores"),
    "tie_word_embeddings": ((True,), "Gemma 4 has one matrix for embedding and output"),
    "use_bidirectional_attention": ((None, "vision"), "text is read left to right"),
    "rope_scaling": ((None,), "Gemma 4 has rope_parameters instead"),
    "quantization_config": ((None,), "quantised weights are not read yet: use the bfloat16 ones"),
}


def read_target_config(path: Path) -> TargetConfig:
    """The target that a config.json describes.

    Raises:
        CheckpointError: not a Gemma 4 target, or a value is missing, odd or not supported.
    """
    outer = Fields(read_json_object(path), str(path))
    model_type = outer.text("model_type", None)
    if model_type in DRAFTER_TYPES:
        raise CheckpointError(
            f"{path.parent} is a drafter ({model_type}): pass it as the drafter, and the target "
            "that it belongs to as the model."
        )
    if model_type in TARGET_TYPES:
        text = _text_config(outer, TARGET_TYPES[model_type])
    elif model_type in TARGET_TYPES.values():
        text = outer
    else:
        raise _not_a_gemma(path, model_type, (*TARGET_TYPES, *TARGET_TYPES.values()))
    try:
        return _target_config(outer, text, unified="unified" in str(model_type))
    except ConfigError as error:
        raise CheckpointError(f"{path} does not describe a Gemma 4: {error}") from error


def read_drafter_config(path: Path) -> DrafterConfig:
    """The drafter that a config.json describes.

    Raises:
        CheckpointError: not a Gemma 4 drafter, or a value is missing, odd or not supported.
    """
    outer = Fields(read_json_object(path), str(path))
    model_type = outer.text("model_type", None)
    if model_type in TARGET_TYPES or model_type in TARGET_TYPES.values():
        raise CheckpointError(
            f"{path.parent} is a target ({model_type}), not a drafter. The drafter of "
            "google/gemma-4-E2B-it, for example, is google/gemma-4-E2B-it-assistant."
        )
    if model_type not in DRAFTER_TYPES:
        raise _not_a_gemma(path, model_type, tuple(DRAFTER_TYPES))
    text = _text_config(outer, DRAFTER_TYPES[str(model_type)])
    try:
        return _drafter_config(outer, text, unified="unified" in str(model_type))
    except ConfigError as error:
        raise CheckpointError(f"{path} does not describe a drafter: {error}") from error


def _not_a_gemma(path: Path, model_type: object, expected: tuple[str, ...]) -> CheckpointError:
    return CheckpointError(
        f"{path} is not that of a Gemma 4: its model_type is {shown(model_type)}, expected one of "
        f"{', '.join(expected)}."
    )


def _text_config(outer: Fields, model_type: str) -> Fields:
    text = outer.child("text_config")
    if text is None:
        raise CheckpointError(f"{outer.where} has no text_config: the text model is not described.")
    text.fixed("model_type", (model_type,), f"it belongs inside {outer.values['model_type']}")
    return text


def _target_config(outer: Fields, text: Fields, *, unified: bool) -> TargetConfig:
    width, with_experts = 0, False
    if unified:
        text.fixed("hidden_size_per_layer_input", (0, None), "the unified model has none")
        text.fixed("enable_moe_block", (False,), "the unified model has none")
    else:
        width = text.whole("hidden_size_per_layer_input", 256, 0, MAX_DIMENSION, null=0)
        with_experts = text.flag("enable_moe_block", False)
    rows = text.whole("vocab_size_per_layer_input", 262_144, 0, MAX_VOCABULARY) if width else 0
    experts = _expert_sizes(text) if with_experts else (0, 0, 0)
    eos = outer.token_ids("eos_token_id", ()) + text.token_ids("eos_token_id", (1,))
    return TargetConfig(
        **_decoder_fields(outer, text, unified=unified),
        num_kv_shared_layers=text.whole("num_kv_shared_layers", 0, 0, MAX_LAYERS),
        double_wide_ffn=text.flag("use_double_wide_mlp", False),
        per_layer_size=width,
        per_layer_vocab_size=rows,
        logit_softcap=text.optional_number("final_logit_softcapping"),
        num_experts=experts[0],
        num_experts_per_token=experts[1],
        expert_ffn_size=experts[2],
        pad_token_id=text.whole("pad_token_id", 0, 0, MAX_VOCABULARY, null=0),
        bos_token_id=text.whole("bos_token_id", 2, 0, MAX_VOCABULARY, null=2),
        eos_token_ids=unique(eos),
    )


def _expert_sizes(text: Fields) -> tuple[int, int, int]:
    keys = ("num_experts", "top_k_experts", "moe_intermediate_size")
    for key in keys:
        if key not in text.values:
            text.refuse(key, "a whole number, because enable_moe_block is true", got=None)
    count, kept, ffn_size = (text.whole(key, 0, 1, MAX_DIMENSION) for key in keys)
    return count, kept, ffn_size


def _drafter_config(outer: Fields, text: Fields, *, unified: bool) -> DrafterConfig:
    for key in ("hidden_size_per_layer_input", "vocab_size_per_layer_input"):
        text.fixed(key, (0, None), "a drafter has no per-layer embeddings")
    for key in ("enable_moe_block", "use_double_wide_mlp"):
        text.fixed(key, (False,), "a drafter has plain feed-forward layers")
    fields = _decoder_fields(outer, text, unified=unified)
    layers = len(fields["layer_kinds"])
    text.fixed("num_kv_shared_layers", (0, layers), "all layers of a drafter read the target's KV")
    ordered = outer.flag("use_ordered_embeddings", False)
    centroids = outer.whole("num_centroids", 2048, 1, MAX_VOCABULARY)
    kept = outer.whole("centroid_intermediate_top_k", 32, 1, MAX_VOCABULARY)
    return DrafterConfig(
        **fields,
        target_hidden_size=outer.whole(
            "backbone_hidden_size", 3840 if unified else 1536, 1, MAX_DIMENSION
        ),
        num_centroids=centroids if ordered else 0,
        centroid_top_k=kept if ordered else 0,
    )


def _decoder_fields(outer: Fields, text: Fields, *, unified: bool) -> dict[str, Any]:
    for fields in (outer, text):
        for key, (allowed, reason) in FIXED.items():
            fields.fixed(key, allowed, reason)
    kinds = _layer_kinds(text)
    heads = _head_fields(text, kinds)
    rope = text.child("rope_parameters")
    rope_fields = _rope_fields(rope, kinds) if rope is not None else {}
    return (
        heads
        | rope_fields
        | {
            "hidden_size": text.whole("hidden_size", 2304, 1, MAX_DIMENSION),
            "vocab_size": text.whole("vocab_size", 262_144, 2, MAX_VOCABULARY),
            "layer_kinds": kinds,
            "num_heads": text.whole("num_attention_heads", 8, 1, MAX_DIMENSION),
            "ffn_size": text.whole("intermediate_size", 9216, 1, MAX_DIMENSION),
            "sliding_window": text.whole(
                "sliding_window", 1024 if unified else 512, 1, MAX_DIMENSION
            ),
            "context_length": text.whole(
                "max_position_embeddings", 262_144 if unified else 131_072, 1, MAX_CONTEXT
            ),
            "values_from_keys": text.flag("attention_k_eq_v", False),
            "rms_norm_eps": text.number("rms_norm_eps", 1e-6),
        }
    )


def _layer_kinds(text: Fields) -> tuple[LayerKind, ...]:
    """As transformers: five sliding to one full by default, and the last layer always full."""
    count = text.whole("num_hidden_layers", 30, 1, MAX_LAYERS)
    types = text.values.get("layer_types")
    if types is None:
        types = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)]
    if not isinstance(types, list) or len(types) != count:
        text.refuse("layer_types", f"a list of {count} names, one per layer")
    for name in types:
        if not isinstance(name, str) or name not in LAYER_KINDS:
            text.refuse("layer_types", f"only {' and '.join(LAYER_KINDS)}", got=name)
    return (*(LAYER_KINDS[name] for name in types[:-1]), "global")


def _head_fields(text: Fields, kinds: tuple[LayerKind, ...]) -> dict[str, int]:
    """KV heads and head sizes of the two layer kinds.

    Released files say `global_head_dim` and, counting only where values are keys,
    `num_global_key_value_heads`; transformers 5.22.2 writes `per_layer_config` in their place.
    """
    plain = (
        text.whole("head_dim", 256, 1, MAX_DIMENSION),
        text.whole("num_key_value_heads", 4, 1, MAX_DIMENSION),
    )
    overrides = text.child("per_layer_config")
    if overrides is not None:
        sliding, wide = _heads_by_kind(overrides, kinds, plain)
    else:
        own = text.whole("num_global_key_value_heads", 0, 1, MAX_DIMENSION, null=0)
        counts = text.flag("attention_k_eq_v", False) and own
        sliding = plain
        wide = (text.whole("global_head_dim", 512, 1, MAX_DIMENSION), own if counts else plain[1])
    return {
        "head_dim": sliding[0],
        "num_kv_heads": sliding[1],
        "global_head_dim": wide[0],
        "num_global_kv_heads": wide[1],
    }


def _heads_by_kind(
    overrides: Fields, kinds: tuple[LayerKind, ...], plain: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    layers = _overridden_layers(overrides, len(kinds))
    found: dict[LayerKind, tuple[int, int]] = {}
    for index, kind in enumerate(kinds):
        heads = plain
        layer = layers.get(index)
        if layer is not None:
            layer.only("head_dim", "num_key_value_heads")
            heads = (
                layer.whole("head_dim", plain[0], 1, MAX_DIMENSION),
                layer.whole("num_key_value_heads", plain[1], 1, MAX_DIMENSION),
            )
        if found.setdefault(kind, heads) != heads:
            raise CheckpointError(
                f"{overrides.where} gives layer {index} other heads than the {kind} layers before "
                "it: Gemma 4 has one geometry for each kind."
            )
    return found.get("sliding", plain), found["global"]


def _overridden_layers(overrides: Fields, count: int) -> dict[int, Fields]:
    """By index. transformers pads the indices with zeros to one width: "05" of 30 layers."""
    result: dict[int, Fields] = {}
    for name in overrides.values:
        index = int(name) if re.fullmatch("[0-9]{1,4}", name) else count
        if index >= count:
            overrides.refuse(name, f"only layers 0 to {count - 1}")
        layer = overrides.child(name)
        if layer is None or index in result:
            overrides.refuse(name, "one object for each layer")
        result[index] = layer
    return result


def _rope_fields(rope: Fields, kinds: tuple[LayerKind, ...]) -> dict[str, RopeConfig]:
    result = {}
    for kind in dict.fromkeys(kinds):
        name = LAYER_TYPES[kind]
        fields = rope.child(name)
        if fields is None:
            rope.refuse(name, "an object: Gemma 4 has one for each kind of layer", got=None)
        result[f"rope_{kind}"] = _rope(fields)
    return result


def _rope(fields: Fields) -> RopeConfig:
    kind = fields.text("rope_type", "default")
    if kind not in ("default", "proportional"):
        fields.refuse("rope_type", "'default' or 'proportional'")
    fields.fixed("factor", (None, 1, 1.0), "Gemma 4 does not scale its positions")
    base = fields.optional_number("rope_theta")
    if base is None:
        fields.refuse("rope_theta", "a number")
    fraction = fields.number("partial_rotary_factor", 1.0)
    if kind == "default" and fraction != 1.0:
        fields.refuse("partial_rotary_factor", "1, or the rope_type 'proportional'")
    return RopeConfig(base=base, fraction=fraction)


def target_json(config: TargetConfig, dtype: str) -> dict[str, Any]:
    """config.json of a text-only target in the form of the released files."""
    text = _decoder_json(config) | {
        "num_kv_shared_layers": config.num_kv_shared_layers,
        "use_double_wide_mlp": config.double_wide_ffn,
        "hidden_size_per_layer_input": config.per_layer_size,
        "vocab_size_per_layer_input": config.per_layer_vocab_size or config.vocab_size,
        "final_logit_softcapping": config.logit_softcap,
        "enable_moe_block": config.num_experts > 0,
        "num_experts": config.num_experts or None,
        "top_k_experts": config.num_experts_per_token or None,
        "moe_intermediate_size": config.expert_ffn_size or None,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
    }
    return {"architectures": ["Gemma4ForCausalLM"], "dtype": dtype} | text


def drafter_json(config: DrafterConfig, dtype: str) -> dict[str, Any]:
    """config.json of a drafter in the form of the released files."""
    text = _decoder_json(config) | {
        "num_kv_shared_layers": config.num_layers,
        "use_double_wide_mlp": False,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "final_logit_softcapping": None,
        "enable_moe_block": False,
    }
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "dtype": dtype,
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": config.target_hidden_size,
        "use_ordered_embeddings": config.num_centroids > 0,
        "num_centroids": config.num_centroids or 2048,
        "centroid_intermediate_top_k": config.centroid_top_k or 32,
        "tie_word_embeddings": True,
        "text_config": text,
    }


def _decoder_json(config: DecoderConfig) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model_type": TEXT,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "layer_types": [LAYER_TYPES[kind] for kind in config.layer_kinds],
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_global_key_value_heads": config.num_global_kv_heads,
        "head_dim": config.head_dim,
        "global_head_dim": config.global_head_dim,
        "intermediate_size": config.ffn_size,
        "sliding_window": config.sliding_window,
        "max_position_embeddings": config.context_length,
        "attention_k_eq_v": config.values_from_keys,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {
            LAYER_TYPES[kind]: _rope_json(config.rope(kind)) for kind in LAYER_TYPES
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
    }
    if not config.values_from_keys and config.num_global_kv_heads != config.num_kv_heads:
        # The released keys cannot say this: there the global count needs attention_k_eq_v.
        result["per_layer_config"] = {
            str(layer.index): {
                "head_dim": layer.head_dim,
                "num_key_value_heads": layer.num_kv_heads,
            }
            for layer in config.layers
            if layer.kind == "global"
        }
    return result


def _rope_json(rope: RopeConfig) -> Mapping[str, Any]:
    if rope.fraction == 1.0:
        return {"rope_type": "default", "rope_theta": rope.base}
    return {
        "rope_type": "proportional",
        "rope_theta": rope.base,
        "partial_rotary_factor": rope.fraction,
    }
