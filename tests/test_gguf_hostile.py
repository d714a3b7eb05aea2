"""GGUF files that nobody should trust: each is refused by name, and none costs much memory.

A table of one fault each, then files with random faults at the places that matter. What no check
refuses is run by the native runtime, which must live through it.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from functools import cache

import pytest

import gguf_raw
from gguf_pair import files, ignore
from gguf_raw import RawFile, array, string, u32, u64
from paceline.checkpoint import gguf_file
from paceline.checkpoint.convert import FileDtype
from paceline.checkpoint.gguf_model import open_drafter_file, open_target_file
from paceline.checkpoint.gguf_tokenizer import read_tokenizer
from paceline.config import check_pair
from paceline.errors import CheckpointError, PairMismatchError
from paceline.runtime.native.load import load_drafter, load_target, new_pool
from paceline.runtime.protocols import DraftRequest, Rows
from paceline.sampling import DrawRule
from released_geometries import geometry
from synthetic_gguf import write_pair

HUGE = 1 << 63
MODEL = "gemma4."
FIRST = "token_embd.weight"
MATRIX = "blk.0.ffn_up.weight"
SCALARS = {"u32": 4, "f32": 6, "bool": 7, "string": 8, "array": 9}


def raw(part: int = 0, dtype: FileDtype = "Q8_0") -> RawFile:
    return gguf_raw.parse(files(dtype)[part].read_bytes())


def key(name, kind, value):
    """A fault: a metadata value of that kind in place of the good one."""
    return lambda file: file.set(name, SCALARS[kind], value)


def number(name, value):
    return key(MODEL + name, "u32", u32(value))


def real(name, value):
    return key(name, "f32", struct.pack("<f", value))


def change(tensor_name, /, **fields):
    """A fault: other fields of a tensor's description, its data left as they are."""

    def apply(file):
        tensor = file.tensor(tensor_name)
        for field, value in fields.items():
            setattr(tensor, field, value)

    return apply


def attribute(**fields):
    def apply(file):
        for field, value in fields.items():
            setattr(file, field, value)

    return apply


def twice(file):
    file.keys.append(file.keys[3])


def tensor_twice(file):
    file.add(MATRIX, [64, 64], 0, bytes(64 * 64 * 4))


def cut_key_name(file):
    file.claimed[file.keys[-1][0].decode()] = HUGE


def overlap(file):
    file.tensors[5].offset = file.tensors[4].offset


def swap(file):
    file.tensors[4].offset, file.tensors[5].offset = (
        file.tensors[5].offset,
        file.tensors[4].offset,
    )


def tokens(file):
    """(start of the array, its texts)"""
    value = file.keys[file.index("tokenizer.ggml.tokens")][2]
    count, position, texts = struct.unpack_from("<Q", value, 4)[0], 12, []
    for _ in range(count):
        size = struct.unpack_from("<Q", value, position)[0]
        texts.append(value[position + 8 : position + 8 + size])
        position += 8 + size
    return texts


def with_tokens(edit):
    """A fault in the list of tokens."""

    def apply(file):
        texts = tokens(file)
        edit(texts)
        file.set("tokenizer.ggml.tokens", 9, array(8, texts))

    return apply


def set_token(index, text):
    return with_tokens(lambda texts: texts.__setitem__(index, text))


def data(name, start, content):
    """A fault in a tensor's data."""

    def apply(file):
        old = file.tensor(name).data
        file.tensor(name).data = old[:start] + content + old[start + len(content) :]

    return apply


def wrong_rope(file):
    values = struct.pack("<16f", *[1.0] * 4, 2.0, *[1e30] * 11)
    file.tensor("rope_freqs.weight").data = values


