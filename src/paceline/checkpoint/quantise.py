"""Weights in ggml's block types: numbers to bytes and back, bit for bit as ggml's reference does.

A block holds 32 consecutive values of a row. Works on flat slices that begin and end at blocks;
knows no file and no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint.safetensors_file import to_bfloat16
from paceline.errors import CheckpointError

BLOCK = 32
BLOCK_BYTES = {"Q4_0": 2 + BLOCK // 2, "Q8_0": 2 + BLOCK}
PLAIN_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""As NumPy sees them; BF16 as its bits."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def stored_bytes(dtype: str, num_elements: int) -> int:
    """What `num_elements` values take, a multiple of 32 for block types."""
    if dtype in BLOCK_BYTES:
        return num_elements // BLOCK * BLOCK_BYTES[dtype]
    return num_elements * PLAIN_DTYPES[dtype].itemsize


def quantise(values: Floats, dtype: str) -> Bytes:
    """The stored bytes of flat float32 values.

    Raises:
        CheckpointError: a value does not fit the type.
    """
    if dtype == "Q4_0":
        return _quantise_q4_0(values.reshape(-1, BLOCK)).reshape(-1)
    if dtype == "Q8_0":
        return _quantise_q8_0(values.reshape(-1, BLOCK)).reshape(-1)
    if dtype == "BF16":
        return as_bytes(to_bfloat16(values))
    if dtype == "F16":
        return as_bytes(_as_float16(values, dtype))
    return as_bytes(values.astype(PLAIN_DTYPES[dtype]))


def as_bytes(array: NDArray[Any]) -> Bytes:
    """The same memory, flat."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def dequantise(stored: Bytes, dtype: str) -> Floats:
    """The float32 values that flat stored bytes stand for: NaN too, which the caller refuses."""
    with np.errstate(invalid="ignore"):
        if dtype == "Q4_0":
            return _dequantise_q4_0(stored.reshape(-1, BLOCK_BYTES["Q4_0"])).reshape(-1)
        if dtype == "Q8_0":
            return _dequantise_q8_0(stored.reshape(-1, BLOCK_BYTES["Q8_0"])).reshape(-1)
        elements: NDArray[Any] = stored.view(PLAIN_DTYPES[dtype])
        if dtype == "BF16":
            return (elements.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return elements.astype(np.float32)


def _quantise_q4_0(blocks: Floats) -> Bytes:
    """d = (value of largest magnitude, the first of them) / -8; code = trunc(x / d + 8.5)."""
    largest = np.abs(blocks).argmax(axis=1, keepdims=True)
    scale = np.take_along_axis(blocks, largest, axis=1) / np.float32(-8)
    codes = (blocks * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    nibbles = codes[:, : BLOCK // 2] | (codes[:, BLOCK // 2 :] << 4)
    return np.concatenate([_as_float16(scale, "Q4_0").view(np.uint8), nibbles], axis=1)


def _quantise_q8_0(blocks: Floats) -> Bytes:
    """d = largest magnitude / 127; code = x / d, halves rounded away from zero."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    codes = np.copysign(whole + (magnitude - whole >= 0.5), scaled).astype(np.int8)
    stored_scale = _as_float16(scale, "Q8_0")
    return np.concatenate([stored_scale.view(np.uint8), codes.view(np.uint8)], axis=1)


def _inverse(scale: Floats) -> Floats:
    """1 / scale; 0 where that overflows, for then the stored scale is 0 and no code matters."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Floats = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _as_float16(values: Floats, dtype: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore", under="ignore"):
        halves: NDArray[np.float16] = values.astype(np.float16)
    if not np.all(np.isfinite(halves)):
        raise CheckpointError(
            f"a value of {np.abs(values).max():g} is beyond what {dtype} can store: "
            "choose the type bf16 or f32."
        )
    return halves


def _dequantise_q4_0(blocks: Bytes) -> Floats:
    """x = (code - 8) * d; the low nibbles are the block's first half."""
    nibbles = blocks[:, 2:]
    codes = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1).astype(np.int8) - np.int8(8)
    return _scaled(codes, blocks)


def _dequantise_q8_0(blocks: Bytes) -> Floats:
    """x = code * d"""
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    return _scaled(codes, blocks)


def _scaled(codes: NDArray[np.int8], blocks: Bytes) -> Floats:
    scales: Floats = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return codes.astype(np.float32) * scales
