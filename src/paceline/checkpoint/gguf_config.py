"""The metadata of a GGUF Gemma 4, read into Paceline's configs; `gguf_metadata` is the reverse.

Keys and their meaning are llama.cpp's (`gemma4`, `gemma4-assistant`). Keys that begin with
`paceline.` are ours: llama.cpp passes over what it does not know.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from paceline.checkpoint.fields import Fields, unique
from paceline.checkpoint.gguf_file import ArrayValue, GgufFile
from paceline.checkpoint.gguf_names import (
    CENTROIDS,
    EMBEDDING,
    PER_LAYER_EMBEDDING,
    ROPE_FREQUENCIES,
    layer_name,
)
from paceline.checkpoint.huggingface import GenerationDefaults
from paceline.checkpoint.strict_json import shown
from paceline.config import (
    MAX_CONTEXT,
    MAX_DIMENSION,
    MAX_LAYERS,
    MAX_VOCABULARY,
    DrafterConfig,
    LayerKind,
    RopeConfig,
    TargetConfig,
)
from paceline.errors import CheckpointError, ConfigError

Architecture = Literal["gemma4", "gemma4-assistant"]
TARGET: Architecture = "gemma4"
DRAFTER: Architecture = "gemma4-assistant"

STILL = 1e30  # divisor in rope_freqs of a pair that does not turn

ARCHITECTURE_KEY = "general.architecture"
TEMPERATURE_KEY, TOP_K_KEY, TOP_P_KEY = (
    f"general.sampling.{name}" for name in ("temp", "top_k", "top_p")
)
PAD_KEY, BOS_KEY, EOS_KEY, EOT_KEY, EOM_KEY = (
    f"tokenizer.ggml.{name}_token_id" for name in ("padding", "bos", "eos", "eot", "eom")
)
SUPPRESSED_KEY = "tokenizer.ggml.suppress_tokens"
END_TOKENS_KEY = "paceline.eos_token_ids"
CENTROIDS_KEY, ORDERING_KEY = "paceline.centroids", "paceline.token_ordering"
CENTROID_TOP_K_KEY = "paceline.centroid_top_k"
CENTROID_TOP_K = 32  # of every released drafter; llama.cpp has no key for it


class ModelFields(Fields):
    """The metadata of one model; short keys stand for those under its architecture."""

    def __init__(self, file: GgufFile, architecture: Architecture) -> None:
        super().__init__(dict(file.metadata), str(file.path))
        self.file = file
        self.architecture = architecture

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def size(self, name: str, high: int = MAX_DIMENSION, low: int = 1) -> int:
        """A whole number that must be there."""
        key = self.key(name)
        self.require(key)
        return self.whole(key, 0, low, high)

    def real(self, name: str) -> float:
        """A number that must be there."""
        key = self.key(name)
        self.require(key)
        return self.number(key, 0.0)

    def require(self, key: str) -> None:
        if key not in self.values:
            raise CheckpointError(
                f"{self.where} lacks the metadata key {key}: it is no complete Gemma 4. Download "
                "it again, or convert the model again."
            )

    def per_layer(self, name: str, count: int) -> tuple[int, ...]:
        """One number for all layers, or an array with one for each."""
        key = self.key(name)
        self.require(key)
        value = self.values[key]
        if not isinstance(value, ArrayValue):
            return (self.whole(key, 0, 0, MAX_DIMENSION),) * count
        if value.length != count or value.kind[0] not in "iub":
            self.refuse(key, f"one whole number for each of the {count} layers")
        numbers = [int(x) for x in value.numbers()]
        if not all(0 <= x <= MAX_DIMENSION for x in numbers):
            self.refuse(key, f"numbers from 0 to {MAX_DIMENSION}", got=numbers)
        return tuple(numbers)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids; none where absent."""
        value = self.values.get(key)
        if not isinstance(value, ArrayValue):
            return self.token_ids(key, ())
        if value.kind[0] not in "iu":
            self.refuse(key, "token ids")
        return Fields({key: value.numbers().tolist()}, self.where).token_ids(key, ())

    def uniform(self, name: str, values: tuple[int, ...], what: str) -> int:
        if len(set(values)) != 1:
            self.refuse(self.key(name), f"the same number for all {what}", got=list(values))
        return values[0]