HEADER = {
    "another magic": (attribute(magic=b"GGML"), "no GGUF file: it begins with b'GGML'"),
    "a Git LFS pointer": (attribute(magic=b"vers"), "Git LFS pointer"),
    "version 1": (attribute(version=1), "GGUF version 1: expected 2 or 3"),
    "version 4": (attribute(version=4), "GGUF version 4"),
    "big-endian": (attribute(version=3 << 24), "big-endian"),
    "too many tensors": (attribute(num_tensors=HUGE), "claims 9223372036854775808 tensors"),
    "more tensors than bytes": (attribute(num_tensors=32_000), "claims 32000 tensors in"),
    "more tensors than there are": (attribute(num_tensors=2_000), "expected at most 63"),
    "fewer tensors than there are": (attribute(num_tensors=9), "bytes after its last tensor|lacks"),
    "too many keys": (attribute(num_keys=HUGE), "claims 9223372036854775808 keys"),
    "more keys than there are": (
        attribute(num_keys=60),
        "metadata key 42 in .* expected at most 1024",
    ),
    "fewer keys than there are": (attribute(num_keys=3), "odd name|dimensions|impossible|type"),
    "bytes after the end": (attribute(tail=bytes(64)), "64 bytes after its last tensor"),
}
METADATA = {
    "a key twice": (twice, "has the metadata key .* twice"),
    "a key's length that overflows": (cut_key_name, "has 9223372036854775808 bytes: expected"),
    "a key of strange letters": (
        lambda file: file.keys.append((b"\x1b[2J", 4, u32(1))),
        "odd name '.x1b.2J'",
    ),
    "a key that is no text": (lambda file: file.keys.append((b"\xff\xff", 4, u32(1))), "UTF-8"),
    "an empty key": (lambda file: file.keys.append((b"", 4, u32(1))), "odd name ''"),
    "a value of unknown type": (
        lambda file: file.set("general.name", 13, u32(1)),
        "general.name in .* has the unknown type 13",
    ),
    "a text that overflows": (
        key("general.name", "string", u64(HUGE)),
        "general.name in .* has 9223372036854775808 bytes: expected at most",
    ),
    "a text past the end": (key("general.name", "string", u64(5_000_000)), "truncated or damaged"),
    "a text that is no UTF-8": (key("general.name", "string", string(b"\xc3(")), "is not UTF-8"),
    "a flag of 2": (
        key("tokenizer.ggml.add_bos_token", "bool", b"\2"),
        "add_bos_token in .* must be 0 or 1, got 2",
    ),
    "an array that overflows": (
        key("tokenizer.ggml.scores", "array", u32(6) + u64(HUGE)),
        "scores in .* has 9223372036854775808 items: expected at most",
    ),
    "an array past the end": (
        key("tokenizer.ggml.scores", "array", u32(6) + u64(8_000_000)),
        "scores takes 32000000 bytes at byte",
    ),
    "an array of texts past the end": (
        key("tokenizer.ggml.merges", "array", u32(8) + u64(8_000_000)),
        "merges runs past the end",
    ),
    "an array of arrays": (
        key("tokenizer.ggml.scores", "array", u32(9) + u64(1) + u32(4) + u64(0)),
        "array of arrays",
    ),
    "an array of nothing known": (
        key("tokenizer.ggml.scores", "array", u32(99) + u64(1)),
        "unknown type 99",
    ),
    "an alignment of 0": (key("general.alignment", "u32", u32(0)), "alignment in .* is 0"),
    "an alignment of 24": (key("general.alignment", "u32", u32(24)), "expected a power of two"),
    "an alignment of 2 ** 31": (key("general.alignment", "u32", u32(1 << 31)), "power of two"),
    "an alignment that is a text": (
        key("general.alignment", "string", string("32")),
        "alignment in .* is '32'",
    ),
    "an alignment that the data do not have": (
        key("general.alignment", "u32", u32(4096)),
        "not aligned: its offset .* is no multiple of 4096",
    ),
}
TENSORS = {
    "a tensor twice": (tensor_twice, "has the tensor blk.0.ffn_up.weight twice"),
    "an odd tensor name": (change(MATRIX, name=b"../up"), "odd name '../up'"),
    "a long tensor name": (change(MATRIX, name=b"x" * 64), "has 64 bytes: expected at most 63"),
    "no dimensions": (change(MATRIX, dims=[]), "has 0 dimensions"),
    "five dimensions": (change(MATRIX, dims=[64, 64, 1, 1, 1]), "has 5 dimensions"),
    "a dimension of 0": (change(MATRIX, dims=[64, 0]), r"impossible shape \[0, 64\]"),
    "a shape that overflows": (change(MATRIX, dims=[1 << 32, 1 << 32]), "impossible shape"),
    "a shape that wraps to its size": (change(MATRIX, dims=[64, (1 << 58) + 64]), "impossible"),
    "a shape past the end": (change(MATRIX, dims=[64, 1 << 40]), "is truncated: tensor"),
    "an unknown quantisation": (change(MATRIX, type=200), "has the unknown type 200"),
    "a retired quantisation": (change(MATRIX, type=4), "has the unknown type 4"),
    "an unsupported quantisation": (
        change(MATRIX, type=12, dims=[256, 16]),
        "truncated|expected [0-9]+, where the tensor before it ends",
    ),
    "rows that are no blocks": (change(MATRIX, dims=[65, 64]), "Q8_0 needs a multiple of 32"),
    "an offset past the end": (change(MATRIX, offset=1 << 40), "has the offset 1099511627776"),
    "an offset that overflows": (change(MATRIX, offset=(1 << 64) - 32), "has the offset 18446"),
    "an unaligned offset": (change(MATRIX, offset=33), "not aligned: its offset 33"),
    "overlapping tensors": (overlap, "where the tensor before it ends"),
    "tensors out of order": (swap, "where the tensor before it ends"),
}
MODELS = {
    "no architecture": (lambda f: f.drop("general.architecture"), "general.architecture is None"),
    "another architecture": (
        key("general.architecture", "string", string("llama")),
        "is not that of a Gemma 4: its general.architecture is 'llama', expected gemma4",
    ),
    "an architecture that is a number": (
        key("general.architecture", "u32", u32(4)),
        "general.architecture is 4",
    ),
    "one part of several": (key("split.count", "u32", u32(3)), "one of 3 parts"),
    "no layer count": (lambda f: f.drop(MODEL + "block_count"), "lacks the metadata key"),
    "no width": (lambda f: f.drop(MODEL + "embedding_length"), "gemma4.embedding_length"),
    "no window": (lambda f: f.drop(MODEL + "attention.sliding_window"), "sliding_window"),
    "no pattern": (lambda f: f.drop(MODEL + "attention.sliding_window_pattern"), "pattern"),
    "a period for the pattern": (
        number("attention.sliding_window_pattern", 6),
        "expected an array of 4 flags",
    ),
    "a short pattern": (
        key(MODEL + "attention.sliding_window_pattern", "array", array(7, [1, 0])),
        "an array of 2 bool: expected one whole number for each of the 4 layers",
    ),
    "a pattern of texts": (
        key(MODEL + "attention.sliding_window_pattern", "array", array(8, ["a"] * 4)),
        "an array of 4 string",
    ),
    "a pattern of other numbers": (
        key(MODEL + "attention.sliding_window_pattern", "array", array(4, [1, 0, 7, 0])),
        "only true and false",
    ),
    "no layers": (number("block_count", 0), "block_count in .* is 0"),
    "a million layers": (number("block_count", 1_000_000), "from 1 to 512"),
    "more layers than tensors": (
        lambda f: [
            number("block_count", 5)(f),
            key(MODEL + "attention.sliding_window_pattern", "array", array(7, [1, 0, 1, 0, 1]))(f),
        ],
        r"lacks blk\.2\.attn_k",
    ),
    "a width of 2 ** 31": (number("embedding_length", 1 << 31), "from 1 to 1048576"),
    "another width": (number("embedding_length", 96), r"\[.*64\], but its metadata implies .*96"),
    "a width that is a text": (
        key(MODEL + "embedding_length", "string", string("64")),
        "embedding_length in .* is '64'",
    ),
    "heads that do not share": (number("attention.head_count_kv", 3), "cannot share 3 KV heads"),
    "no heads": (number("attention.head_count", 0), "num_heads=0"),
    "KV heads by layer, all different": (
        key(MODEL + "attention.head_count_kv", "array", array(5, [1, 1, 2, 1])),
        "the same number for all sliding layers",
    ),
    "negative KV heads": (
        key(MODEL + "attention.head_count_kv", "array", array(5, [-1] * 4)),
        "numbers from 0",
    ),
    "keys and values of two lengths": (
        number("attention.value_length", 16),
        "value_length in .* is 16: expected 32",
    ),
    "half of a head rotated": (number("rope.dimension_count_swa", 8), "expected 16"),
    "a wide last layer of odd width": (
        key(MODEL + "feed_forward_length", "array", array(5, [64, 64, 100, 100])),
        "64 or 128 for the last layers",
    ),
    "all layers shared": (number("attention.shared_kv_layers", 4), "from 0 to 3"),
    "stretched positions": (
        key(MODEL + "rope.scaling.type", "string", string("yarn")),
        "does not scale its positions",
    ),
    "a norm's epsilon of NaN": (
        real(MODEL + "attention.layer_norm_rms_epsilon", float("nan")),
        "layer_norm_rms_epsilon in .* is nan",
    ),
    "a rotary base of 0": (real(MODEL + "rope.freq_base", 0.0), "RoPE base 0.0"),
    "an infinite cap": (real(MODEL + "final_logit_softcapping", float("inf")), "is inf"),
    "rope_freqs of another kind": (wrong_rope, "must be ones, then 1e[+]30"),
    "no rope_freqs": (
        lambda f: [f.tensors.pop(), f.place()],
        "needs rope_freqs.weight with 16 values",
    ),
    "a temperature of 9": (real("general.sampling.temp", 9.0), "temperature 9.0"),
    "a negative top_k": (
        lambda f: f.set("general.sampling.top_k", 5, struct.pack("<i", -1)),
        "top_k in .* is -1",
    ),
    "an end past the vocabulary": (
        key("paceline.eos_token_ids", "array", array(4, [1, 90_000])),
        "eos_token_id=90000",
    ),
    "a suppressed token past the vocabulary": (
        key("tokenizer.ggml.suppress_tokens", "array", array(5, [90_000])),
        "suppress_tokens",
    ),
    "suppressed texts": (
        key("tokenizer.ggml.suppress_tokens", "array", array(8, ["a"])),
        "expected token ids",
    ),
    "an unknown tensor": (
        lambda f: f.add("blk.0.ffn_sideways.weight", [4], 0, bytes(16)),
        "holds 'blk.0.ffn_sideways.weight', which this model does not use",
    ),
    "a missing tensor": (
        lambda f: [f.tensors.remove(f.tensor(MATRIX)), f.place()],
        "lacks blk.0.ffn_up.weight",
    ),
    "no embedding": (
        lambda f: [f.tensors.remove(f.tensor(FIRST)), f.place()],
        "has no matrix token_embd.weight",
    ),
    "a head of its own": (
        lambda f: f.add("output.weight", [4], 0, bytes(16)),
        "holds 'output.weight'",
    ),
    "weights in a type for whole numbers": (
        change("output_norm.weight", type=26),
        "stored as I32: expected Q4_0 or Q8_0",
    ),
}
VOCABULARY = {
    "no tokens": (lambda f: f.drop("tokenizer.ggml.tokens"), "tokens is missing"),
    "tokens that are numbers": (
        key("tokenizer.ggml.tokens", "array", array(4, [1] * 623)),
        "array of 623 u32: expected texts",
    ),
    "a token too few": (with_tokens(list.pop), "has 622 tokens, but the embedding has 623 rows"),
    "a token twice": (set_token(600, b"<bos>"), "the token '<bos>' occurs twice"),
    "a token that is no text": (set_token(600, b"\xff"), r"tokens\[600\] in .* is not UTF-8"),
    "no <bos>": (set_token(2, b"<bow>"), "control tokens <bos> are missing"),
    "no byte token": (set_token(107, b"bytes"), "byte tokens are missing"),
    "types for other tokens": (
        key("tokenizer.ggml.token_type", "array", array(5, [1] * 9)),
        "token_type is an array of 9 i32: expected one i32 for each of 623 tokens",
    ),
    "no merges": (lambda f: f.drop("tokenizer.ggml.merges"), "merges is missing"),
    "a merge of one": (
        key("tokenizer.ggml.merges", "array", array(8, ["the"])),
        "the merge 'the' is damaged",
    ),
    "a merge of three": (
        key("tokenizer.ggml.merges", "array", array(8, ["t h e"])),
        "the merge 't h e' is damaged",
    ),
    "a merge of unknown tokens": (
        key("tokenizer.ggml.merges", "array", array(8, ["zzz yyy"])),
        "tokenizers library refuses",
    ),
    "SentencePiece": (key("tokenizer.ggml.model", "string", string("llama")), "model is 'llama'"),
    "no tokenizer model": (lambda f: f.drop("tokenizer.ggml.model"), "model is None"),
}
DATA = {
    "a NaN scale": (data(MATRIX, 34, b"\x00\x7e"), "blk.0.ffn_up.weight in .* holds a NaN"),
    "an infinite scale": (data(MATRIX, 34, b"\x00\x7c"), "holds a NaN, an infinite"),
    "a NaN norm": (data("output_norm.weight", 4, b"\0\0\xc0\x7f"), "output_norm.weight"),
}
TARGET_FAULTS = HEADER | METADATA | TENSORS | MODELS | VOCABULARY | DATA

