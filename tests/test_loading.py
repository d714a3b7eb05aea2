"""Loading a pair from disk: where it is found, what is refused, what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

import geometries
from paceline import loading
from paceline.checkpoint import weights as weights_module
from paceline.checkpoint.huggingface import (
    GenerationDefaults,
    write_drafter_folder,
    write_target_folder,
)
from paceline.checkpoint.names import drafter_table, target_table
from paceline.config import DrafterConfig, TargetConfig
from paceline.engine import Engine
from paceline.errors import (
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    PairMismatchError,
)
from paceline.loading import display_name, load_pair
from random_pair import write_random_pair
from small_tokenizer import small_document

VOCAB_SIZE = 728
GEOMETRY = {
    "vocab_size": VOCAB_SIZE,
    "num_heads": 2,
    "num_kv_heads": 1,
    "num_global_kv_heads": 1,
    "head_dim": 8,
    "global_head_dim": 16,
    "ffn_size": 32,
    "sliding_window": 16,
    "context_length": 128,
}
TARGET = TargetConfig(
    hidden_size=16,
    layer_kinds=("sliding", "global") * 2,
    num_kv_shared_layers=2,
    per_layer_size=4,
    per_layer_vocab_size=VOCAB_SIZE,
    logit_softcap=30.0,
    eos_token_ids=(1, 106),
    **GEOMETRY,
)
DRAFTER = DrafterConfig(
    hidden_size=8,
    layer_kinds=("sliding", "global"),
    target_hidden_size=16,
    num_centroids=28,
    centroid_top_k=3,
    **GEOMETRY,
)
DEFAULTS = GenerationDefaults(temperature=1.0, top_k=64, top_p=0.95, eos_token_ids=(1, 106))


def random_weights(table, seed):
    rng = np.random.default_rng(seed)
    result = {}
    for spec in table.specs:
        if spec.kind == "token_ordering":
            result[spec.name] = rng.permutation(spec.shape[0])
        else:
            result[spec.name] = rng.standard_normal(spec.shape, dtype=np.float32)
    return result


def tokenizer_document(vocab_size):
    """The small tokenizer, filled up with control tokens."""
    document = small_document()
    added = document["added_tokens"]
    for token in range(len(document["model"]["vocab"]), vocab_size):
        added.append(added[0] | {"id": token, "content": f"<filler{token}>"})
    return json.dumps(document)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer_document(VOCAB_SIZE))
    return path


@pytest.fixture
def pair(tmp_path, tokenizer_file):
    """A target with a drafter in its `assistant` folder."""
    folder = tmp_path / "small"
    weights = random_weights(target_table(TARGET), 0)
    write_target_folder(folder, TARGET, weights, defaults=DEFAULTS, tokenizer_file=tokenizer_file)
    write_drafter_folder(folder / "assistant", DRAFTER, random_weights(drafter_table(DRAFTER), 1))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pair(pair, dtype):
    calls = []
    loaded = load_pair(pair, dtype=dtype, progress=lambda *sizes: calls.append(sizes))
    assert loaded.target.config == TARGET
    assert loaded.drafter.config == DRAFTER
    assert loaded.defaults == DEFAULTS
    assert loaded.tokenizer.vocab_size == VOCAB_SIZE
    assert (loaded.name, loaded.dtype) == ("small", dtype)
    target, drafter = loaded.target.model, loaded.drafter.model
    assert loaded.num_target_parameters == sum(x.numel() for x in target.parameters())
    assert loaded.num_drafter_parameters == sum(x.numel() for x in drafter.parameters())
    stored = 2 * (loaded.num_target_parameters + loaded.num_drafter_parameters) + 8 * VOCAB_SIZE
    assert loaded.weight_bytes == stored
    read, total = zip(*calls, strict=True)
    assert set(total) == {stored}
    assert list(read) == sorted(set(read))
    assert read[-1] == stored
    assert {x.dtype for x in (*target.parameters(), *drafter.parameters())} == {
        getattr(torch, dtype)
    }


def test_the_models_hold_the_written_weights(pair):
    loaded = load_pair(pair, runtime="torch")
    for model, table, seed in (
        (loaded.target.model, target_table(TARGET), 0),
        (loaded.drafter.model, drafter_table(DRAFTER), 1),
    ):
        expected = random_weights(table, seed)
        state = model.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in state.items():
            written = torch.from_numpy(expected[name])
            if written.is_floating_point():
                written = written.bfloat16().float()
            assert torch.equal(tensor, written)
        assert not any(x.requires_grad for x in model.parameters())
        assert not model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_are_those_of_a_model_made_in_memory(pair, dtype):
    """They are in no file, so building without storage must not leave them empty or rounded."""
    from paceline.runtime.torch.models import DrafterModel, TargetModel

    loaded = load_pair(pair, dtype=dtype)
    for model, fresh in (
        (loaded.target.model, TargetModel(TARGET)),
        (loaded.drafter.model, DrafterModel(DRAFTER)),
    ):
        for kind, expected in fresh.rope_tables.frequencies.items():
            got = model.rope_tables.frequencies[kind]
            assert torch.equal(got, expected)
            assert got.dtype == torch.float32


def test_weights_are_copied_in_slices(pair, monkeypatch):
    whole = load_pair(pair, runtime="torch").target.model.state_dict()
    monkeypatch.setattr(weights_module, "SLICE", 13)
    calls = []
    sliced = load_pair(pair, runtime="torch", progress=lambda *sizes: calls.append(sizes))
    sliced = sliced.target.model.state_dict()
    assert len(calls) > len(whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, sliced[name])


@pytest.mark.parametrize("name", geometries.NAMES)
def test_transformers_folders_load_and_agree_in_logits(name, tmp_path, monkeypatch, tokenizer_file):
    """The whole way: transformers writes, we load and run, the logits are its own."""
    from paceline.runtime.torch.whole import forward_whole

    model = geometries.target_model(name)
    model.save_pretrained(tmp_path / name)
    geometries.drafter_model(name).save_pretrained(tmp_path / f"{name}-assistant")
    monkeypatch.setattr(loading, "load_tokenizer", lambda target: None)
    loaded = load_pair(tmp_path / name, runtime="torch")
    assert loaded.drafter is not None
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        hidden, _ = forward_whole(loaded.target.model, ids)
        got = loaded.target.model.logits(hidden)
        expected = model(ids).logits
    # These networks' float32 logits lie within 1.1e-3 of their float64 ones, so two orders of
    # summation may differ by twice that; a wrong weight moves them by far more.
    assert torch.allclose(got, expected, rtol=0, atol=2.5e-3)


def test_numpys_share_of_loading_is_a_slice_whatever_the_size(tmp_path, monkeypatch):
    """Torch's own memory is not traced: what is left are modules, views and one slice."""
    from paceline.checkpoint.huggingface import open_target
    from paceline.runtime.torch.load import load_target

    config = TargetConfig(**(vars(TARGET) | {"hidden_size": 512}))
    write_target_folder(tmp_path, config, random_weights(target_table(config), 0))
    monkeypatch.setattr(weights_module, "SLICE", 4096)
    opened = open_target(tmp_path)
    load_target(opened.config, opened.weights, "float32", lambda count: None)
    tracemalloc.start()
    try:
        load_target(opened.config, opened.weights, "float32", lambda count: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = max(weight.num_bytes for weight in opened.weights.tensors)
    assert peak < largest / 2 < 400_000


# Where the drafter is found


def test_the_drafter_inside_goes_before_the_sibling(pair):
    (pair.parent / "small-assistant").mkdir()  # would be refused: it is empty
    assert load_pair(pair).drafter is not None


def test_the_sibling_is_found_from_inside_the_folder_too(pair, monkeypatch):
    (pair / "assistant").rename(pair.parent / "small-assistant")
    assert load_pair(pair).drafter is not None
    monkeypatch.chdir(pair)
    loaded = load_pair(".")
    assert loaded.drafter is not None
    assert loaded.name == "small"


def test_without_a_drafter(pair):
    assert load_pair(pair, None).drafter is None
    (pair / "assistant").rename(pair / "elsewhere")
    loaded = load_pair(pair)
    assert loaded.drafter is None
    assert loaded.num_drafter_parameters == 0
    assert load_pair(pair, pair / "elsewhere").drafter is not None


def test_the_shipped_pair_is_the_default():
    loaded = load_pair()
    assert loaded.drafter is not None
    assert loaded.name == "paceline-default"


def test_a_missing_shipped_pair_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SHIPPED_FILE", tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match="installation is incomplete"):
        load_pair()


def test_a_model_of_the_hub_cache_has_its_hub_name(tmp_path):
    folder = tmp_path / "models--google--gemma-4-E2B-it" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    assert display_name(folder) == "google/gemma-4-E2B-it"


# What is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("google/gemma-4-E2B-it", "hf download google/gemma-4-E2B-it --local-dir gemma-4-E2B-it"),
        ("no/such/folder", "there is no folder 'no/such/folder'"),
        ("~nobody-at-all/x", "Could not determine home"),
        ("small\0", r"there is no folder 'small\\x00'"),
        ("x" * 5000, "cannot read"),
        ("", r"has no config\.json"),
    ],
)
def test_a_target_that_is_not_there(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_pair(given)


def test_a_drafter_that_is_not_there(pair):
    with pytest.raises(CheckpointError, match="hf download google/gemma-4-E2B-it-assistant"):
        load_pair(pair, "google/gemma-4-E2B-it-assistant")
    with pytest.raises(CheckpointError, match="pass the folder of the drafter"):
        load_pair(pair, pair / "none")


def test_a_file_is_not_a_folder(pair):
    with pytest.raises(CheckpointError, match="is a file: pass the folder of the model"):
        load_pair(pair / "model.safetensors")


def test_the_two_swapped(pair):
    with pytest.raises(CheckpointError, match=r"is a drafter .* pass it as the drafter"):
        load_pair(pair / "assistant")
    with pytest.raises(CheckpointError, match=r"is a target .*, not a drafter"):
        load_pair(pair, pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_hidden_size": 24}, "hidden size is 24, the target has 16"),
        ({"vocab_size": 756}, "vocabulary size is 756, the target has 728"),
        ({"head_dim": 16}, "sliding head size is 16, the target has 8"),
        ({"num_global_kv_heads": 2}, "global KV heads is 2, the target has 1"),
        ({"sliding_window": 8}, "sliding window is 8, the target has 16"),
    ],
)
def test_a_drafter_of_another_target(change, message, pair, tmp_path):
    config = DrafterConfig(**(vars(DRAFTER) | change))
    write_drafter_folder(tmp_path / "other", config, random_weights(drafter_table(config), 2))
    with pytest.raises(PairMismatchError, match=message):
        load_pair(pair, tmp_path / "other")