def read_target_config(file: GgufFile) -> TargetConfig:
    """The target that a file's metadata describes.

    Raises:
        CheckpointError: not a Gemma 4 target, or a value is missing, odd or not supported.
    """
    fields = ModelFields(file, _architecture(file, TARGET))
    try:
        return _target_config(fields)
    except ConfigError as error:
        raise CheckpointError(f"{file.path} does not describe a Gemma 4: {error}") from error


def read_drafter_config(file: GgufFile) -> DrafterConfig:
    """The drafter that a file's metadata describes.

    Raises:
        CheckpointError: not a Gemma 4 drafter, or a value is missing, odd or not supported.
    """
    fields = ModelFields(file, _architecture(file, DRAFTER))
    try:
        return _drafter_config(fields)
    except ConfigError as error:
        raise CheckpointError(f"{file.path} does not describe a drafter: {error}") from error


def _architecture(file: GgufFile, expected: Architecture) -> Architecture:
    got = file.metadata.get(ARCHITECTURE_KEY)
    parts = file.metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"{file.path} is one of {shown(parts)} parts: join them with llama-gguf-split --merge."
        )
    if got == expected:
        return expected
    if got == TARGET:
        raise CheckpointError(f"{file.path} is a target, not a drafter: pass it as the model.")
    if got == DRAFTER:
        raise CheckpointError(
            f"{file.path} is a drafter: pass it as the drafter, and the target that it belongs to "
            "as the model."
        )
    if got == "gemma4_assistant":
        raise CheckpointError(
            f"{file.path} is a drafter in a form that llama.cpp has given up: convert the drafter "
            "again."
        )
    raise CheckpointError(
        f"{file.path} is not that of a Gemma 4: its {ARCHITECTURE_KEY} is {shown(got)}, expected "
        f"{expected}."
    )


def _target_config(fields: ModelFields) -> TargetConfig:
    common = _decoder_fields(fields)
    layers = len(common["layer_kinds"])
    shared = fields.whole(fields.key("attention.shared_kv_layers"), 0, 0, layers - 1)
    ffn_size, doubled = _ffn_size(fields, layers, shared)
    width = fields.whole(fields.key("embedding_length_per_layer_input"), 0, 0, MAX_DIMENSION)
    experts = fields.whole(fields.key("expert_count"), 0, 0, MAX_DIMENSION)
    kept, expert_ffn = (
        (fields.size("expert_used_count"), fields.size("expert_feed_forward_length"))
        if experts
        else (0, 0)
    )
    return TargetConfig(
        **common,
        ffn_size=ffn_size,
        double_wide_ffn=doubled,
        values_from_keys=_values_from_keys(fields.file, common["layer_kinds"], layers - shared),
        num_kv_shared_layers=shared,
        per_layer_size=width,
        per_layer_vocab_size=_rows(fields.file, PER_LAYER_EMBEDDING) if width else 0,
        logit_softcap=fields.optional_number(fields.key("final_logit_softcapping")),
        num_experts=experts,
        num_experts_per_token=kept,
        expert_ffn_size=expert_ffn,
        pad_token_id=fields.whole(PAD_KEY, 0, 0, MAX_VOCABULARY),
        bos_token_id=fields.whole(BOS_KEY, 2, 0, MAX_VOCABULARY),
        eos_token_ids=_end_token_ids(fields) or (1,),
    )


def _drafter_config(fields: ModelFields) -> DrafterConfig:
    common = _decoder_fields(fields)
    layers = len(common["layer_kinds"])
    key = fields.key("nextn_predict_layers")
    if fields.whole(key, layers, 0, MAX_LAYERS) != layers:
        fields.refuse(key, f"{layers}: all layers of a drafter predict")
    ffn = fields.per_layer("feed_forward_length", layers)
    clusters = _num_centroids(fields)
    kept = min(CENTROID_TOP_K, clusters) if clusters else 0
    return DrafterConfig(
        **common,
        ffn_size=fields.uniform("feed_forward_length", ffn, "layers"),
        target_hidden_size=fields.size("embedding_length_out"),
        num_centroids=clusters,
        centroid_top_k=fields.whole(CENTROID_TOP_K_KEY, kept, 1, clusters) if clusters else 0,
    )


