"""Files of tensors: ours against the safetensors library's, and hostile ones against nothing."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.checkpoint import safetensors_file
from paceline.checkpoint.safetensors_file import (
    SafetensorsFile,
    open_tensors,
    to_bfloat16,
    write_safetensors,
)
from paceline.errors import CheckpointError

LIBRARY_TYPES = ["?", "u1", "i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"]


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def packed(header, data=b"\0" * 8, length=None):
    """The bytes of a file: header length, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes):
    return packed({"a": entry(**changes)})


BIG = 1 << 40
HOSTILE = {
    "empty file": (b"", "only 0 bytes"),
    "seven bytes": (b"\x08" + b"\0" * 6, "only 7 bytes"),
    "header longer than the file": (packed({}, b"", length=1000), "claims 1000 bytes"),
    "header of 2^64 - 1 bytes": (b"\xff" * 16, "claims 18446744073709551615 bytes"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "not json": (packed(b"{oops}"), "not valid JSON"),
    "not utf-8": (packed(b'{"\xff": 1}'), "not valid JSON"),
    "nested too deeply": (packed(b'{"a":' + b"[" * 50_000 + b"}"), "nested too deeply"),
    "leading space": (packed(b" {}", b""), "must begin with {"),
    "trailing newline": (packed(b"{}\n", b""), "end with }"),
    "a list": (packed(b"[]", b""), "must begin with {"),
    "text after the object": (packed(b"{} {}", b""), "not valid JSON"),
    "duplicate tensor": (
        packed(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
        ),
        "'a' occurs twice",
    ),
    "duplicate key in a tensor": (
        packed(b'{"a":{"dtype":"F32","dtype":"I8","shape":[2],"data_offsets":[0,8]}}'),
        "'dtype' occurs twice",
    ),
    "NaN as a size": (
        packed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'),
        "NaN is not a JSON number",
    ),
    "a size of 5000 digits": (
        packed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
        "not valid JSON",
    ),
    "path as a name": (packed({"../../x": entry()}), "odd name '../../x'"),
    "empty name": (packed({"": entry()}), "odd name ''"),
    "escape codes in a name": (packed({"\x1b[2J": entry()}), r"odd name '\x1b[2J'"),
    "half a surrogate in a name": (packed(b'{"\\ud800":{}}'), r"odd name '\ud800'"),
    "very long name": (packed({"x" * 10_000: entry()}), "odd name"),
    "tensor that is no object": (packed({"a": 7}), "dtype, shape and data_offsets"),
    "tensor without a type": (
        packed({"a": {"shape": [2], "data_offsets": [0, 8]}}),
        "dtype, shape and data_offsets",
    ),
    "extra key": (packed({"a": entry() | {"stride": [1]}}), "and nothing else"),
    "unknown type": (one(dtype="F12"), "unknown type 'F12'"),
    "type that is a list": (one(dtype=["F32"]), "unknown type"),
    "negative size": (one(shape=(-2,)), "holds -2"),
    "two negative sizes": (one(shape=(-1, -2)), "holds -1"),
    "fractional size": (one(shape=(2.0,)), "holds 2.0"),
    "true as a size": (one(shape=(2, True)), "holds True"),
    "size as text": (one(shape=("2",)), "holds '2'"),
    "shape that is a number": (
        packed({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}),
        "must be a list",
    ),
    "hundred dimensions": (one(shape=(1,) * 100), "at most 8 sizes"),
    "product beyond 64 bits": (one(shape=(BIG, BIG, BIG)), "takes 8 bytes"),
    "product that wraps to the right size": (one(shape=(1 << 62, 4, 2)), "takes 8 bytes"),
    "size does not fit the offsets": (one(shape=(3,)), "needs 12"),
    "negative offset": (one(offsets=(-8, 0)), "holds -8"),
    "offsets the wrong way round": (one(offsets=(8, 0)), "must be [begin, end]"),
    "one offset": (one(offsets=(8,)), "must be [begin, end]"),
    "tensor past the end": (one(shape=(4,), offsets=(0, 16)), "truncated"),
    "truncated data": (packed({"a": entry()}, b"\0" * 7), "truncated"),
    "overlap": (
        packed({"a": entry(), "b": entry(shape=(1,), offsets=(4, 8))}),
        "tensor b in",
    ),
    "same bytes twice": (packed({"a": entry(), "b": entry()}), "overlaps another one"),
    "hole before the first": (packed({"a": entry(shape=(1,), offsets=(4, 8))}), "4 bytes before"),
    "hole between": (
        packed(
            {"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(shape=(1,), offsets=(8, 12))},
            b"\0" * 12,
        ),
        "4 bytes before tensor b",
    ),
    "bytes after the last": (packed({"a": entry()}, b"\0" * 9), "1 bytes after its last"),
    "data without tensors": (packed({}), "8 bytes after its last"),
    "metadata that is a number": (packed({"__metadata__": 3}, b""), "__metadata__"),
    "metadata with a number": (packed({"__metadata__": {"a": 3}}, b""), "__metadata__"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name_before_anything_is_allocated(name, tmp_path):
    content, message = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            SafetensorsFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500
    # What parsing itself takes; a believed size of the list would be 16 bytes to 2^64.
    assert peak < 4 << 20


def test_a_header_beyond_the_bound_is_not_even_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", 10)
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed({"a": entry()}))
    with pytest.raises(CheckpointError, match="expected at most 10"):
        SafetensorsFile(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="cannot read"):
            SafetensorsFile(path)


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(LIBRARY_TYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    raw = draw(st.binary(min_size=64 * 8, max_size=64 * 8))
    count = int(np.prod(shape, dtype=np.int64))
    values = np.frombuffer(raw, np.uint8)[: count * dtype.itemsize]
    return (values & 1 if dtype == np.bool_ else values).view(dtype)[:count].reshape(shape)


NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,8}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(tensors=st.dictionaries(NAMES, arrays(), max_size=5))
def test_both_ways_with_the_library(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_safetensors(folder / "ours", tensors, metadata={"format": "pt"})
    safetensors.numpy.save_file(tensors, folder / "theirs")
    read_by_library = safetensors.numpy.load_file(folder / "ours")
    ours, theirs = SafetensorsFile(folder / "ours"), SafetensorsFile(folder / "theirs")
    assert read_by_library.keys() == ours.entries.keys() == theirs.entries.keys() == tensors.keys()
    for name, array in tensors.items():
        for got in (read_by_library[name], ours.tensor(name), theirs.tensor(name)):
            assert got.dtype == array.dtype
            assert got.shape == array.shape
            assert got.tobytes() == array.tobytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_header_is_refused_or_read_within_the_file(data, tmp_path_factory):
    """Whatever the bytes: an error of ours, or views that lie inside the file."""
    good = packed({"a": entry(), "b": entry("I8", (4,), (8, 12))}, b"\0" * 12)
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(good) - 13))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    path.write_bytes(changed)
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    assert sum(file.tensor(name).nbytes for name in file.entries) == 12


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_bfloat16_rounds_as_torch_does(bits):
    edges = [0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x3F808001, 1, 0x8000, 0x18000, 0xFF7F8000]
    values = np.array([*bits, *edges], np.uint32).view(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    got = torch.from_numpy(to_bfloat16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(got.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(got[numbers].view(torch.int16), expected[numbers].view(torch.int16))


def test_bfloat16_is_stored_rounded_in_slices_or_as_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "CHUNK", 7)
    values = np.linspace(-3, 3, 60, dtype=np.float32).reshape(5, 12)
    tensors = {"rounded": values, "turned": values.T, "bits": to_bfloat16(values)}
    write_safetensors(tmp_path / "a", tensors, dtypes=dict.fromkeys(tensors, "BF16"))
    with safetensors.safe_open(tmp_path / "a", framework="pt") as file:
        expected = torch.from_numpy(values).bfloat16()
        assert torch.equal(file.get_tensor("rounded"), expected)
        assert torch.equal(file.get_tensor("turned"), expected.T)
        assert torch.equal(file.get_tensor("bits"), expected)
    ours = SafetensorsFile(tmp_path / "a")
    assert ours.entries["bits"].dtype == "BF16"
    assert np.array_equal(ours.tensor("rounded"), tensors["bits"])


def test_tensors_are_read_only_views_of_the_file_and_aligned(tmp_path):
    tensors = {"a": np.arange(3, dtype=np.int8), "b": np.arange(5.0), "c": np.zeros(1, np.float32)}
    write_safetensors(tmp_path / "x", tensors)
    file = SafetensorsFile(tmp_path / "x")
    for name in tensors:
        view = file.tensor(name)
        assert not view.flags.owndata
        assert not view.flags.writeable
        assert view.flags.aligned


class Unwritable(np.ndarray):
    """An array whose bytes cannot be had: stands for a full disk."""

    def tobytes(self, order="C"):
        raise OSError("no space left")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.arange(4)})
    before = path.read_bytes()
    broken = np.arange(2, dtype=np.float32).view(Unwritable)
    with pytest.raises(OSError, match="no space left"):
        write_safetensors(path, {"b": np.arange(4), "c": broken})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_type_that_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot store a: .* complex128"):
        write_safetensors(tmp_path / "x", {"a": np.zeros(2, np.complex128)})
    assert not list(tmp_path.iterdir())


SHARDS = {
    "one.safetensors": {"a": np.arange(3, dtype=np.float32)},
    "two.safetensors": {"b": np.arange(4, dtype=np.float32), "c": np.zeros((0, 2), np.float32)},
}
WEIGHT_MAP = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}


def write_shards(folder, weight_map=WEIGHT_MAP, shards=SHARDS):
    for name, tensors in shards.items():
        write_safetensors(folder / name, tensors)
    index = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def test_shards_are_one_checkpoint(tmp_path):
    write_shards(tmp_path)
    files = open_tensors(tmp_path)
    assert files.entries.keys() == WEIGHT_MAP.keys()
    for name, shard in WEIGHT_MAP.items():
        assert np.array_equal(files.tensor(name), SHARDS[shard][name])
        assert files.path_of(name) == tmp_path / shard


def test_a_single_file_goes_before_an_index_as_in_transformers(tmp_path):
    write_shards(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {"z": np.zeros(1)})
    assert open_tensors(tmp_path).entries.keys() == {"z"}


def test_a_shard_may_be_a_link_as_in_the_hub_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_shards(tmp_path / "blobs")
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert open_tensors(tmp_path / "snapshot").entries.keys() == WEIGHT_MAP.keys()


def moved(**changes):
    return WEIGHT_MAP | changes


TWICE = SHARDS | {"two.safetensors": SHARDS["two.safetensors"] | SHARDS["one.safetensors"]}
HOSTILE_INDEX = {
    "traversal": (moved(a="../one.safetensors"), SHARDS, "expected the plain name"),
    "absolute path": (moved(a="/etc/one.safetensors"), SHARDS, "expected the plain name"),
    "backslashes": (moved(a="..\\one.safetensors"), SHARDS, "expected the plain name"),
    "hidden file": (moved(a=".one.safetensors"), SHARDS, "expected the plain name"),
    "other kind of file": (moved(a="one.bin"), SHARDS, "expected the plain name"),
    "number as a file": (moved(a=1), SHARDS, "places a in 1"),
    "odd tensor name": (moved(**{"a/../b": "one.safetensors"}), SHARDS, "odd name 'a/../b'"),
    "missing shard": (moved(d="three.safetensors"), SHARDS, "three.safetensors is missing"),
    "tensor not in its shard": (moved(d="one.safetensors"), SHARDS, "places d in one.safetensors"),
    "tensor in two shards": (WEIGHT_MAP, TWICE, "a is in two shards"),
    "tensor not listed": (
        {"a": "one.safetensors", "b": "two.safetensors"},
        SHARDS,
        "holds c, which model.safetensors.index.json does not list",
    ),
    "empty map": ({}, SHARDS, "has no weight_map"),
    "no map": ("{}", SHARDS, "has no weight_map"),
    "map that is a list": ('{"weight_map": ["a"]}', SHARDS, "has no weight_map"),
    "index that is a list": ("[]", SHARDS, "one JSON object"),
    "index that is not json": ("{", SHARDS, "not valid JSON"),
    "tensor listed twice": (
        '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}',
        SHARDS,
        "'a' occurs twice",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_INDEX)
def test_a_hostile_index_is_refused_by_name(name, tmp_path):
    weight_map, shards, message = HOSTILE_INDEX[name]
    write_shards(tmp_path, weight_map, shards)
    with pytest.raises(CheckpointError) as caught:
        open_tensors(tmp_path)
    assert message in str(caught.value)


def test_a_truncated_shard_is_refused_by_name(tmp_path):
    write_shards(tmp_path)
    shard = tmp_path / "two.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"two\.safetensors is truncated"):
        open_tensors(tmp_path)


def test_an_index_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_INDEX_BYTES", 20)
    write_shards(tmp_path)
    with pytest.raises(CheckpointError, match="larger than 20 bytes"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "Is the download complete"),
        ("model-Q4_0.gguf", "GGUF"),
        ("pytorch_model.bin", "never loads"),
    ],
)
def test_a_folder_without_safetensors_says_what_it_holds(file, message, tmp_path):
    if file is not None:
        (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path)
