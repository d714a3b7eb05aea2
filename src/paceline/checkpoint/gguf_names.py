"""The names of llama.cpp's tensors against Paceline's (reference section 5.3).

Shapes need no table of their own: a GGUF file's dimensions, reversed, are those of `names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from paceline.checkpoint.names import (
    NameTable,
    TensorKind,
    TensorSpec,
    check_tensors,
    drafter_table,
    target_table,
)
from paceline.checkpoint.safetensors_file import TensorEntry
from paceline.config import DecoderConfig, DrafterConfig, TargetConfig

DTYPES: dict[TensorKind, tuple[str, ...]] = {
    "weight": ("Q4_0", "Q8_0", "BF16", "F16", "F32"),
    "token_ordering": ("I32", "I64"),
}

EMBEDDING = "token_embd.weight"
PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"
ROPE_FREQUENCIES = "rope_freqs.weight"
CENTROIDS, TOKEN_ORDERING = "masked_embd_centroids.weight", "masked_embd_ordering"

WHOLE_MODEL = {
    "embed_tokens.weight": EMBEDDING,
    "norm.weight": "output_norm.weight",
    "embed_tokens_per_layer.weight": PER_LAYER_EMBEDDING,
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
    "pre_projection.weight": "nextn.pre_projection.weight",
    "post_projection.weight": "nextn.post_projection.weight",
    "masked_embedding.centroids.weight": CENTROIDS,
    "masked_embedding.token_ordering": TOKEN_ORDERING,
}

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}

UNUSED_KV = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
_IN_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def gguf_name(name: str) -> str:
    """The name in a GGUF file of a tensor of Paceline's modules."""
    in_layer = _IN_LAYER.fullmatch(name)
    if in_layer is None:
        return WHOLE_MODEL[name]
    return layer_name(int(in_layer[1]), LAYER[in_layer[2]])


def layer_name(index: int, name: str) -> str:
    return f"blk.{index}.{name}"


def gguf_table(config: TargetConfig | DrafterConfig) -> NameTable:
    """Every tensor of a model under its GGUF name, and those that a file may hold besides."""
    table = target_table(config) if isinstance(config, TargetConfig) else drafter_table(config)
    return NameTable(
        specs=tuple(replace(spec, file_name=gguf_name(spec.name)) for spec in table.specs),
        prefix="",
        unused=frozenset([ROPE_FREQUENCIES, *_unused_kv(config)]),
        embedding=EMBEDDING,
    )


def without_centroids(table: NameTable) -> NameTable:
    """The tensors of a drafter that keeps its clusters in the metadata."""
    specs = tuple(x for x in table.specs if not in_metadata(x))
    return replace(table, specs=specs)


def in_metadata(spec: TensorSpec) -> bool:
    """llama.cpp (0.3.36's) refuses a file with centroid tensors, so ours are metadata."""
    return spec.file_name in (CENTROIDS, TOKEN_ORDERING)


def check_gguf_tensors(table: NameTable, entries: Mapping[str, TensorEntry], where: str) -> None:
    """
    Raises:
        CheckpointError: a tensor is missing, unknown, or of a wrong shape or type.
    """
    check_tensors(table, entries, where, dtypes=DTYPES, source="its metadata")


def _unused_kv(config: DecoderConfig) -> list[str]:
    """Converters copy these from released files for layers that read another layer's KV."""
    shared = range(config.first_shared_layer, config.num_layers)
    return [layer_name(index, name) for index in shared for name in UNUSED_KV]
