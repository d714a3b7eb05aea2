"""GGUF files: what is written comes back, others can read it, and theirs can be read."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf.constants import MODEL_ARCH, MODEL_TENSORS, TENSOR_NAMES, Keys

import gguf_raw
from gguf_pair import files, ignore, source
from paceline import tokenizer as tokenizer_module
from paceline.checkpoint import gguf_format, weights
from paceline.checkpoint.convert import NEVER_BELOW_Q8_0, convert_target, stored_dtype
from paceline.checkpoint.gguf_config import rope_fraction, turning_pairs
from paceline.checkpoint.gguf_file import GgufFile
from paceline.checkpoint.gguf_model import open_drafter_file, open_target_file
from paceline.checkpoint.gguf_names import LAYER, WHOLE_MODEL
from paceline.checkpoint.gguf_tokenizer import (
    CONTROL,
    NORMAL,
    TYPES_KEY,
    check_same_tokens,
    read_tokenizer,
    tokenizer_metadata,
)
from paceline.checkpoint.huggingface import GenerationDefaults, open_target, write_target_folder
from paceline.checkpoint.names import TensorSpec, target_table
from paceline.checkpoint.quantise import as_bytes, dequantise
from paceline.config import RopeConfig, TargetConfig
from paceline.engine import Engine
from paceline.errors import CheckpointError, PairMismatchError
from paceline.loading import load_pair
from paceline.sampling import SamplingParams
from paceline.tokenizer import Tokenizer
from random_pair import random_weights
from small_tokenizer import small_document, small_tokenizer

TYPES = ("Q4_0", "Q8_0", "BF16", "F32")

TEXTS = [
    "",
    "The cat sat on the mat,\n\n\nand  the dog did not.\n",
    "naïve café \N{SNOWMAN} \N{GRINNING FACE} e\u0301 \u2581 a\u2581b",
    "<bos><|turn>user\n<turn|><eos> <pad> <|tool_call> <|think|> <unused7> <unused99>",
    "<0x41> <0xFF> \x00\x01\x7f \r\n\t\t",
    " leading and trailing ",
    "\U0010ffff" * 3,
    "def add(first, second):\n\treturn first + second",
]


def values_of(weight):
    """All of a weight as float32, or its token ids."""
    pieces = [np.array(piece) for _, piece in weight.slices()]
    whole = np.concatenate(pieces)
    if weight.spec.kind == "token_ordering":
        return whole
    return dequantise(as_bytes(whole), weight.slice_dtype)


def by_name(opened):
    return {weight.spec.name: weight for weight in opened.weights.tensors}


# A folder and what comes back from its file


@pytest.mark.parametrize("dtype", TYPES)
def test_configs_and_defaults_come_back(dtype):
    target, drafter = files(dtype)
    assert open_target_file(target).config == source().target.config
    assert open_target_file(target).defaults == source().target.defaults
    assert open_drafter_file(drafter).config == source().drafter.config


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("part", [0, 1], ids=["target", "drafter"])
def test_weights_come_back_as_the_library_would_store_them(dtype, part):
    opened = (open_target_file, open_drafter_file)[part](files(dtype)[part])
    originals = by_name((source().target, source().drafter)[part])
    assert by_name(opened).keys() == originals.keys()
    for name, weight in by_name(opened).items():
        expected = values_of(originals[name])
        if weight.spec.kind == "weight":
            kind = gguf.GGMLQuantizationType[weight.dtype]
            expected = expected.reshape(-1, weight.spec.shape[-1])
            expected = gguf.dequantize(gguf.quantize(expected, kind), kind).reshape(-1)
        assert np.array_equal(values_of(weight), expected), name


@pytest.mark.parametrize("dtype", TYPES)
def test_the_library_reads_the_same(dtype):
    """Names, shapes and data as the outside judge of the format sees them."""
    path = files(dtype)[0]
    weights_by_name = by_name(open_target_file(path))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tensors.pop("rope_freqs.weight").n_elements == 16
    assert len(tensors) == len(weights_by_name)
    for weight in weights_by_name.values():
        tensor = tensors[weight.spec.file_name]
        assert tuple(tensor.shape[::-1]) == weight.spec.shape
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(values.reshape(-1), values_of(weight))


def test_rows_that_are_no_whole_blocks_are_not_quantised():
    spec = TensorSpec(name="layers.0.mlp.up_proj.weight", file_name="x", shape=(64, 8))
    assert [stored_dtype(spec, dtype) for dtype in ("Q4_0", "Q8_0", "F32")] == [
        "BF16",
        "BF16",
        "F32",
    ]


def test_types_by_name():
    """What is sensitive is kept at 8 bits or more; what is small, whole."""
    for dtype in ("Q4_0", "Q8_0"):
        stored = {
            name: weight.dtype
            for name, weight in by_name(open_target_file(files(dtype)[0])).items()
        }
        assert stored["layers.0.mlp.up_proj.weight"] == dtype
        assert stored["layers.3.self_attn.q_proj.weight"] == dtype
        assert stored["embed_tokens.weight"] == "Q8_0"
        assert stored["embed_tokens_per_layer.weight"] == "Q8_0"
        assert stored["layers.0.per_layer_input_gate.weight"] == "Q8_0"
        assert stored["layers.0.per_layer_projection.weight"] == "Q8_0"
        assert {stored[x] for x in ("norm.weight", "layers.1.layer_scalar")} == {"F32"}
        drafter = {
            name: weight.dtype
            for name, weight in by_name(open_drafter_file(files(dtype)[1])).items()
        }
        assert drafter["embed_tokens.weight"] == dtype  # its output head only
        assert drafter["pre_projection.weight"] == "Q8_0"
    router = TensorSpec(name="layers.11.router.proj.weight", file_name="", shape=(64, 64))
    assert stored_dtype(router, "Q4_0") == "F32"
    for name in NEVER_BELOW_Q8_0:
        assert stored_dtype(replace(router, name=name), "Q4_0") == "Q8_0"
        assert stored_dtype(replace(router, name=f"layers.3.{name}"), "BF16") == "BF16"
    head = replace(router, name="embed_tokens.weight")
    assert stored_dtype(head, "Q4_0", of_drafter=True) == "Q4_0"


VOCAB_SIZE = small_tokenizer().vocab_size
BASE = {
    "hidden_size": 64,
    "vocab_size": VOCAB_SIZE,
    "num_heads": 4,
    "num_kv_heads": 2,
    "num_global_kv_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "ffn_size": 96,
    "sliding_window": 24,
    "context_length": 512,
    "bos_token_id": 2,
    "eos_token_ids": (1, 106),
}
FIVE = ("sliding",) * 4 + ("global",)
CONFIGS = {
    "e2b": TargetConfig(
        **BASE,
        layer_kinds=FIVE * 2,
        num_kv_shared_layers=5,
        double_wide_ffn=True,
        per_layer_size=8,
        per_layer_vocab_size=VOCAB_SIZE,
        logit_softcap=30.0,
    ),
    "12b": TargetConfig(
        **(BASE | {"num_global_kv_heads": 1}), layer_kinds=FIVE, values_from_keys=True
    ),
    "26b": TargetConfig(
        **BASE,
        layer_kinds=FIVE,
        num_experts=6,
        num_experts_per_token=2,
        expert_ffn_size=32,
        logit_softcap=30.0,
        rms_norm_eps=1e-5,
    ),
    "odd": TargetConfig(
        **(BASE | {"global_head_dim": 50, "head_dim": 22}),
        layer_kinds=("global", "sliding", "global"),
        rope_global=RopeConfig(base=123_456.0, fraction=46 / 50),
        rope_sliding=RopeConfig(base=9_999.5),
    ),
    "all global": TargetConfig(**BASE, layer_kinds=("global",) * 2),
}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(small_document()))
    return path


def write_folder(folder, config, tokenizer_file, **options):
    write_target_folder(
        folder,
        config,
        random_weights(target_table(config), 0),
        tokenizer_file=tokenizer_file,
        **options,
    )
    return open_target(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_geometry_comes_back(name, tmp_path, tokenizer_file):
    opened = write_folder(tmp_path, CONFIGS[name], tokenizer_file)
    convert_target(opened, tmp_path / "x.gguf", "BF16", name=name, count=ignore)
    read = open_target_file(tmp_path / "x.gguf")
    assert read.config == CONFIGS[name]
    for tensor, weight in by_name(read).items():
        assert np.array_equal(values_of(weight), values_of(by_name(opened)[tensor]))


@pytest.mark.parametrize(
    "defaults",
    [
        GenerationDefaults(eos_token_ids=(1, 106)),
        GenerationDefaults(temperature=0.7, top_k=3, top_p=0.123, eos_token_ids=(1, 106, 50)),
        GenerationDefaults(eos_token_ids=(1, 106), suppressed_token_ids=(4, 400)),
    ],
)
def test_defaults_come_back(defaults, tmp_path, tokenizer_file):
    opened = write_folder(tmp_path, CONFIGS["all global"], tokenizer_file, defaults=defaults)
    assert opened.defaults == defaults
    convert_target(opened, tmp_path / "x.gguf", "F32", name="x", count=ignore)
    assert open_target_file(tmp_path / "x.gguf").defaults == defaults


def test_rows_past_the_vocabulary_are_left_out(tmp_path, tokenizer_file):
    """llama.cpp wants exactly one row for each token."""
    config = replace(CONFIGS["e2b"], per_layer_vocab_size=VOCAB_SIZE + 40)
    opened = write_folder(tmp_path, config, tokenizer_file)
    convert_target(opened, tmp_path / "x.gguf", "F32", name="x", count=ignore)
    read = open_target_file(tmp_path / "x.gguf")
    assert read.config == CONFIGS["e2b"]
    name = "embed_tokens_per_layer.weight"
    whole = values_of(by_name(opened)[name])
    kept = values_of(by_name(read)[name])
    assert np.array_equal(kept, whole[: len(kept)])
    assert len(kept) == VOCAB_SIZE * 8 * 10


@pytest.mark.parametrize("head_dim", [*range(2, 130, 2), 256, 512])
def test_the_fraction_turns_as_many_pairs(head_dim):
    for turning in range(1, head_dim // 2 + 1):
        fraction = rope_fraction(turning, head_dim)
        assert 0 < fraction <= 1
        assert turning_pairs(fraction, head_dim) == turning


# Text


@pytest.mark.parametrize("part", [0, 1], ids=["target", "drafter"])
def test_the_tokenizer_comes_back(part):
    tokenizer = read_tokenizer(GgufFile(files("Q8_0")[part]))
    original = small_tokenizer()
    assert tokenizer.control == original.control
    assert tokenizer.control_ids == original.control_ids
    assert tokenizer.vocab_size == original.vocab_size
    for text in [*TEXTS, *map(original.token_text, range(VOCAB_SIZE))]:
        assert tokenizer.encode_text(text) == original.encode_text(text), text
    for token in range(VOCAB_SIZE):
        assert tokenizer.token_bytes(token) == original.token_bytes(token)
        assert tokenizer.token_text(token) == original.token_text(token)


def rebuilt(document, tmp_path):
    from paceline.checkpoint.gguf_writer import write_gguf

    write_gguf(tmp_path / "t.gguf", tokenizer_metadata(document), [])
    return read_tokenizer(GgufFile(tmp_path / "t.gguf"))


def test_added_tokens_that_text_may_become(tmp_path):
    document = small_document()
    document["added_tokens"] += [
        document["added_tokens"][0] | {"id": VOCAB_SIZE, "content": "<table>", "special": False},
        document["added_tokens"][0] | {"id": VOCAB_SIZE + 1, "content": "\n\n\n", "special": False},
    ]
    original, tokenizer = Tokenizer(document), rebuilt(document, tmp_path)
    for text in [*TEXTS, "a <table> b</table>", "\n\n\n\n\n\n\n<table><table>"]:
        assert tokenizer.encode_text(text) == original.encode_text(text)
    assert VOCAB_SIZE in tokenizer.encode_text("a <table>")


def test_ids_without_a_token(tmp_path):
    document = small_document()
    hole = VOCAB_SIZE + 3
    document["added_tokens"].append(
        document["added_tokens"][0] | {"id": hole, "content": "<|late|>"}
    )
    tokenizer = rebuilt(document, tmp_path)
    assert tokenizer.vocab_size == hole + 1
    assert tokenizer.token_bytes(hole - 1) == b""
    assert not set(tokenizer.encode_text(f"[EMPTY_{hole - 1}] <|late|>")) & {hole, hole - 1}


def test_a_tokenizer_that_gguf_cannot_say():
    document = small_document()
    document["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "brown"}, "content": "green"},
        document["normalizer"],
    ]}  # fmt: skip
    original, plain = Tokenizer(document), small_tokenizer()
    with pytest.raises(CheckpointError, match="more than GGUF can say"):
        check_same_tokens(original, plain)
    check_same_tokens(plain, plain)


def test_a_tokenizer_json_beside_the_file_goes_first(tmp_path):
    shutil.copy(files("Q8_0")[0], tmp_path / "x.gguf")
    document = small_document()
    document["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    pair = load_pair(tmp_path / "x.gguf")
    assert len(pair.tokenizer.encode_text("the cat")) == len("the cat")


# Running


def answers(pair, draft, temperature):
    engine = Engine(pair)
    sampling = SamplingParams(temperature=temperature, seed=5)
    return [
        engine.generate(text, sampling=sampling, max_tokens=24, draft=draft).token_ids
        for text in ("The cat sat", "Why is the sky blue?")
    ]


@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0"])
def test_drafting_changes_no_token(dtype):
    pair = load_pair(files(dtype)[0])
    assert pair.drafter is not None
    assert pair.weight_bytes == sum(
        weight.num_bytes
        for opened in (open_target_file(files(dtype)[0]), open_drafter_file(files(dtype)[1]))
        for weight in opened.weights.tensors
    )
    for temperature in (0.0, 1.0):
        assert answers(pair, 4, temperature) == answers(pair, 0, temperature)


def test_a_file_without_loss_answers_as_its_folder():
    pairs = load_pair(files("BF16")[0]), load_pair(source().target.path)
    assert answers(pairs[0], 4, 1.0) == answers(pairs[1], 4, 1.0)
    assert pairs[0].name == "BF16"


def test_progress_counts_the_bytes_of_the_file():
    calls = []
    pair = load_pair(files("Q4_0")[0], progress=lambda *sizes: calls.append(sizes))
    read, total = zip(*calls, strict=True)
    assert set(total) == {pair.weight_bytes}
    assert list(read) == sorted(set(read))
    assert read[-1] == pair.weight_bytes


def test_loading_and_converting_hold_one_slice(tmp_path, tokenizer_file, monkeypatch):
    config = replace(CONFIGS["all global"], hidden_size=1024)
    opened = write_folder(tmp_path, config, tokenizer_file)
    monkeypatch.setattr(weights, "SLICE", 1 << 12)
    monkeypatch.setattr(tokenizer_module, "MAX_FILE_BYTES", 1 << 18)
    largest = max(weight.num_bytes for weight in opened.weights.tensors)

    def convert():
        convert_target(opened, tmp_path / "x.gguf", "Q4_0", name="x", count=ignore)

    def read():
        for weight in open_target_file(tmp_path / "x.gguf").weights.tensors:
            for _ in weight.slices():
                pass

    for action in (convert, read):
        action()
        tracemalloc.start()
        try:
            action()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # The vocabulary, which conversion holds as text, takes 0.6 MB of it.
        assert peak < 1_000_000 < largest


def test_a_failed_conversion_leaves_no_file(tmp_path, tokenizer_file):
    config = CONFIGS["all global"]
    arrays = random_weights(target_table(config), 0)
    arrays["layers.1.mlp.up_proj.weight"][3, 3] = 3e37
    write_target_folder(tmp_path, config, arrays, tokenizer_file=tokenizer_file)
    out = tmp_path / "x.gguf"
    out.write_bytes(b"was here before")
    with pytest.raises(CheckpointError, match=r"up_proj.*beyond what Q4_0 can store"):
        convert_target(open_target(tmp_path), out, "Q4_0", name="x", count=ignore)
    assert out.read_bytes() == b"was here before"
    assert not list(tmp_path.glob("*.partial"))


def test_a_model_that_gguf_cannot_say(tmp_path, tokenizer_file):
    rope = RopeConfig(base=10_000.0, fraction=0.5)
    opened = write_folder(tmp_path, replace(CONFIGS["12b"], rope_sliding=rope), tokenizer_file)
    with pytest.raises(
        CheckpointError, match=r"sliding layers turn every pair, but here only 0\.5"
    ):
        convert_target(opened, tmp_path / "x.gguf", "F32", name="x", count=ignore)


# llama.cpp's conventions


def test_the_tensor_names_are_those_of_the_library():
    known = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[MODEL_ARCH.GEMMA4]}
    ours = {f"blk.{{bid}}.{name}" for name in LAYER.values()}
    ours |= {name for name in WHOLE_MODEL.values() if not name.startswith(("nextn", "masked"))}
    assert {name.rsplit(".", 1)[0] for name in ours} <= known


def test_the_metadata_keys_are_those_of_the_library():
    """A misspelt key would be passed over in silence by llama.cpp. Ours are marked as ours."""
    known = {
        value
        for group in vars(Keys).values()
        if isinstance(group, type)
        for value in vars(group).values()
        if isinstance(value, str)
    }
    for path, architecture in zip(files("Q8_0"), ("gemma4", "gemma4-assistant"), strict=True):
        file = GgufFile(path)
        keys = {key.replace(f"{architecture}.", "{arch}.") for key in file.metadata}
        assert {key for key in keys - known if not key.startswith("paceline.")} == set()
        assert file.metadata["general.architecture"] == architecture
        assert file.metadata["tokenizer.ggml.model"] == "gemma4"


def test_what_llama_cpp_requires_is_there():
    """Read by its loader without a default (llama-model.cpp, gemma4.cpp, gemma4-assistant.cpp)."""
    common = [
        "block_count",
        "context_length",
        "embedding_length",
        "embedding_length_per_layer_input",
        "feed_forward_length",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.dimension_count",
        "rope.dimension_count_swa",
    ]
    common += [
        f"attention.{name}"
        for name in (
            "head_count",
            "head_count_kv",
            "key_length",
            "key_length_swa",
            "value_length",
            "value_length_swa",
            "layer_norm_rms_epsilon",
            "sliding_window",
            "sliding_window_pattern",
        )
    ]
    target, drafter = (GgufFile(path).metadata for path in files("Q8_0"))
    assert {f"gemma4.{key}" for key in common} <= target.keys()
    drafter_keys = [*common, "embedding_length_out", "nextn_predict_layers"]
    assert {f"gemma4-assistant.{key}" for key in drafter_keys} <= drafter.keys()
    assert drafter["gemma4-assistant.nextn_predict_layers"] == 2
    assert target["gemma4.attention.sliding_window_pattern"].kind == "bool"
    assert target["tokenizer.ggml.token_type"].kind == "i32"


def test_a_drafter_has_no_tensor_that_llama_cpp_refuses():
    """It counts tensors, and its shape check of centroid tensors fails for every real one."""
    names = set(GgufFile(files("Q8_0")[1]).entries)
    assert not [name for name in names if name.startswith("masked_embd")]
    assert {"nextn.pre_projection.weight", "nextn.post_projection.weight"} <= names


def raw(dtype, part):
    return gguf_raw.parse(files(dtype)[part].read_bytes())


def as_converters_write(part):
    """The file as convert_hf_to_gguf writes it: no key of ours, KV of layers that use none."""
    file = raw("Q8_0", part)
    file.keys = [key for key in file.keys if not key[0].startswith(b"paceline.")]
    if part == 0:
        for layer in (2, 3):
            size = 32 if layer == 3 else 16
            for name in ("attn_k", "attn_v"):
                file.add(f"blk.{layer}.{name}.weight", [64, size], 1, bytes(64 * size * 2))
            file.add(f"blk.{layer}.attn_k_norm.weight", [size], 0, bytes(4 * size))
        types = gguf_raw.array(5, [3 if i in (0, 1, 2) else 1 for i in range(VOCAB_SIZE)])
        file.set(TYPES_KEY, 9, types)
        for name in ("temp", "top_k", "top_p"):
            file.drop(f"general.sampling.{name}")
    return file


def written(file, path):
    path.write_bytes(file.to_bytes())
    return path


def test_a_target_by_llama_cpps_converter(tmp_path):
    path = written(as_converters_write(0), tmp_path / "x.gguf")
    opened = open_target_file(path)
    original = open_target_file(files("Q8_0")[0])
    ends = (1, 106, 50)  # <eos>, <turn|> and <|tool_response>, as llama.cpp knows them
    assert opened.config == replace(original.config, eos_token_ids=(1, 106))
    assert opened.defaults == GenerationDefaults(eos_token_ids=ends)
    assert by_name(opened).keys() == by_name(original).keys()
    pair = load_pair(path)
    assert pair.tokenizer.encode_text("the cat <bos>") == small_tokenizer().encode_text(
        "the cat <bos>"
    )


def test_a_drafter_by_llama_cpps_converter_has_a_dense_head(tmp_path):
    path = written(as_converters_write(1), tmp_path / "x.gguf")
    config = open_drafter_file(path).config
    assert config == replace(source().drafter.config, num_centroids=0, centroid_top_k=0)
    pair = load_pair(files("Q8_0")[0], path)
    assert answers(pair, 4, 0.0) == answers(pair, 0, 0.0)


def test_clusters_as_tensors(tmp_path):
    """Other converters keep them as tensors, the ids as i32 or i64."""
    original = open_drafter_file(files("Q8_0")[1])
    centroids = values_of(by_name(original)["masked_embedding.centroids.weight"])
    ordering = values_of(by_name(original)["masked_embedding.token_ordering"])
    for kind, dtype in ((26, np.int32), (27, np.int64)):
        file = as_converters_write(1)
        file.add("masked_embd_centroids.weight", [32, len(centroids) // 32], 0, centroids.tobytes())
        file.add("masked_embd_ordering", [len(ordering)], kind, ordering.astype(dtype).tobytes())
        opened = open_drafter_file(written(file, tmp_path / "x.gguf"))
        assert opened.config == replace(original.config, centroid_top_k=32)
        for name, weight in by_name(original).items():
            assert np.array_equal(values_of(by_name(opened)[name]), values_of(weight))


def test_version_2_and_another_alignment(tmp_path):
    file = raw("Q8_0", 0)
    file.version, file.alignment = 2, 64
    for tensor in file.tensors:
        tensor.data += bytes(-len(tensor.data) % 64)
    file.set("general.alignment", 4, gguf_raw.u32(64)).place()
    original = open_target_file(files("Q8_0")[0])
    opened = open_target_file(written(file, tmp_path / "x.gguf"))
    for name, weight in by_name(original).items():
        assert np.array_equal(values_of(by_name(opened)[name]), values_of(weight))


def test_normal_and_control_types():
    types = GgufFile(files("Q8_0")[0]).metadata[TYPES_KEY].numbers()
    tokenizer = small_tokenizer()
    assert types[tokenizer.control.bos] == CONTROL
    assert types[tokenizer.encode_text("the")[0]] == NORMAL
    assert types[tokenizer.control.tool_call_start] == 4  # so that llama.cpp's parser sees it


# Where a drafter's file is found


def place(tmp_path, names):
    for name, origin in names.items():
        shutil.copy(origin, tmp_path / name)


def foreign_drafter(tmp_path, name):
    file = raw("Q8_0", 1)
    file.set("gemma4-assistant.attention.sliding_window", 4, gguf_raw.u32(17))
    return written(file, tmp_path / name)


@pytest.mark.parametrize(
    "name", ["m-assistant.gguf", "mtp-m.gguf", "another-assistant-Q8_0.gguf", "mtp-else.gguf"]
)
def test_a_drafter_beside_the_file(name, tmp_path):
    target, drafter = files("Q4_0")
    place(tmp_path, {"m.gguf": target, name: drafter})
    assert load_pair(tmp_path / "m.gguf").drafter is not None
    assert load_pair(tmp_path / "m.gguf", None).drafter is None


def test_a_drafter_of_another_model_beside_the_file(tmp_path):
    place(tmp_path, {"m.gguf": files("Q4_0")[0]})
    assert load_pair(tmp_path / "m.gguf").drafter is None
    foreign_drafter(tmp_path, "a-assistant.gguf")
    assert load_pair(tmp_path / "m.gguf").drafter is None
    place(tmp_path, {"mtp-z.gguf": files("Q4_0")[1]})
    assert load_pair(tmp_path / "m.gguf").drafter is not None
    foreign_drafter(tmp_path, "m-assistant.gguf")
    with pytest.raises(PairMismatchError, match="sliding window"):
        load_pair(tmp_path / "m.gguf")


def test_a_folder_with_a_drafter_file_and_the_reverse():
    target, drafter = files("Q8_0")
    folder = source().target.path
    assert load_pair(folder, drafter).drafter is not None
    assert load_pair(target, folder / "assistant").drafter is not None


def test_the_wrong_one_of_a_pair():
    target, drafter = files("Q8_0")
    with pytest.raises(CheckpointError, match="is a drafter: pass it as the drafter"):
        load_pair(drafter)
    with pytest.raises(CheckpointError, match="is a target, not a drafter"):
        load_pair(target, target)


def test_a_gguf_file_of_any_name(tmp_path):
    place(tmp_path, {"blob": files("Q8_0")[0]})
    assert load_pair(tmp_path / "blob").name == "blob"


def test_the_constants_are_those_of_the_library():
    for kind, (name, block, size) in gguf_format.TENSOR_TYPES.items():
        assert gguf.GGMLQuantizationType[name] == kind
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == (block, size)
    short = {"u": "UINT", "i": "INT", "f": "FLOAT"}
    for number, kind in enumerate(gguf_format.KINDS):
        numeric = kind[1:].isdigit()
        name = short[kind[0]] + kind[1:] if numeric else kind.upper()
        assert gguf.GGUFValueType[name] == number


def test_a_float_is_the_shortest_decimal(tmp_path):
    file = raw("Q8_0", 0)
    file.set("general.sampling.top_p", 6, struct.pack("<f", 0.95))
    assert GgufFile(written(file, tmp_path / "x.gguf")).metadata["general.sampling.top_p"] == 0.95