def _decoder_fields(fields: ModelFields) -> dict[str, Any]:
    _refuse_scaled_positions(fields)
    kinds = _layer_kinds(fields)
    count = len(kinds)
    heads = fields.per_layer("attention.head_count", count)
    kv_heads = _kv_heads(fields, kinds)
    head_dim, global_head_dim = (_head_dim(fields, suffix) for suffix in ("_swa", ""))
    base = fields.key("rope.freq_base")
    fraction = _rope_fraction(fields.file, global_head_dim) if "global" in kinds else 1.0
    return {
        "layer_kinds": kinds,
        "hidden_size": fields.size("embedding_length"),
        "vocab_size": _rows(fields.file, EMBEDDING),
        "num_heads": fields.uniform("attention.head_count", heads, "layers"),
        "num_kv_heads": kv_heads["sliding"],
        "num_global_kv_heads": kv_heads["global"],
        "head_dim": head_dim,
        "global_head_dim": global_head_dim,
        "sliding_window": fields.size("attention.sliding_window"),
        "context_length": fields.size("context_length", MAX_CONTEXT),
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon"),
        "rope_sliding": RopeConfig(base=fields.number(base + "_swa", 10_000.0)),
        "rope_global": RopeConfig(base=fields.number(base, 1_000_000.0), fraction=fraction),
    }


def _refuse_scaled_positions(fields: ModelFields) -> None:
    reason = "Gemma 4 does not scale its positions"
    fields.fixed(fields.key("rope.scaling.type"), ("none",), reason)
    fields.fixed(fields.key("rope.scaling.factor"), (1, 1.0), reason)
    fields.fixed(fields.key("rope.scale_linear"), (1, 1.0), reason)


def _layer_kinds(fields: ModelFields) -> tuple[LayerKind, ...]:
    count = fields.size("block_count", MAX_LAYERS)
    name = "attention.sliding_window_pattern"
    fields.require(fields.key(name))
    if not isinstance(fields.values[fields.key(name)], ArrayValue):
        fields.refuse(fields.key(name), f"an array of {count} flags, one per layer")
    pattern = fields.per_layer(name, count)
    if not set(pattern) <= {0, 1}:
        fields.refuse(fields.key(name), "only true and false", got=list(pattern))
    return tuple("sliding" if sliding else "global" for sliding in pattern)


def _kv_heads(fields: ModelFields, kinds: tuple[LayerKind, ...]) -> dict[LayerKind, int]:
    name = "attention.head_count_kv"
    counts = fields.per_layer(name, len(kinds))
    found: dict[LayerKind, int] = {}
    for kind in dict.fromkeys(kinds):
        of_kind = tuple(x for x, y in zip(counts, kinds, strict=True) if y == kind)
        found[kind] = fields.uniform(name, of_kind, f"{kind} layers")
    some = next(iter(found.values()))
    return {"sliding": found.get("sliding", some), "global": found.get("global", some)}


def _head_dim(fields: ModelFields, suffix: str) -> int:
    size = fields.size("attention.key_length" + suffix)
    for name in ("attention.value_length", "rope.dimension_count"):
        key = fields.key(name + suffix)
        if fields.whole(key, size, 1, MAX_DIMENSION) != size:
            fields.refuse(key, f"{size}, the length of keys")
    return size


def _ffn_size(fields: ModelFields, layers: int, shared: int) -> tuple[int, bool]:
    """(size, whether layers without KV of their own have twice that)"""
    name = "feed_forward_length"
    sizes = fields.per_layer(name, layers)
    own = fields.uniform(name, sizes[: layers - shared], "layers with KV of their own")
    if not shared:
        return own, False
    others = fields.uniform(name, sizes[layers - shared :], "layers that read another's KV")
    if others not in (own, 2 * own):
        fields.refuse(fields.key(name), f"{own} or {2 * own} for the last layers", got=others)
    return own, others != own


