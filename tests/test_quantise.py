"""Block types against the gguf library, whose code is bit-exact with ggml's reference."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from paceline.checkpoint.quantise import as_bytes, dequantise, quantise, stored_bytes
from paceline.errors import CheckpointError

TYPES = ("Q4_0", "Q8_0", "BF16", "F16", "F32")


def judge(values, dtype):
    """The library's bytes."""
    return as_bytes(gguf.quants.quantize(values, gguf.GGMLQuantizationType[dtype]))


def judged_values(stored, dtype):
    return gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[dtype]).reshape(-1)


def random_values(seed, count=32 * 64):
    """Weights of every size that trained models have, and rounder ones."""
    generator = np.random.default_rng(seed)
    scale = np.exp2(generator.integers(-12, 6, (count // 32, 1)))
    values = generator.standard_normal((count // 32, 32)) * scale
    values[::7] = np.round(values[::7])  # ties of magnitude, codes that end in one half
    return values.astype(np.float32)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_bytes_are_those_of_the_library(dtype):
    for seed in range(20):
        values = random_values(seed)
        stored = quantise(values.reshape(-1), dtype)
        assert np.array_equal(stored, judge(values, dtype))
        assert stored.nbytes == stored_bytes(dtype, values.size)
        assert np.array_equal(dequantise(stored, dtype), judged_values(stored, dtype))


@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0"])
@given(
    block=numpy_strategies.arrays(
        np.float32, (1, 32), elements=st.floats(-64, 64, width=32, allow_subnormal=False)
    )
)
def test_any_block(block, dtype):
    if 0 < np.abs(block).max() < 1e-30:
        block = np.zeros_like(block)  # where the library divides by a subnormal
    stored = quantise(block.reshape(-1), dtype)
    assert np.array_equal(stored, judge(block, dtype))


@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0"])
def test_any_bytes_mean_what_the_library_reads(dtype):
    stored = np.random.default_rng(0).integers(0, 256, stored_bytes(dtype, 32 * 500), np.uint8)
    with np.errstate(invalid="ignore"):  # infinite scales: the loader refuses what comes of them
        theirs = judged_values(stored, dtype)
    ours = dequantise(stored, dtype)
    assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("Q4_0", 1 / 8 + 1 / 2048), ("Q8_0", 0.5 / 127 + 1 / 2048), ("BF16", 1 / 256)],
)
def test_the_error_is_bounded(dtype, bound):
    """Half a step, for Q4_0 a whole one at the positive end, and the scale's own rounding, which
    for scales below float16's normal range is up to 2 ** -25, taken 127 times."""
    values = random_values(3)
    error = np.abs(dequantise(quantise(values.reshape(-1), dtype), dtype) - values.reshape(-1))
    assert np.all(error.reshape(-1, 32).max(1) <= bound * np.abs(values).max(1) + 127 * 2.0**-25)


@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-45, 5e-8])
def test_blocks_near_zero(dtype, value):
    values = np.full(32, value, dtype=np.float32)
    got = dequantise(quantise(values, dtype), dtype)
    assert np.all(np.isfinite(got))
    assert np.all(np.abs(got - values) <= 6e-8 * 8)  # the smallest scale that float16 has


@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0", "F16"])
def test_too_large_a_value_is_refused(dtype):
    values = np.zeros(32, dtype=np.float32)
    values[5] = 3e7
    with pytest.raises(CheckpointError, match=f"beyond what {dtype} can store"):
        quantise(values, dtype)
