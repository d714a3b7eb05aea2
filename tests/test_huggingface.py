"""Folders of all geometries to and from transformers, the released configs, and hostile ones."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from transformers import (
    Gemma4AssistantForCausalLM,
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4VisionConfig,
)
from transformers.models.gemma4_unified.configuration_gemma4_unified import (
    Gemma4UnifiedAudioConfig,
    Gemma4UnifiedVisionConfig,
)

import geometries
from paceline.checkpoint import strict_json
from paceline.checkpoint.config_file import read_drafter_config, read_target_config
from paceline.checkpoint.huggingface import (
    GenerationDefaults,
    open_drafter,
    open_target,
    write_drafter_folder,
    write_target_folder,
)
from paceline.checkpoint.names import drafter_table, target_table
from paceline.config import DrafterConfig, RopeConfig, TargetConfig, check_pair
from paceline.errors import CheckpointError, ConfigError
from paceline.runtime.torch.models import DrafterModel, TargetModel

TARGET_FIELDS = {
    "e2b": {"num_kv_shared_layers": 5, "double_wide_ffn": True, "per_layer_size": 8},
    "e4b": {"num_kv_shared_layers": 3, "num_global_kv_heads": 2, "double_wide_ffn": False},
    "12b": {"values_from_keys": True, "num_global_kv_heads": 1, "per_layer_size": 0},
    "26b": {"num_experts": 8, "num_experts_per_token": 3, "expert_ffn_size": 24},
    "31b": {"values_from_keys": True, "num_kv_heads": 4, "num_global_kv_heads": 2},
}
COMMON_FIELDS = {
    "vocab_size": geometries.VOCABULARY,
    "sliding_window": geometries.WINDOW,
    "context_length": geometries.CONTEXT,
    "head_dim": 16,
    "global_head_dim": 32,
    "rope_sliding": RopeConfig(base=10_000.0),
    "rope_global": RopeConfig(base=1_000_000.0, fraction=0.25),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders that transformers wrote: NAME and NAME-assistant for each geometry."""
    folder = tmp_path_factory.mktemp("transformers")
    for name in geometries.NAMES:
        geometries.target_model(name).save_pretrained(folder / name)
        geometries.drafter_model(name).save_pretrained(folder / f"{name}-assistant")
    return folder


def values_of(weights):
    return {
        x.spec.name: np.concatenate([piece for _, piece in x.slices()]) for x in weights.tensors
    }


def arrays_of(weights):
    return {x.spec.name: np.array(x.data) for x in weights.tensors}