def _rows(file: GgufFile, name: str) -> int:
    entry = file.entries.get(name)
    if entry is None or len(entry.shape) != 2:
        raise CheckpointError(f"{file.path} has no matrix {name}: it is no complete Gemma 4.")
    return entry.shape[0]


def _values_from_keys(file: GgufFile, kinds: tuple[LayerKind, ...], owners: int) -> bool:
    """llama.cpp has no key for it either: a layer without attn_v takes its keys."""
    return any(
        kinds[index] == "global" and layer_name(index, "attn_v.weight") not in file.entries
        for index in range(owners)
    )


def _rope_fraction(file: GgufFile, head_dim: int) -> float:
    """How many of the pairs turn, from the divisors of the global layers' frequencies."""
    entry = file.entries.get(ROPE_FREQUENCIES)
    if entry is None or entry.dtype != "F32" or entry.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{file.path} needs {ROPE_FREQUENCIES} with {head_dim // 2} values of type F32: it is "
            "no complete Gemma 4."
        )
    divisors = file.tensor(ROPE_FREQUENCIES)
    turning = int(np.count_nonzero(divisors == 1.0))
    if not turning or np.any(divisors[:turning] != 1.0) or not np.all(divisors[turning:] >= STILL):
        raise CheckpointError(
            f"{ROPE_FREQUENCIES} in {file.path} must be ones, then {STILL:g} for the pairs that do "
            "not turn: Gemma 4 has no other scaling."
        )
    return rope_fraction(turning, head_dim)


def rope_fraction(turning: int, head_dim: int) -> float:
    """The fraction from which `turning_pairs` gives the same number again."""
    fraction = 2 * turning / head_dim
    if turning_pairs(fraction, head_dim) < turning:
        fraction = float(np.nextafter(fraction, 2.0))
    return fraction


def turning_pairs(fraction: float, head_dim: int) -> int:
    return int(fraction * head_dim // 2)


def _num_centroids(fields: ModelFields) -> int:
    """From a tensor or from our metadata; 0 for a drafter with a dense head."""
    if CENTROIDS in fields.file.entries:
        return _rows(fields.file, CENTROIDS)
    value = fields.values.get(CENTROIDS_KEY)
    if value is None:
        return 0
    hidden = fields.size("embedding_length")
    if not isinstance(value, ArrayValue) or not value.length or value.length % hidden:
        fields.refuse(CENTROIDS_KEY, f"an array of vectors of {hidden} numbers")
    return value.length // hidden


def _end_token_ids(fields: ModelFields) -> tuple[int, ...]:
    """The tokens that end an answer: our own list, else the ids that llama.cpp knows."""
    own = fields.ids(END_TOKENS_KEY)
    return unique(own or [x for key in (EOS_KEY, EOT_KEY, EOM_KEY) for x in fields.ids(key)])


def read_generation_defaults(
    file: GgufFile, config: TargetConfig, named_ends: tuple[int, ...] = ()
) -> GenerationDefaults:
    """Sampling settings, end tokens and suppressed tokens; greedy where the file says nothing.

    Args:
        named_ends: tokens that llama.cpp takes for ends by their text; they count where the file
            has no list of ours.

    Raises:
        CheckpointError: a value is out of range.
    """
    fields = ModelFields(file, TARGET)
    said = any(key in fields.values for key in (TEMPERATURE_KEY, TOP_K_KEY, TOP_P_KEY))
    suppressed = fields.ids(SUPPRESSED_KEY)
    if any(token >= config.vocab_size for token in suppressed):
        fields.refuse(SUPPRESSED_KEY, f"ids below {config.vocab_size}", got=list(suppressed))
    ends = () if END_TOKENS_KEY in fields.values else named_ends
    try:
        return GenerationDefaults(
            temperature=fields.number(TEMPERATURE_KEY, 1.0 if said else 0.0),
            top_k=fields.whole(TOP_K_KEY, 0, 0, MAX_VOCABULARY),
            top_p=fields.number(TOP_P_KEY, 1.0),
            eos_token_ids=unique(config.eos_token_ids + ends),
            suppressed_token_ids=unique(suppressed),
        )
    except ConfigError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
