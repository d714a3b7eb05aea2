"""The one table of tensor names: what a Gemma 4 target and its drafter consist of.

Maps the names of Paceline's modules to those in Hugging Face files, with the shape that the
config implies. Everything expected must be there and everything there must be expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from paceline.checkpoint.safetensors_file import TensorEntry
from paceline.checkpoint.strict_json import shown
from paceline.config import DecoderConfig, DrafterConfig, LayerSpec, TargetConfig
from paceline.errors import CheckpointError

TensorKind = Literal["weight", "token_ordering"]

DTYPES: dict[TensorKind, tuple[str, ...]] = {
    "weight": ("BF16", "F16", "F32"),
    "token_ordering": ("I64",),
}

TARGET_PREFIXES = ("model.language_model.", "model.")
"""Before the target's names in a multimodal checkpoint, and in a text-only one."""

OTHER_MODALITIES = (
    "model.vision_tower.",
    "model.vision_embedder.",
    "model.embed_vision.",
    "model.audio_tower.",
    "model.embed_audio.",
)
"""Tensors of images and sound, skipped knowingly: Paceline runs the text part."""

OUTPUT_HEAD = "lm_head.weight"
MAX_CANDIDATES = 2000  # compared for a suggestion; a hostile file may hold many more
UNUSED_KV = ("k_proj.weight", "v_proj.weight", "k_norm.weight", "v_norm.weight")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor that a model needs.

    Args:
        name: in the state of `runtime.torch.models`.
        file_name: in a Hugging Face file; for a target without its prefix.
    """

    name: str
    file_name: str
    shape: tuple[int, ...]
    kind: TensorKind = "weight"


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """Every tensor of one model, and the names that its files may hold besides.

    Args:
        prefix: of the file names of all `specs`.
        unused: full file names that are accepted and not read.
        embedding: full file name of the tied embedding and output matrix.
    """

    specs: tuple[TensorSpec, ...]
    prefix: str
    unused: frozenset[str]
    embedding: str

    def file_name(self, spec: TensorSpec) -> str:
        return self.prefix + spec.file_name


def target_table(config: TargetConfig, prefix: str = "model.") -> NameTable:
    """The tensors of a target (reference section 5.1)."""
    hidden, width = config.hidden_size, config.per_layer_size
    shapes = {"embed_tokens.weight": (config.vocab_size, hidden), "norm.weight": (hidden,)}
    if width:
        packed = config.num_layers * width
        shapes |= {
            "embed_tokens_per_layer.weight": (config.per_layer_vocab_size, packed),
            "per_layer_model_projection.weight": (packed, hidden),
            "per_layer_projection_norm.weight": (width,),
        }
    for layer in config.layers:
        extra = _per_layer_shapes(config) | _expert_shapes(config)
        shapes |= _in_layer(layer, _layer_shapes(config, layer) | extra)
    specs = [TensorSpec(name=name, file_name=name, shape=shapes[name]) for name in shapes]
    return NameTable(
        specs=tuple(specs),
        prefix=prefix,
        unused=frozenset(prefix + name for name in _unused_kv(config)),
        embedding=prefix + "embed_tokens.weight",
    )


def drafter_table(config: DrafterConfig) -> NameTable:
    """The tensors of a drafter (reference section 5.2)."""
    hidden, wide = config.hidden_size, config.target_hidden_size
    stack = {"embed_tokens.weight": (config.vocab_size, hidden), "norm.weight": (hidden,)}
    for layer in config.layers:
        stack |= _in_layer(layer, _layer_shapes(config, layer))
    around = {"pre_projection.weight": (hidden, 2 * wide), "post_projection.weight": (wide, hidden)}
    if config.num_centroids:
        around["masked_embedding.centroids.weight"] = (config.num_centroids, hidden)
    specs = [TensorSpec(name=name, file_name="model." + name, shape=stack[name]) for name in stack]
    specs += [TensorSpec(name=name, file_name=name, shape=around[name]) for name in around]
    if config.num_centroids:
        name = "masked_embedding.token_ordering"
        shape = (config.vocab_size,)
        specs.append(TensorSpec(name=name, file_name=name, shape=shape, kind="token_ordering"))
    return NameTable(
        specs=tuple(specs),
        prefix="",
        unused=frozenset("model." + name for name in _unused_kv(config)),
        embedding="model.embed_tokens.weight",
    )


Shapes = dict[str, tuple[int, ...]]


def _in_layer(layer: LayerSpec, shapes: Shapes) -> Shapes:
    return {f"layers.{layer.index}.{name}": shape for name, shape in shapes.items()}


def _layer_shapes(config: DecoderConfig, layer: LayerSpec) -> Shapes:
    hidden, ffn = config.hidden_size, layer.ffn_size
    query_size = config.num_heads * layer.head_dim
    kv_size = layer.num_kv_heads * layer.head_dim
    shapes: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "pre_feedforward_layernorm.weight": (hidden,),
        "post_feedforward_layernorm.weight": (hidden,),
        "layer_scalar": (1,),
        "self_attn.q_proj.weight": (query_size, hidden),
        "self_attn.q_norm.weight": (layer.head_dim,),
        "self_attn.o_proj.weight": (hidden, query_size),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    if layer.owns_kv:
        shapes["self_attn.k_proj.weight"] = (kv_size, hidden)
        shapes["self_attn.k_norm.weight"] = (layer.head_dim,)
        if not layer.values_from_keys:
            shapes["self_attn.v_proj.weight"] = (kv_size, hidden)
    return shapes


def _per_layer_shapes(config: TargetConfig) -> Shapes:
    if not config.per_layer_size:
        return {}
    return {
        "per_layer_input_gate.weight": (config.per_layer_size, config.hidden_size),
        "per_layer_projection.weight": (config.hidden_size, config.per_layer_size),
        "post_per_layer_input_norm.weight": (config.hidden_size,),
    }


def _expert_shapes(config: TargetConfig) -> Shapes:
    if not config.num_experts:
        return {}
    experts, hidden, ffn = config.num_experts, config.hidden_size, config.expert_ffn_size
    return {
        "router.proj.weight": (experts, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (experts,),
        "experts.gate_up_proj": (experts, 2 * ffn, hidden),
        "experts.down_proj": (experts, hidden, ffn),
        "pre_feedforward_layernorm_2.weight": (hidden,),
        "post_feedforward_layernorm_1.weight": (hidden,),
        "post_feedforward_layernorm_2.weight": (hidden,),
    }


def _unused_kv(config: DecoderConfig) -> list[str]:
    """Projections that released files carry for layers that read another layer's KV."""
    shared = range(config.first_shared_layer, config.num_layers)
    return [f"layers.{i}.self_attn.{name}" for i in shared for name in UNUSED_KV]