def test_nan_weights_are_refused_by_name(pair):
    path = pair / "assistant" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2:] = b"\xc0\x7f"  # a bfloat16 NaN in the last tensor of the file
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pre_projection\.weight in .* holds a NaN"):
        load_pair(pair)


def test_a_missing_tokenizer_and_one_of_another_model(pair):
    path = pair / "tokenizer.json"
    for vocab_size in (VOCAB_SIZE - 1, VOCAB_SIZE + 1):
        path.write_text(tokenizer_document(vocab_size))
        with pytest.raises(
            CheckpointError, match=f"has {vocab_size} tokens, but the model has 728"
        ):
            load_pair(pair)
    path.unlink()
    with pytest.raises(CheckpointError, match="the tokenizer is missing"):
        load_pair(pair)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime": "cuda"}, "runtime 'cuda' is not possible: expected auto, native or torch"),
        (
            {"runtime": "native", "dtype": "float32"},
            "dtype 'float32' belongs to the torch runtime",
        ),
        ({"dtype": "float16"}, "dtype 'float16' is not possible: expected float32 or bfloat16"),
        ({"threads": 0}, "threads=0 is out of range"),
        ({"threads": True}, "threads must be a whole number"),
        ({"threads": 10**6}, "threads=1000000"),
    ],
)
def test_settings_out_of_range(settings, message, pair):
    with pytest.raises(ConfigError, match=message):
        load_pair(pair, **settings)