A = "gemma4-assistant."
DRAFTER_FAULTS = {
    "no width of its target": (
        lambda f: f.drop(A + "embedding_length_out"),
        "embedding_length_out",
    ),
    "layers that do not predict": (
        key(A + "nextn_predict_layers", "u32", u32(1)),
        "nextn_predict_layers in .* is 1: expected 2",
    ),
    "the given-up form": (
        key("general.architecture", "string", string("gemma4_assistant")),
        "convert the drafter again",
    ),
    "half a centroid": (
        key("paceline.centroids", "array", array(6, [0.0] * 33)),
        "an array of vectors of 32 numbers",
    ),
    "other clusters": (
        key("paceline.centroids", "array", array(6, [0.0] * 32 * 10)),
        "do not divide into 10 clusters",
    ),
    "no token ordering": (lambda f: f.drop("paceline.token_ordering"), "ordering in .* is None"),
    "an ordering that names a token twice": (
        key("paceline.token_ordering", "array", array(5, [0] * 623)),
        "each of the 623 token ids exactly once",
    ),
    "more clusters kept than there are": (
        key("paceline.centroid_top_k", "u32", u32(1000)),
        "centroid_top_k in .* is 1000",
    ),
}


def use_target(path):
    """All that loading does, then some passes: what no check refuses must run, to whatever end."""
    opened = open_target_file(path)
    read_tokenizer(opened.file)
    run_target(load_target(opened.config, opened.weights, pool(), ignore))
    read_weights(opened)