def target_prefix(names: Iterable[str], where: str) -> str:
    """Which of `TARGET_PREFIXES` a target's file uses."""
    present = set(names)
    for prefix in TARGET_PREFIXES:
        if prefix + "embed_tokens.weight" in present:
            return prefix
    raise CheckpointError(
        f"{where} is not a Gemma 4: it holds neither "
        + " nor ".join(prefix + "embed_tokens.weight" for prefix in TARGET_PREFIXES)
        + "."
    )


def check_tensors(
    table: NameTable,
    entries: Mapping[str, TensorEntry],
    where: str,
    *,
    dtypes: Mapping[TensorKind, tuple[str, ...]] = DTYPES,
    source: str = "config.json",
) -> None:
    """Refuse files that lack a tensor, hold one of a wrong shape or type, or one too many.

    `OUTPUT_HEAD` is left to the caller: whether it equals the embedding is in the data.

    Args:
        dtypes: types in which each kind of tensor may be stored.
        source: what the shapes were taken from, for messages.

    Raises:
        CheckpointError: names the tensor.
    """
    expected = {table.file_name(spec): spec for spec in table.specs}
    unknown = [
        name
        for name in entries
        if name not in expected
        and name not in table.unused
        and name != OUTPUT_HEAD
        and not name.startswith(OTHER_MODALITIES)
    ]
    missing = [name for name in expected if name not in entries]
    if missing:
        raise CheckpointError(
            f"{where} lacks {missing[0]}{_and_more(missing)}."
            + _close_match(missing[0], unknown, "It holds {}, which no Gemma 4 has.")
        )
    if unknown:
        raise CheckpointError(
            f"{where} holds {shown(unknown[0])}{_and_more(unknown)}, which this model does not "
            "use." + _close_match(unknown[0], list(expected), "The closest name in use is {}.")
        )
    for name, spec in expected.items():
        _check_shape(spec, entries[name], where, source)
        _check_dtype(entries[name], where, dtypes[spec.kind])


def _check_shape(spec: TensorSpec, entry: TensorEntry, where: str, source: str) -> None:
    if entry.shape != spec.shape:
        raise CheckpointError(
            f"{entry.name} in {where} has the shape {list(entry.shape)}, but {source} implies "
            f"{list(spec.shape)}."
        )


def _check_dtype(entry: TensorEntry, where: str, allowed: tuple[str, ...]) -> None:
    if entry.dtype not in allowed:
        raise CheckpointError(
            f"{entry.name} in {where} is stored as {entry.dtype}: expected {' or '.join(allowed)}."
        )


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _close_match(name: str, candidates: list[str], sentence: str) -> str:
    matches = difflib.get_close_matches(name, candidates[:MAX_CANDIDATES], 1, cutoff=0.8)
    return " " + sentence.format(matches[0]) if matches else ""