def link(source, folder, *, without=()):
    """A folder with the same files, to change some of them."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in without:
            os.link(path, folder / path.name)
    return folder


@pytest.mark.parametrize("name", geometries.NAMES)
def test_a_target_that_transformers_wrote(name, saved):
    model = geometries.target_model(name)
    opened = open_target(saved / name)
    expected = COMMON_FIELDS | TARGET_FIELDS[name] | {"logit_softcap": 30.0}
    assert {key: getattr(opened.config, key) for key in expected} == expected
    assert opened.config.eos_token_ids == (1, 106)
    state = model.state_dict()
    for key, values in values_of(opened.weights).items():
        assert np.array_equal(values, state["model." + key].numpy().ravel()), key
    assert {"model." + x.spec.name for x in opened.weights.tensors} | {"lm_head.weight"} == set(
        state
    )


@pytest.mark.parametrize("name", geometries.NAMES)
def test_a_drafter_that_transformers_wrote(name, saved):
    model = geometries.drafter_model(name)
    opened = open_drafter(saved / f"{name}-assistant")
    expected = COMMON_FIELDS | {"hidden_size": 32, "num_layers": 4, "first_shared_layer": 0}
    assert {key: getattr(opened.config, key) for key in expected} == expected
    assert opened.config.num_centroids == (24 if name in ("e2b", "e4b") else 0)
    state = model.state_dict()
    del state["lm_head.weight"]
    for weight in opened.weights.tensors:
        assert np.array_equal(weight.data, state.pop(weight.where.partition(" ")[0]).numpy())
    assert not state
    check_pair(open_target(saved / name).config, opened.config)


@pytest.mark.parametrize("name", geometries.NAMES)
def test_transformers_loads_the_target_that_we_write(name, saved, tmp_path):
    """Down to the bits of the logits. A unified target becomes a plain one: same arithmetic."""
    model = geometries.target_model(name)
    opened = open_target(saved / name)
    write_target_folder(tmp_path, opened.config, arrays_of(opened.weights), dtype="F32")
    ours, info = Gemma4ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert ours.dtype == torch.float32
    expected = model.state_dict()
    state = ours.state_dict()
    assert state.keys() == expected.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, expected[key]), key
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, model(ids).logits)
    assert open_target(tmp_path).config == opened.config


@pytest.mark.parametrize("name", geometries.NAMES)
def test_transformers_loads_the_drafter_that_we_write(name, saved, tmp_path):
    model = geometries.drafter_model(name)
    opened = open_drafter(saved / f"{name}-assistant")
    write_drafter_folder(tmp_path, opened.config, arrays_of(opened.weights), dtype="F32")
    ours, info = Gemma4AssistantForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = model.state_dict()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected.pop(key)), key
    assert not expected
    assert ours.generation_config.num_assistant_tokens == 4
    assert open_drafter(tmp_path).config == opened.config


def test_bfloat16_is_what_transformers_would_have_stored(saved, tmp_path):
    """The default: float32 arrays, stored as BF16 rounded to nearest even."""
    opened = open_target(saved / "e2b")
    write_target_folder(tmp_path, opened.config, arrays_of(opened.weights))
    expected = geometries.target_model("e2b").bfloat16().state_dict()
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for key, tensor in stored.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[key]), key
    ours = Gemma4ForCausalLM.from_pretrained(tmp_path)
    assert ours.dtype == torch.bfloat16
    assert {x.dtype for x in open_target(tmp_path).weights.tensors} == {"BF16"}


def test_sharded_folders_of_transformers(saved, tmp_path):
    model = geometries.target_model("26b")
    model.save_pretrained(tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole = values_of(open_target(saved / "26b").weights)
    for key, values in values_of(open_target(tmp_path).weights).items():
        assert np.array_equal(values, whole[key]), key


def multimodal(name):
    text = geometries.target_config(name)
    if name == "12b":
        config = Gemma4UnifiedConfig(
            text_config=text,
            vision_config=Gemma4UnifiedVisionConfig(
                mm_embed_dim=16, mm_posemb_size=8, output_proj_dims=text.hidden_size
            ),
            audio_config=Gemma4UnifiedAudioConfig(audio_embed_dim=8),
        )
        return Gemma4UnifiedForConditionalGeneration(config)
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        position_embedding_size=16,
    )
    audio = Gemma4AudioConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, output_proj_dims=16
    )
    return Gemma4ForConditionalGeneration(
        Gemma4Config(text_config=text, vision_config=vision, audio_config=audio)
    )


@pytest.mark.parametrize("name", ["e2b", "12b"])
def test_vision_and_audio_are_skipped_knowingly(name, saved, tmp_path):
    model = multimodal(name)
    model.save_pretrained(tmp_path)
    opened = open_target(tmp_path)
    assert opened.config == open_target(saved / name).config
    state = model.state_dict()
    for key, values in values_of(opened.weights).items():
        assert np.array_equal(values, state["model.language_model." + key].numpy().ravel())
    other = [key for key in state if key.startswith(("model.vision", "model.embed", "model.audio"))]
    assert other


@pytest.mark.parametrize("name", geometries.NAMES)
def test_the_table_is_that_of_the_torch_modules(name, saved):
    target = open_target(saved / name).config
    drafter = open_drafter(saved / f"{name}-assistant").config
    with torch.device("meta"):
        pairs = (
            (TargetModel(target), target_table(target)),
            (DrafterModel(drafter), drafter_table(drafter)),
        )
    for model, table in pairs:
        expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        assert {spec.name: spec.shape for spec in table.specs} == expected


# Released files (reference sections 9 and 10): values, and the parameters counted there.

RELEASED_COMMON = {
    "head_dim": 256,
    "global_head_dim": 512,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": False,
    "num_global_key_value_heads": None,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "use_bidirectional_attention": None,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1000000.0,
            "partial_rotary_factor": 0.25,
        },
    },
}
WIDE_COMMON = {
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "max_position_embeddings": 262144,
    "use_bidirectional_attention": "vision",
}


def sizes(hidden, layers, ffn, heads, kv_heads):
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size")
    keys += ("num_attention_heads", "num_key_value_heads")
    return dict(zip(keys, (hidden, layers, ffn, heads, kv_heads), strict=True))


RELEASED = {
    "e2b": (
        sizes(1536, 35, 6144, 8, 1)
        | {
            "layer_types": geometries.layer_types(4, 35),
            "num_kv_shared_layers": 20,
            "hidden_size_per_layer_input": 256,
            "use_double_wide_mlp": True,
        },
        4.63e9,
    ),
    "e4b": (
        sizes(2560, 42, 10240, 8, 2)
        | {"num_kv_shared_layers": 18, "hidden_size_per_layer_input": 256},
        7.46e9,
    ),
    "12b": (
        sizes(3840, 48, 15360, 16, 8) | WIDE_COMMON | {"num_global_key_value_heads": 1},
        11.91e9,
    ),
    "26b": (
        sizes(2816, 30, 2112, 16, 8)
        | WIDE_COMMON
        | {
            "num_global_key_value_heads": 2,
            "hidden_size_per_layer_input": None,
            "enable_moe_block": True,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
        },
        25.23e9,
    ),
    "31b": (
        sizes(5376, 60, 21504, 32, 16) | WIDE_COMMON | {"num_global_key_value_heads": 4},
        30.70e9,
    ),
}
RELEASED_DRAFTERS = {
    "e2b": (sizes(256, 4, 2048, 4, 1), 77.7e6),
    "e4b": (sizes(256, 4, 2048, 4, 2), 78.5e6),
    "12b": (sizes(1024, 4, 8192, 16, 8) | WIDE_COMMON | {"num_global_key_value_heads": 1}, 422.9e6),
    "26b": (sizes(1024, 4, 8192, 16, 8) | WIDE_COMMON | {"num_global_key_value_heads": 2}, 419.7e6),
    "31b": (
        sizes(1024, 4, 8192, 32, 16) | WIDE_COMMON | {"num_global_key_value_heads": 4},
        469.5e6,
    ),
}


def released_target(name):
    inner = "gemma4_unified_text" if name == "12b" else "gemma4_text"
    return {
        "model_type": "gemma4_unified" if name == "12b" else "gemma4",
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
        "text_config": RELEASED_COMMON | RELEASED[name][0] | {"model_type": inner},
        "vision_config": {"model_type": "gemma4_vision"},
    }


def released_drafter(name):
    inner = "gemma4_unified_text" if name == "12b" else "gemma4_text"
    text = RELEASED_COMMON | RELEASED_DRAFTERS[name][0]
    text |= {
        "model_type": inner,
        "layer_types": geometries.layer_types(3, 4),
        "num_kv_shared_layers": 4,
        "vocab_size_per_layer_input": 0,
        "final_logit_softcapping": None,
    }
    return {
        "model_type": "gemma4_unified_assistant" if name == "12b" else "gemma4_assistant",
        "backbone_hidden_size": RELEASED[name][0]["hidden_size"],
        "use_ordered_embeddings": name in ("e2b", "e4b"),
        "num_centroids": 2048,
        "centroid_intermediate_top_k": 32,
        "text_config": text,
    }


def config_file(folder, value):
    path = folder / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def parameters(table):
    return sum(int(np.prod(x.shape)) for x in table.specs if x.kind == "weight")


@pytest.mark.parametrize("name", geometries.NAMES)
def test_the_released_configs_have_the_published_sizes(name, tmp_path):
    target = read_target_config(config_file(tmp_path, released_target(name)))
    drafter = read_drafter_config(config_file(tmp_path, released_drafter(name)))
    # Published with three or four digits.
    assert parameters(target_table(target)) == pytest.approx(RELEASED[name][1], rel=1.1e-3)
    assert parameters(drafter_table(drafter)) == pytest.approx(RELEASED_DRAFTERS[name][1], rel=1e-3)
    assert target.eos_token_ids == (1, 106)
    check_pair(target, drafter)
    full = {i for i, kind in enumerate(target.layer_kinds) if kind == "global"}
    period = 5 if name == "e2b" else 6
    assert full == set(range(period - 1, target.num_layers, period))
    if name in ("e2b", "e4b"):
        donors = {"e2b": (13, 14), "e4b": (22, 23)}[name]
        assert (target.kv_layer("sliding"), target.kv_layer("global")) == donors
        assert len(drafter_table(drafter).specs) == 50
    else:
        assert len(drafter_table(drafter).specs) == 48


@pytest.mark.parametrize("name", geometries.NAMES)
def test_a_drafter_fits_no_other_target(name, tmp_path):
    drafter = read_drafter_config(config_file(tmp_path, released_drafter(name)))
    for other in geometries.NAMES:
        target = read_target_config(config_file(tmp_path, released_target(other)))
        if other == name:
            check_pair(target, drafter)
        else:
            with pytest.raises(CheckpointError, match="belongs to another target"):
                check_pair(target, drafter)


def test_absent_keys_take_the_values_of_transformers(tmp_path):
    from transformers import Gemma4TextConfig, Gemma4UnifiedTextConfig

    for kind in (Gemma4TextConfig, Gemma4UnifiedTextConfig):
        bare = read_target_config(config_file(tmp_path, {"model_type": kind.model_type}))
        written = kind()
        written.save_pretrained(tmp_path)
        assert read_target_config(tmp_path / "config.json") == bare


def test_a_last_sliding_layer_is_made_full_as_in_transformers(tmp_path):
    value = {"model_type": "gemma4_text", "num_hidden_layers": 2}
    value["layer_types"] = ["full_attention", "sliding_attention"]
    assert read_target_config(config_file(tmp_path, value)).layer_kinds == ("global", "global")


def test_global_kv_heads_count_only_where_values_are_keys(tmp_path):
    value = {"model_type": "gemma4_text", "num_global_key_value_heads": 2}
    assert read_target_config(config_file(tmp_path, value)).num_global_kv_heads == 4
    value["attention_k_eq_v"] = True
    assert read_target_config(config_file(tmp_path, value)).num_global_kv_heads == 2


def test_a_global_count_that_the_released_keys_cannot_say_survives_writing(saved, tmp_path):
    value = json.loads((saved / "e4b" / "config.json").read_text())
    for layer in value["per_layer_config"].values():
        layer["num_key_value_heads"] = 1
    config = read_target_config(config_file(tmp_path, value))
    assert (config.num_kv_heads, config.num_global_kv_heads) == (2, 1)
    table = target_table(config)
    weights = {spec.name: np.ones(spec.shape, np.float32) for spec in table.specs}
    write_target_folder(tmp_path / "ours", config, weights)
    assert open_target(tmp_path / "ours").config == config
    model = Gemma4ForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.model.layers[2].self_attn.k_proj.weight.shape[0] == 32


PLAIN = json.dumps({"model_type": "gemma4_text", "num_hidden_layers": 6})


def text(**changes):
    return json.loads(PLAIN) | changes


def rope(**changes):
    sliding = {"rope_type": "default", "rope_theta": 10000.0}
    full = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    return text(rope_parameters={"sliding_attention": sliding, "full_attention": full} | changes)


HOSTILE_TARGETS = {
    "empty": ("", "not valid JSON"),
    "a list": ("[]", "one JSON object"),
    "duplicate key": ('{"model_type": "gemma4_text", "model_type": "x"}', "occurs twice"),
    "infinite number": ('{"model_type": "gemma4_text", "rms_norm_eps": Infinity}', "Infinity"),
    "deep nesting": ('{"a":' + "[" * 100_000, "nested too deeply"),
    "llama": ({"model_type": "llama"}, "model_type is 'llama'"),
    "gemma 3": ({"model_type": "gemma3_text"}, "model_type is 'gemma3_text'"),
    "no model_type": ({"hidden_size": 8}, "model_type is None"),
    "model_type as a number": (text(model_type=4), "expected a text"),
    "a drafter": ({"model_type": "gemma4_assistant"}, "is a drafter"),
    "no text_config": ({"model_type": "gemma4"}, "has no text_config"),
    "text_config as a list": ({"model_type": "gemma4", "text_config": []}, "expected an object"),
    "wrong text_config": (
        {"model_type": "gemma4", "text_config": {"model_type": "llama"}},
        "expected 'gemma4_text'",
    ),
    "a billion layers": (text(num_hidden_layers=10**9), "whole number from 1 to 512"),
    "no layers": (text(num_hidden_layers=0), "whole number from 1 to 512"),
    "layers as text": (text(num_hidden_layers="6"), "whole number from 1 to 512"),
    "true layers": (text(num_hidden_layers=True), "num_hidden_layers"),
    "true as a size": (text(hidden_size=True), "hidden_size in"),
    "null as a size": (text(hidden_size=None), "hidden_size in"),
    "fraction as a size": (text(hidden_size=64.0), "hidden_size in"),
    "negative size": (text(intermediate_size=-1), "intermediate_size in"),
    "vast size": (text(hidden_size=1 << 40), "hidden_size in"),
    "vast vocabulary": (text(vocab_size=1 << 40), "vocab_size in"),
    "vast context": (text(max_position_embeddings=1 << 60), "max_position_embeddings in"),
    "window of nothing": (text(sliding_window=0), "sliding_window in"),
    "no heads": (text(num_attention_heads=0), "num_attention_heads in"),
    "heads that do not divide": (text(num_attention_heads=7), "7 query heads"),
    "odd head size": (text(head_dim=7), "head size 7 is odd"),
    "layer_types too short": (text(layer_types=["full_attention"]), "a list of 6 names"),
    "unknown layer type": (text(layer_types=["chunked_attention"] * 6), "'chunked_attention'"),
    "layer types of numbers": (text(layer_types=[1] * 6), "layer_types in"),
    "all layers shared": (text(num_kv_shared_layers=6), "num_kv_shared_layers=6"),
    "no donor": (text(num_kv_shared_layers=5), "no global layer owns KV"),
    "flag as a number": (text(use_double_wide_mlp=1), "expected true or false"),
    "other activation": (text(hidden_activation="silu"), "no other activation"),
    "attention biases": (text(attention_bias=True), "no attention biases"),
    "zero for no biases": (text(attention_bias=0), "no attention biases"),
    "one for tied": (text(tie_word_embeddings=1), "one matrix"),
    "attention soft-cap": (text(attn_logit_softcapping=50.0), "does not cap attention"),
    "untied embeddings": (text(tie_word_embeddings=False), "one matrix"),
    "untied outside": (
        {"model_type": "gemma4", "tie_word_embeddings": False, "text_config": text()},
        "one matrix",
    ),
    "reads both ways": (text(use_bidirectional_attention="all"), "left to right"),
    "quantised": (text(quantization_config={"bits": 4}), "use the bfloat16 ones"),
    "rope_scaling": (text(rope_scaling={"factor": 2}), "rope_parameters instead"),
    "soft-cap of nothing": (text(final_logit_softcapping=0.0), "logit_softcap 0.0"),
    "soft-cap as text": (text(final_logit_softcapping="30"), "expected a number"),
    "epsilon of 400 digits": (text(rms_norm_eps=10**400), "expected a number within"),
    "epsilon above one": (text(rms_norm_eps=2), "rms_norm_eps 2.0"),
    "rope for one kind": (rope(full_attention=None), "full_attention in rope_parameters"),
    "flat rope": (text(rope_parameters={"rope_theta": 1e4}), "one for each kind"),
    "scaled rope": (rope(full_attention={"rope_theta": 1e6, "factor": 8.0}), "does not scale"),
    "yarn": (rope(full_attention={"rope_type": "yarn"}), "'default' or 'proportional'"),
    "rope without base": (rope(full_attention={"rope_type": "default"}), "rope_theta in"),
    "partial default rope": (
        rope(full_attention={"rope_theta": 1e6, "partial_rotary_factor": 0.5}),
        "partial_rotary_factor in",
    ),
    "negative rope base": (rope(full_attention={"rope_theta": -1.0}), "RoPE base -1.0"),
    "experts without a number": (text(enable_moe_block=True), "num_experts in"),
    "more experts chosen than there are": (
        text(enable_moe_block=True, num_experts=4, top_k_experts=5, moe_intermediate_size=8),
        "num_experts_per_token=5",
    ),
    "a million experts": (
        text(enable_moe_block=True, num_experts=10**6, top_k_experts=1, moe_intermediate_size=8),
        "num_experts=1000000",
    ),
    "experts in a unified model": (
        text(model_type="gemma4_unified_text", enable_moe_block=True),
        "the unified model has none",
    ),
    "per-layer rows missing": (text(vocab_size_per_layer_input=100), "per_layer_vocab_size 100"),
    "layer that is not there": (text(per_layer_config={"6": {"head_dim": 8}}), "layers 0 to 5"),
    "layer given twice": (
        text(per_layer_config={"5": {"head_dim": 8}, "05": {"head_dim": 8}}),
        "one object for each layer",
    ),
    "layer named by a word": (text(per_layer_config={"last": {}}), "layers 0 to 5"),
    "layer without its attention": (text(per_layer_config={"5": {"skip": ["mlp"]}}), "skip in 5"),
    "layers of one kind that differ": (
        text(per_layer_config={"1": {"head_dim": 8}}),
        "other heads than the sliding layers",
    ),
    "end token out of range": (text(eos_token_id=262144), "eos_token_id=262144"),
    "negative end token": (text(eos_token_id=[1, -1]), "eos_token_id in"),
    "true as an end token": (text(eos_token_id=True), "eos_token_id in"),
    "ten thousand end tokens": (text(eos_token_id=[1] * 10_000), "at most 1024 token ids"),
}


@pytest.mark.parametrize("name", HOSTILE_TARGETS)
def test_a_hostile_target_config_is_refused_by_name(name, tmp_path):
    value, message = HOSTILE_TARGETS[name]
    path = config_file(tmp_path, value)
    with pytest.raises(CheckpointError) as caught:
        read_target_config(path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 600


def assistant(inner=None, **changes):
    text_config = text(num_hidden_layers=4, hidden_size_per_layer_input=0) | (inner or {})
    return {"model_type": "gemma4_assistant", "text_config": text_config} | changes


HOSTILE_DRAFTERS = {
    "a target": ({"model_type": "gemma4"}, "is a target (gemma4), not a drafter"),
    "llama": ({"model_type": "llama"}, "model_type is 'llama'"),
    "no text_config": ({"model_type": "gemma4_assistant"}, "has no text_config"),
    "layers with their own KV": (assistant({"num_kv_shared_layers": 2}), "read the target's KV"),
    "per-layer embeddings": (assistant({"hidden_size_per_layer_input": 8}), "no per-layer"),
    "experts": (assistant({"enable_moe_block": True}), "plain feed-forward"),
    "double-wide": (assistant({"use_double_wide_mlp": True}), "plain feed-forward"),
    "target width as text": (assistant(backbone_hidden_size="64"), "backbone_hidden_size in"),
    "flag as a number": (assistant(use_ordered_embeddings=1), "use_ordered_embeddings in"),
    "clusters that do not divide": (
        assistant(use_ordered_embeddings=True, num_centroids=33),
        "do not divide",
    ),
    "more clusters kept than there are": (
        assistant(use_ordered_embeddings=True, num_centroids=16),
        "centroid_top_k=32",
    ),
    "no clusters": (assistant(use_ordered_embeddings=True, num_centroids=0), "num_centroids in"),
    "a billion layers": (assistant({"num_hidden_layers": 10**9}), "from 1 to 512"),
}


@pytest.mark.parametrize("name", HOSTILE_DRAFTERS)
def test_a_hostile_drafter_config_is_refused_by_name(name, tmp_path):
    value, message = HOSTILE_DRAFTERS[name]
    path = config_file(tmp_path, value)
    with pytest.raises(CheckpointError) as caught:
        read_drafter_config(path)
    assert message in str(caught.value)


def test_a_config_beyond_the_bound_is_not_parsed(tmp_path):
    path = config_file(tmp_path, " " * (strict_json.MAX_CONFIG_BYTES + 1))
    with pytest.raises(CheckpointError, match="is larger than"):
        read_target_config(path)


# What the tensors of a folder may and may not be. Each change works on a dict of arrays.


def drop(key):
    def change(tensors):
        del tensors[key]

    return change


def put(key, value):
    def change(tensors):
        tensors[key] = value(tensors) if callable(value) else value

    return change


def spoil(key, value):
    def change(tensors):
        tensors[key] = tensors[key].copy()
        tensors[key].flat[-1] = value

    return change


def rename(old, new):
    def change(tensors):
        tensors[new] = tensors.pop(old)

    return change


FLOAT = np.float32
HOSTILE_TENSORS = {
    "missing tensor": ("e2b", drop("model.norm.weight"), "lacks model.norm.weight."),
    "missing scalar": (
        "e2b",
        drop("model.layers.3.layer_scalar"),
        "lacks model.layers.3.layer_scalar.",
    ),
    "renamed scalar": (
        "e2b",
        rename("model.layers.3.layer_scalar", "model.layers.3.layer_scale"),
        "It holds model.layers.3.layer_scale, which no Gemma 4 has.",
    ),
    "no embedding": ("e2b", drop("model.embed_tokens.weight"), "is not a Gemma 4"),
    "unknown tensor": (
        "e2b",
        put("model.norm.wait", np.zeros(3, FLOAT)),
        "holds 'model.norm.wait', which this model does not use. The closest name in use is "
        "model.norm.weight.",
    ),
    "values beside keys": (
        "31b",
        put("model.layers.3.self_attn.v_proj.weight", np.zeros((64, 128), FLOAT)),
        "holds 'model.layers.3.self_attn.v_proj.weight'",
    ),
    "key projection of an owner missing": (
        "e2b",
        drop("model.layers.4.self_attn.k_proj.weight"),
        "lacks model.layers.4.self_attn.k_proj.weight",
    ),
    "mixed prefixes": (
        "e2b",
        rename("model.norm.weight", "model.language_model.norm.weight"),
        "lacks model.norm.weight",
    ),
    "wrong shape": (
        "e2b",
        put("model.norm.weight", np.zeros(65, FLOAT)),
        "has the shape [65], but config.json implies [64]",
    ),
    "turned matrix": (
        "e2b",
        put("model.layers.0.mlp.up_proj.weight", np.zeros((64, 96), FLOAT)),
        "has the shape [64, 96]",
    ),
    "double-wide where it should not be": (
        "e2b",
        put("model.layers.4.mlp.up_proj.weight", np.zeros((192, 64), FLOAT)),
        "implies [96, 64]",
    ),
    "float64": ("e2b", put("model.norm.weight", np.zeros(64)), "is stored as F64"),
    "whole numbers": ("e2b", put("model.norm.weight", np.zeros(64, np.int8)), "is stored as I8"),
    "other output head": (
        "e2b",
        put("lm_head.weight", lambda t: t["model.embed_tokens.weight"] + 1),
        "lm_head.weight in",
    ),
    "output head of another type": (
        "e2b",
        put("lm_head.weight", lambda t: t["model.embed_tokens.weight"].astype(np.float16)),
        "Export it with tied embeddings",
    ),
    "ordering as int32": (
        "e2b-assistant",
        put("masked_embedding.token_ordering", np.arange(384, dtype=np.int32)),
        "is stored as I32: expected I64",
    ),
    "ordering too short": (
        "e2b-assistant",
        put("masked_embedding.token_ordering", np.arange(383)),
        "implies [384]",
    ),
    "ordering missing": ("e2b-assistant", drop("masked_embedding.token_ordering"), "lacks masked"),
    "ordering of a dense drafter": (
        "12b-assistant",
        put("masked_embedding.token_ordering", np.arange(384)),
        "holds 'masked_embedding.token_ordering'",
    ),
    "projection of another target": (
        "e2b-assistant",
        put("pre_projection.weight", np.zeros((32, 160), FLOAT)),
        "implies [32, 128]",
    ),
}
HOSTILE_VALUES = {
    "NaN": ("e2b", spoil("model.norm.weight", np.nan), "model.norm.weight in"),
    "infinite": ("e2b", spoil("model.layers.2.layer_scalar", np.inf), "layer_scalar in"),
    "negative infinite": ("e2b", spoil("model.embed_tokens.weight", -np.inf), "embed_tokens"),
    "beyond bfloat16": ("e2b", spoil("model.norm.weight", 3.4e38), "absurdly large"),
    "token twice": (
        "e2b-assistant",
        put("masked_embedding.token_ordering", np.zeros(384, np.int64)),
        "exactly once",
    ),
    "token out of range": (
        "e2b-assistant",
        put("masked_embedding.token_ordering", np.arange(1, 385)),
        "exactly once",
    ),
    "negative token": (
        "e2b-assistant",
        put("masked_embedding.token_ordering", np.arange(-1, 383)),
        "exactly once",
    ),
}


def changed_folder(saved, tmp_path, source, change):
    folder = link(saved / source, tmp_path / "changed", without=("model.safetensors",))
    tensors = safetensors.numpy.load_file(saved / source / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def open_either(folder, source):
    return open_drafter(folder) if source.endswith("-assistant") else open_target(folder)


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_odd_tensors_are_refused_by_name(name, saved, tmp_path):
    source, change, message = HOSTILE_TENSORS[name]
    folder = changed_folder(saved, tmp_path, source, change)
    with pytest.raises(CheckpointError) as caught:
        open_either(folder, source)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", HOSTILE_VALUES)
def test_odd_values_are_refused_by_name_while_they_are_read(name, saved, tmp_path):
    source, change, message = HOSTILE_VALUES[name]
    opened = open_either(changed_folder(saved, tmp_path, source, change), source)
    with pytest.raises(CheckpointError) as caught:
        values_of(opened.weights)
    assert message in str(caught.value)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81])
def test_odd_bfloat16_and_float16_values_are_refused(bits, saved, tmp_path):
    for dtype, odd in ((torch.bfloat16, bits), (torch.float16, 0x7C00 | bits)):
        folder = tmp_path / str(dtype)
        folder = link(saved / "e2b", folder, without=("model.safetensors",))
        tensors = safetensors.torch.load_file(saved / "e2b" / "model.safetensors")
        tensors = {key: value.to(dtype) for key, value in tensors.items()}
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        values_of(open_target(folder).weights)
        flat = tensors["model.norm.weight"].view(torch.int16)
        flat[5] = odd - 65536 if odd > 32767 else odd
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight in .* holds a NaN"):
            values_of(open_target(folder).weights)


def unused_kv(tensors):
    for layer in range(5, 10):
        for part in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
            tensors[f"model.layers.{layer}.self_attn.{part}"] = np.full(3, np.nan, FLOAT)


def to_multimodal(tensors):
    for key in list(tensors):
        tensors[key.replace("model.", "model.language_model.", 1)] = tensors.pop(key)
    tensors["model.vision_tower.x.weight"] = np.zeros(2)


@pytest.mark.parametrize(
    "change",
    [
        put("lm_head.weight", lambda tensors: tensors["model.embed_tokens.weight"].copy()),
        unused_kv,
        to_multimodal,
    ],
    ids=["tied output head", "kv of shared layers", "multimodal prefix"],
)
def test_harmless_extras_change_nothing(change, saved, tmp_path):
    folder = changed_folder(saved, tmp_path, "e2b", change)
    expected = values_of(open_target(saved / "e2b").weights)
    got = values_of(open_target(folder).weights)
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[key], expected[key]) for key in expected)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_target(tmp_path)


# generation_config.json

CONFIG = TargetConfig(
    hidden_size=8,
    vocab_size=1000,
    layer_kinds=("global",),
    num_heads=1,
    num_kv_heads=1,
    num_global_kv_heads=1,
    head_dim=4,
    global_head_dim=4,
    ffn_size=8,
    sliding_window=4,
    context_length=64,
    eos_token_ids=(1, 106),
)
GREEDY = GenerationDefaults(eos_token_ids=(1, 106))
RELEASED_GENERATION = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
    "eos_token_id": [1, 106, 50],
    "suppress_tokens": [883, 882],
}
DEFAULTS = {
    "no file": (None, GREEDY),
    "empty": ({}, GREEDY),
    "released": (
        RELEASED_GENERATION,
        GenerationDefaults(
            temperature=1.0,
            top_k=64,
            top_p=0.95,
            eos_token_ids=(1, 106, 50),
            suppressed_token_ids=(883, 882),
        ),
    ),
    "not sampled": (
        {"temperature": 0.7, "top_k": 5, "eos_token_id": 7},
        GenerationDefaults(eos_token_ids=(1, 106, 7)),
    ),
    "sampled with nothing said": (
        {"do_sample": True, "top_k": None},
        GenerationDefaults(temperature=1.0, eos_token_ids=(1, 106)),
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_generation_defaults(name, tmp_path):
    from paceline.checkpoint.huggingface import read_generation_defaults

    value, expected = DEFAULTS[name]
    if value is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(value))
    assert read_generation_defaults(tmp_path, CONFIG) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "temperature -1.0"),
        ({"temperature": "hot"}, "temperature in"),
        ({"temperature": 1e300}, "temperature in"),
        ({"top_k": -1}, "top_k in"),
        ({"top_k": True}, "top_k in"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"do_sample": "yes"}, "do_sample in"),
        ({"eos_token_id": 1000}, "names token 1000"),
        ({"eos_token_id": [[1]]}, "eos_token_id in"),
        ({"suppress_tokens": [5, 1000]}, "names token 1000"),
        ({"suppress_tokens": [-1]}, "suppress_tokens in"),
    ],
)
def test_odd_generation_settings_are_refused_by_name(change, message, tmp_path):
    from paceline.checkpoint.huggingface import read_generation_defaults

    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(RELEASED_GENERATION | change))
    with pytest.raises(CheckpointError) as caught:
        read_generation_defaults(tmp_path, CONFIG)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_written_defaults_come_back_and_transformers_reads_them(saved, tmp_path):
    from transformers import GenerationConfig

    opened = open_target(saved / "e2b")
    defaults = GenerationDefaults(
        temperature=0.8,
        top_k=40,
        top_p=0.9,
        eos_token_ids=(1, 106, 50),
        suppressed_token_ids=(7, 9),
    )
    tokenizer = tmp_path / "given.json"
    tokenizer.write_text("{}")
    weights = arrays_of(opened.weights)
    folder = tmp_path / "model"
    write_target_folder(folder, opened.config, weights, defaults=defaults, tokenizer_file=tokenizer)
    again = open_target(folder)
    assert again.defaults == defaults
    assert again.tokenizer_file.read_text() == "{}"
    with safetensors.safe_open(folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    theirs = GenerationConfig.from_pretrained(folder)
    assert (theirs.temperature, theirs.top_k, theirs.top_p) == (0.8, 40, 0.9)
    assert theirs.eos_token_id == [1, 106, 50]
    assert theirs.suppress_tokens == [7, 9]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("norm.weight"), "norm.weight is missing"),
        (put("extra", np.zeros(1, FLOAT)), "extra is not part of it"),
        (put("norm.weight", np.zeros(5, FLOAT)), "expected float32 [64]"),
        (put("norm.weight", np.zeros(64)), "got float64 [64]"),
        (spoil("norm.weight", np.nan), "norm.weight: it holds a NaN"),
    ],
)
def test_writing_refuses_weights_that_do_not_fit(change, message, saved, tmp_path):
    opened = open_target(saved / "e2b")
    weights = arrays_of(opened.weights)
    change(weights)
    with pytest.raises(CheckpointError) as caught:
        write_target_folder(tmp_path / "out", opened.config, weights)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_writing_refuses_an_ordering_that_is_no_permutation(saved, tmp_path):
    opened = open_drafter(saved / "e2b-assistant")
    weights = arrays_of(opened.weights)
    weights["masked_embedding.token_ordering"] = np.zeros(384, np.int64)
    with pytest.raises(CheckpointError, match="exactly once"):
        write_drafter_folder(tmp_path / "out", opened.config, weights)


def test_defaults_out_of_range_are_a_config_error():
    with pytest.raises(ConfigError, match="top_k"):
        GenerationDefaults(top_k=-1)


def test_configs_of_other_rotary_fractions_survive_writing(tmp_path):
    config = DrafterConfig(
        hidden_size=8,
        vocab_size=12,
        layer_kinds=("sliding", "global"),
        num_heads=2,
        num_kv_heads=1,
        num_global_kv_heads=1,
        head_dim=8,
        global_head_dim=8,
        ffn_size=8,
        sliding_window=4,
        context_length=64,
        rope_sliding=RopeConfig(base=500.0, fraction=0.5),
        rope_global=RopeConfig(base=2000.0),
        rms_norm_eps=1e-5,
        target_hidden_size=16,
        num_centroids=4,
        centroid_top_k=2,
    )
    specs = drafter_table(config).specs
    weights = {x.name: np.ones(x.shape, FLOAT) for x in specs}
    weights["masked_embedding.token_ordering"] = np.arange(12)[::-1].copy()
    write_drafter_folder(tmp_path, config, weights)
    assert open_drafter(tmp_path).config == config
    Gemma4AssistantForCausalLM.from_pretrained(tmp_path)