def test_threads_are_set(pair):
    before = torch.get_num_threads()
    try:
        load_pair(pair, runtime="torch", threads=1)
        assert torch.get_num_threads() == 1
        load_pair(pair, runtime="torch")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_without_torch_the_install_line_is_named(pair, monkeypatch):
    import paceline.runtime.torch

    monkeypatch.delattr(paceline.runtime.torch, "load", raising=False)
    monkeypatch.delitem(sys.modules, "paceline.runtime.torch.load", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'paceline\[torch\]'"):
        load_pair(pair, runtime="torch")


def test_importing_loading_imports_no_torch():
    code = "import sys, paceline.loading; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


LARGER_MODELS = r"{{- '<|channel>thought\n<channel|>' -}}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"chat_template.jinja": "{{ bos_token }}"}, False),
        ({"chat_template.jinja": LARGER_MODELS}, True),
        ({"tokenizer_config.json": json.dumps({"chat_template": LARGER_MODELS})}, True),
        ({"tokenizer_config.json": json.dumps({"chat_template": [1]})}, False),
    ],
)
def test_the_template_of_the_model_decides_on_an_empty_thought(tmp_path, files, expected):
    folder = write_random_pair(tmp_path / "pair")
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    engine = Engine(load_pair(folder))
    ids = engine.encode("Hello")
    control = engine.pair.tokenizer.control
    assert (control.channel_start in ids) is expected


def test_a_template_that_is_not_text_is_refused(tmp_path):
    folder = write_random_pair(tmp_path / "pair")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja is not UTF-8"):
        load_pair(folder)