def use_drafter(path):
    opened = open_drafter_file(path)
    check_pair(good_target().config, opened.config)
    drafter = load_drafter(opened.config, opened.weights, pool(), ignore, good_target())
    run_drafter(drafter)
    read_weights(opened)


@cache
def pool():
    return new_pool(1, 0)  # more would spend the time on waiting for each other


@cache
def good_target():
    opened = open_target_file(files("Q8_0")[0])
    return load_target(opened.config, opened.weights, pool(), ignore)


def run_target(target):
    """Whole and chunked passes, a rejected draft, and a ring that turns."""
    context = target.config.context_length
    length = min(150, context)
    cache = target.new_cache(length, min(4, context))
    last = target.config.vocab_size - 1
    feed(target, cache, [2, last, 0, 1][:length], 1)
    if length == 150:
        feed(target, cache, [5] * 5, 5)
        cache.truncate(6)
        feed(target, cache, [6] * 140, 1)
    return cache


def feed(target, cache, token_ids, num_outputs):
    rows = Rows(cache=cache, token_ids=token_ids, num_outputs=num_outputs, num_candidates=3)
    return target.forward([rows])[0]


def run_drafter(drafter):
    cache = good_target().new_cache(16, 4)
    output = feed(good_target(), cache, [2, 300, 400], 1)
    for temperature in (0.0, 1.0):
        request = DraftRequest(
            last_token=500,
            hidden=output.hidden[0],
            cache=cache,
            max_draft_tokens=4,
            draw=DrawRule(temperature=temperature, seed=1),
        )
        (draft,) = drafter.draft([request])
        assert all(0 <= token < drafter.config.vocab_size for token in draft.tokens)


