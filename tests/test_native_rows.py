"""Contracts C1 and C4 on the native runtime: a row's bits depend on its own tokens and cache only.

Not on how many rows share a pass, nor on their sequences, chunks, threads or instruction set.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import geometries
import native_digest
import native_twins
import pairs
from native_digest import fed
from paceline import _native
from paceline.runtime.protocols import Rows

LENGTH = 500  # past a section of 256 keys, and twice round a ring of 192
TAIL = 16
DTYPES = ("F32", "BF16", "Q8_0", "Q4_0")
CASES = [(name, dtype) for name in geometries.NAMES for dtype in DTYPES]
FEW = settings(max_examples=3, deadline=None, derandomize=True)


def bits(output):
    """Of all outputs of a pass."""
    hidden = [row.numpy() for row in output.hidden] or [np.empty((0, 0), np.float32)]
    return np.concatenate([output.logits, np.concatenate(hidden)], axis=1).view(np.uint32)


def cache_bits(kv_cache, config):
    """All that a later row can see: everything on global layers, the window on sliding ones."""
    last = kv_cache.length - 1
    kept = []
    for layer in config.layers[: config.first_shared_layer]:
        first = 0 if layer.window is None else max(0, last - layer.window + 1)
        kept += [x.view(np.uint32) for x in kv_cache.inner.read(layer.index, first, last)]
    return kept


def same(first, second):
    return all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))


@cache
def one_by_one(name, dtype, seed=0, length=LENGTH):
    """Output bits, and the cache, of plain decoding."""
    target = native_twins.native(name, dtype).target
    kv_cache = target.new_cache(LENGTH, 15)
    rows = [bits(fed(target, kv_cache, [token], 1)) for token in pairs.tokens(length, seed)]
    return np.concatenate(rows), kv_cache


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_row_count_gives_the_same_bits(name, dtype):
    """1 to 16 rows after a prompt in chunks, each taken back before the next."""
    expected, _ = one_by_one(name, dtype)
    target, start = native_twins.native(name, dtype).target, LENGTH - TAIL
    token_ids, kv_cache = pairs.tokens(LENGTH), target.new_cache(LENGTH, 15)
    for begin in range(0, start, 128):
        chunk = token_ids[begin : min(begin + 128, start)]
        output = bits(fed(target, kv_cache, chunk, 1))
        assert np.array_equal(output[0], expected[begin + len(chunk) - 1])
    for count in range(1, TAIL + 1):
        output = fed(target, kv_cache, token_ids[start : start + count], count)
        assert np.array_equal(bits(output), expected[start : start + count])
        kv_cache.truncate(start)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_whole_prompt_gives_the_bits_of_single_tokens(name, dtype):
    """In one call, with all outputs and with none, and in chunks; and the same cache (C4)."""
    expected, plain_cache = one_by_one(name, dtype)
    target, token_ids = native_twins.native(name, dtype).target, pairs.tokens(LENGTH)
    for sizes, all_outputs in (([500], True), ([500], False), ([129, 1, 370], False)):
        kv_cache, begin = target.new_cache(LENGTH, 15), 0
        for size in sizes:
            part = token_ids[begin : begin + size]
            begin += size
            output = fed(target, kv_cache, part, size if all_outputs else 0)
            if all_outputs:
                assert np.array_equal(bits(output), expected[begin - size : begin])
        config = target.config
        assert same(cache_bits(kv_cache, config), cache_bits(plain_cache, config))


@pytest.mark.parametrize("name", geometries.NAMES)
@FEW
@given(data=st.data())
def test_neighbours_change_no_bit(name, data):
    """Three sequences of different ages share every pass, in any shares and any order."""
    target = native_twins.native(name, "Q8_0").target
    length = 300
    plain = [one_by_one(name, "Q8_0", seed, length) for seed in range(3)]
    caches = [target.new_cache(length, 15) for _ in plain]
    for seed, kv_cache in enumerate(caches):
        start = data.draw(st.integers(200, 280))
        fed(target, kv_cache, pairs.tokens(length, seed)[:start], 0)
    while unfinished := [i for i in range(3) if caches[i].length < length]:
        rows, spans = [], []
        for i in data.draw(st.permutations(unfinished)):
            begin = caches[i].length
            end = min(length, begin + data.draw(st.integers(1, 16)))
            wanted = data.draw(st.integers(0, end - begin))
            spans.append((i, end - wanted, end))
            tokens = pairs.tokens(length, i)[begin:end]
            rows.append(Rows(cache=caches[i], token_ids=tokens, num_outputs=wanted))
        for (i, first, end), output in zip(spans, target.forward(rows), strict=True):
            assert not output.logits.size or np.array_equal(bits(output), plain[i][0][first:end])
    for kv_cache, (_, plain_cache) in zip(caches, plain, strict=True):
        config = target.config
        assert same(cache_bits(kv_cache, config), cache_bits(plain_cache, config))


@pytest.mark.parametrize("name", geometries.NAMES)
@FEW
@given(data=st.data())
def test_a_rejected_draft_leaves_no_trace(name, data):
    """Contract C4: rows that are fed and taken back, anywhere, leave the cache of plain decoding
    and the bits that come after."""
    expected, plain_cache = one_by_one(name, "Q8_0")
    target, token_ids = native_twins.native(name, "Q8_0").target, pairs.tokens(LENGTH)
    kv_cache = target.new_cache(LENGTH, 15)
    fed(target, kv_cache, token_ids[:440], 0)
    while (length := kv_cache.length) < LENGTH:
        count = data.draw(st.integers(1, min(16, LENGTH - length)))
        kept = data.draw(st.integers(1, count))
        wrong = data.draw(st.integers(3, geometries.VOCABULARY - 1))
        rows = token_ids[length : length + kept] + [wrong] * (count - kept)
        output = bits(fed(target, kv_cache, rows, count))
        assert np.array_equal(output[:kept], expected[length : length + kept])
        kv_cache.truncate(length + kept)
    config = target.config
    assert same(cache_bits(kv_cache, config), cache_bits(plain_cache, config))


def test_threads_and_instruction_sets_change_no_bit(tmp_path):
    """Every geometry, drafts included, with 1 and 2 threads under each set of this machine."""
    chosen = [("e2b", dtype) for dtype in DTYPES] + [
        (name, "Q8_0") for name in geometries.NAMES[1:]
    ]
    every = [native_twins.stored(*case) for case in chosen]
    pickled = tmp_path / "pairs"
    pickled.write_bytes(
        pickle.dumps(
            [
                (
                    files.target_config,
                    native_digest.tensors_of(files.target_weights),
                    files.drafter_config,
                    native_digest.tensors_of(files.drafter_weights),
                )
                for files in every
            ]
        )
    )
    digests = {}
    for isa in _native.isa_names():
        run = subprocess.run(
            [sys.executable, native_digest.__file__, str(pickled)],
            env=os.environ | {"PACELINE_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        for line in run.stdout.splitlines():
            used, threads, *values = line.split()
            assert used == isa
            digests[isa, threads] = values
    assert len(digests) == 2 * len(_native.isa_names())
    first, *others = digests.values()
    assert len(set(first)) == len(every)  # the digest sees the weights
    assert all(values == first for values in others)