def read_weights(opened):
    for weight in opened.weights.tensors:
        for _ in weight.slices():
            pass


USES = (use_target, use_drafter)


def test_the_files_without_a_fault(tmp_path):
    for part, use in enumerate(USES):
        (tmp_path / "x.gguf").write_bytes(raw(part).to_bytes())
        use(tmp_path / "x.gguf")


@pytest.mark.parametrize("fault", TARGET_FAULTS)
def test_targets_with_one_fault(fault, tmp_path):
    check_refused(0, *TARGET_FAULTS[fault], tmp_path / "x.gguf")


@pytest.mark.parametrize("fault", DRAFTER_FAULTS)
def test_drafters_with_one_fault(fault, tmp_path):
    check_refused(1, *DRAFTER_FAULTS[fault], tmp_path / "x.gguf")


def check_refused(part, apply, message, path):
    file = raw(part)
    apply(file)
    path.write_bytes(file.to_bytes())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            USES[part](path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.name in str(caught.value)
    assert peak < 4_000_000


def test_cut_anywhere(tmp_path):
    """No prefix of a file is taken for a whole one."""
    for part, use in enumerate(USES):
        content = raw(part).to_bytes()
        generator = random.Random(0)
        cuts = {*range(200), *generator.sample(range(len(content)), 120), len(content) - 1}
        for cut in cuts:
            (tmp_path / "x.gguf").write_bytes(content[:cut])
            with pytest.raises(CheckpointError):
                use(tmp_path / "x.gguf")


def test_a_mismatched_pair(tmp_path):
    file = raw(1).set("gemma4-assistant.rope.freq_base", 6, struct.pack("<f", 5e5))
    (tmp_path / "x.gguf").write_bytes(file.to_bytes())
    drafter = open_drafter_file(tmp_path / "x.gguf")
    with pytest.raises(PairMismatchError, match="global RoPE"):
        check_pair(open_target_file(files("Q8_0")[0]).config, drafter.config)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        open_target_file(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match="only 0 bytes"):
        open_target_file(tmp_path / "x.gguf")


def test_metadata_without_end(tmp_path, monkeypatch):
    """However long a file is, reading its metadata comes to an end."""
    monkeypatch.setattr(gguf_file, "MAX_METADATA_BYTES", 4096)
    with pytest.raises(CheckpointError, match="take more than 0 MiB"):
        open_target_file(files("Q8_0")[0])


# Random faults

NUMBERS = (0, 1, 2, 3, 31, 32, 33, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63)
NUMBERS += ((1 << 64) - 1, (1 << 64) - 32)


def some_number(rng):
    value = rng.choice(NUMBERS) + rng.choice((0, 0, 0, 1, -1, 32))
    return value % (1 << 64)


def mangle_count(file, rng):
    setattr(file, rng.choice(("num_keys", "num_tensors", "version")), some_number(rng) % (1 << 32))


def mangle_key(file, rng):
    """Another type, or other bytes, for one value."""
    index = rng.randrange(len(file.keys))
    name, kind, value = file.keys[index]
    if rng.random() < 0.3:
        kind = rng.randrange(15)
    elif value:
        value = mangled(value, rng)
    file.keys[index] = (name, kind, value)


def mangled(value, rng):
    """A few bytes replaced, the length field of a text or array more often than others."""
    place = rng.choice((0, 4, rng.randrange(len(value)))) % len(value)
    new = rng.choice((u64(some_number(rng)), u32(some_number(rng) % (1 << 32)), rng.randbytes(1)))
    return (value[:place] + new + value[place + len(new) :])[: len(value)]


def mangle_name(file, rng):
    index = rng.randrange(len(file.keys))
    name, kind, value = file.keys[index]
    file.keys[index] = (rng.choice((name[:-1], name + b"x", rng.choice(file.keys)[0])), kind, value)


def drop_key(file, rng):
    file.keys.pop(rng.randrange(len(file.keys)))


def mangle_tensor(file, rng):
    tensor = rng.choice(file.tensors)
    field = rng.randrange(4)
    if field == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = some_number(rng)
    elif field == 1:
        tensor.type = some_number(rng) % (1 << 32) if rng.random() < 0.5 else rng.randrange(40)
    elif field == 2:
        tensor.offset = some_number(rng)
    else:
        tensor.name = rng.choice(file.tensors).name


def mangle_dims(file, rng):
    tensor = rng.choice(file.tensors)
    tensor.dims = rng.choice((tensor.dims[::-1], [*tensor.dims, 1], tensor.dims[:1], []))


def mangle_data(file, rng):
    tensor = rng.choice(file.tensors)
    tensor.data = mangled(tensor.data, rng)


def drop_tensor(file, rng):
    file.tensors.pop(rng.randrange(len(file.tensors)))
    if rng.random() < 0.7:
        file.place()


def mangle_lengths(file, rng):
    name = rng.choice((rng.choice(file.keys)[0], rng.choice(file.tensors).name))
    file.claimed[name.decode()] = some_number(rng)


MANGLERS = (
    mangle_count,
    mangle_key,
    mangle_key,
    mangle_key,
    mangle_name,
    drop_key,
    mangle_tensor,
    mangle_tensor,
    mangle_dims,
    mangle_data,
    drop_tensor,
    mangle_lengths,
)


def fuzzed(file, rng):
    """The bytes of a file with one to three faults."""
    file = file.copy()
    for _ in range(rng.choice((1, 1, 2, 3))):
        if file.keys and file.tensors:
            rng.choice(MANGLERS)(file, rng)
    content = file.to_bytes()
    if rng.random() < 0.1:
        content = content[: rng.randrange(len(content))]
    return content


def with_experts(folder):
    return gguf_raw.parse(write_pair(geometry("tiny-experts"), "Q4_0", folder).target.read_bytes())


def fuzz(count, seed, path):
    """Use `count` files with random faults. Returns how many were refused."""
    rng = random.Random(seed)
    good = [(part, raw(part, dtype)) for dtype in ("Q4_0", "Q8_0", "BF16") for part in (0, 1)]
    good.append((0, with_experts(path.parent)))
    refused, peak = 0, 0
    for index in range(count):
        part, file = good[index % len(good)]
        path.write_bytes(fuzzed(file, rng))
        watched = index % 50 == 0
        if watched:
            tracemalloc.start()
        try:
            USES[part](path)
        except CheckpointError:
            refused += 1
        finally:
            if watched:
                peak = max(peak, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    assert peak < 4_000_000
    return refused


def test_random_faults(tmp_path):
    refused = fuzz(2_000, 0, tmp_path / "x.gguf")
    assert 1_200 < refused < 2_000  # some faults do no harm: another name, another number


@pytest.mark.slow
def test_many_random_faults(tmp_path):
    fuzz(100_000, 1, tmp_path / "x.gguf")
